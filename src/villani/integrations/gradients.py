"""Watching gradients between `backward` and the optimiser's step."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from villani.integrations.descent import Steps, innermost, uneven

_WATCHED = 4  # tensors
_SAME = 1e-6  # relative change that is rounding, as of a scale that is divided out again
_BENT = 1e-3  # relative residual of the best factor above which a change was not by a factor


class GradientWatch:
    """Sees what is done to gradients after `backward`, such as clipping, which scales ∇L and leaves weight decay alone.

    A few small tensors are looked at, spread over the model: a clip of the whole gradient's norm shows in each of them
    by the same factor. What is done to other tensors only, such as clipping by value, can be missed. The settings of
    groups are looked at in the step itself: a schedule changes them right after it. Nothing is changed, and nothing
    waits for a GPU until `take`.

    Args:
        model: whose parameters are watched.
        optimizer: with torch's step hooks; wrappers of accelerate and Lightning are looked through.
        scale: that the loss is multiplied by before `backward`, as by a GradScaler.
    """

    def __init__(self, model: nn.Module, optimizer: Any, scale: Callable[[], float] | None = None) -> None:
        self._scale = scale
        self._optimizer = innermost(optimizer)
        self._raw: dict[int, torch.Tensor] = {}
        self._decays: list[Any] | None = None
        self._varied = False
        self._clear()
        moved = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        trained = [p for p in model.parameters() if p.requires_grad and id(p) in moved]
        usual = sorted(p.numel() for p in trained)[len(trained) // 2] if trained else 0
        small = [p for p in trained if p.numel() <= usual and p.device == trained[0].device]
        self._tensors = [small[i * (len(small) - 1) // max(1, _WATCHED - 1)] for i in range(_WATCHED)] if small else []
        self._tensors = list({id(p): p for p in self._tensors}.values())
        self._handles: list[Any] = []
        if isinstance(self._optimizer, torch.optim.Optimizer):
            self._handles = [p.register_post_accumulate_grad_hook(self._arrive) for p in self._tensors]
            self._handles.append(self._optimizer.register_step_pre_hook(self._before))
            self._handles.append(self._optimizer.register_step_post_hook(self._after))

    def take(self) -> Steps:
        """What was seen since the last call; now waits for a GPU."""
        factor = float(self._factor) if self._changed_last else 1.0
        seen = Steps(self._taken, self._unseen, int(self._changed), int(self._bent), factor, self._varied, self._uneven)
        self._clear()
        return seen

    def close(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._raw = [], {}

    def _clear(self) -> None:
        self._taken = self._unseen = 0
        self._uneven = ""
        self._changed: Any = 0
        self._bent: Any = 0
        self._changed_last: Any = False
        self._factor: Any = 1.0

    def _arrive(self, tensor: torch.Tensor) -> None:
        with suppress(Exception):
            if tensor.grad is not None and tensor.grad.layout == torch.strided:
                self._raw[id(tensor)] = tensor.grad.detach().clone()

    def _before(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not _closure(args, kwargs):
            self._note()

    def _after(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _closure(args, kwargs):  # which has called backward by now, and clipped
            self._note()

    def _note(self) -> None:
        self._taken += 1
        try:
            self._look()
        except Exception:  # whatever it is, the run is worth more
            self._unseen += 1
        self._raw = {}

    @torch.no_grad()
    def _look(self) -> None:
        groups = self._optimizer.param_groups
        decays = [group.get("weight_decay") for group in groups]
        self._varied |= self._decays is not None and self._decays != decays
        self._decays = decays
        others = len(self._optimizer._optimizer_step_post_hooks) - 1
        hooked = f"{others} step hooks of others run after each step, and may move weights" if others > 0 else ""
        self._uneven = self._uneven or uneven(groups) or hooked
        pairs = [(self._raw[id(p)], p.grad) for p in self._tensors if id(p) in self._raw and p.grad is not None]
        raw = torch.cat([before.flatten() for before, _ in pairs]).float()
        used = torch.cat([after.flatten() for _, after in pairs]).float()
        if self._scale is not None and getattr(self._optimizer, "grad_scale", None) is None:  # else the step unscales
            raw = raw / self._scale()
        whole = raw.square().sum()  # sums in pairs: torch's dot and norm lose digits with every entry of a large tensor
        changed = (used - raw).square().sum() > _SAME**2 * whole
        factor = (raw * used).sum() / whole
        self._changed, self._changed_last, self._factor = self._changed + changed, changed, factor
        beside = (used - factor * raw).square().sum()
        self._bent = self._bent + (changed & (beside > _BENT**2 * used.square().sum()))


def _closure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return any(callable(value) for value in (*args[1:], kwargs.get("closure")))
