"""Weight decay by another rule than λθ: cautious decay, decay towards the start, and decay by the radial gap.

No bound of THEORY.md §5 covers a run of AdamW with one of them; the first and the last look at the data besides. What
λ_t means otherwise, see `schedules`.
"""

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from villani.dynamics.schedules import DecaySchedule, NotFinite
from villani.errors import InputError, check_positive
from villani.objective.objective import Objective


class _OwnDecay(DecaySchedule):
    """AdamW with a decay of one's own before each step, in place of the optimiser's; λ stays λ₀."""

    words: str
    why_not_f = "the decay is by another rule than λθ, so no gradient of (λ/2)‖θ‖²"

    def __init__(self) -> None:
        super().__init__()
        self._hooks: list[Any] = []

    @abstractmethod
    def decay(self, parameter: torch.Tensor, share: float, group: Mapping[str, Any]) -> None:
        """Decay a tensor that has a gradient, by `share` = ηλ; `group` is the optimiser's."""

    def attach(self, optimizer: Any) -> None:
        """See `DecaySchedule.attach`.

        Raises:
            InputError: the optimiser is not torch's AdamW: others decay by another rule.
        """
        if not isinstance(optimizer, torch.optim.AdamW):
            raise InputError(f"{self.words} is for torch.optim.AdamW, not {type(optimizer).__name__}")
        self.detach()  # of a hook of its own, as after a resume
        super().attach(optimizer)
        self._hooks = [
            optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after),
        ]  # fmt: skip

    def detach(self) -> None:
        """See `DecaySchedule.detach`."""
        super().detach()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def value(self, start: float, first_rate: float, rate: float) -> float:
        """See `DecaySchedule.value`."""
        del first_rate, rate
        return start

    def _before(self, *_: Any) -> None:
        """Decay by hand, and let the optimiser decay nothing."""
        for group in self._groups:
            decay = group["weight_decay"]
            for parameter in group["params"] if decay else ():
                if parameter.grad is not None:
                    with torch.no_grad():
                        self.decay(parameter, group["lr"] * decay, group)
            group["weight_decay"] = 0.0

    def _after(self, *_: Any) -> None:
        self._write()


class CautiousDecay(_OwnDecay):
    """AdamW's decay at those coordinates alone that the step moves towards zero (Chen et al., arXiv 2510.12402).

    θ ← (1 − ηλ·1[uθ ≥ 0])θ − ηu, coordinate by coordinate, u = m̂/(√v̂ + ε): no step away from zero is made smaller. λ
    stays λ₀.
    """

    words = "cautious decay"

    def decay(self, parameter: torch.Tensor, share: float, group: Mapping[str, Any]) -> None:
        """See `_OwnDecay.decay`."""
        first, sign = group["betas"][0], -1 if group["maximize"] else 1
        assert parameter.grad is not None
        update = sign * (1 - first) * parameter.grad  # u has the sign of the mean that this step makes
        if (state := self._optimizer.state.get(parameter)) and "exp_avg" in state:
            update = update + first * state["exp_avg"]
        parameter.mul_(1 - share * (update * parameter >= 0))


class StartDecay(_OwnDecay):
    """AdamW's decay towards where training began: θ ← θ − ηλ(θ − θ₀) − ηu, u = m̂/(√v̂ + ε), in place of ηλθ.

    The decoupled form of L2-SP (Li et al., arXiv 1802.01483). What is forgotten over 1/(ηλ) steps is what was learned,
    not what θ₀ knew. λ stays λ₀.

    Args:
        parameters: of the model, at θ₀ or where a killed run left them.
        start: θ₀ of each, which is read and never changed; a copy of what the parameters are now by default.

    Raises:
        InputError: not as many tensors, or not of the same shapes.
    """

    words = "decay towards the start"

    def __init__(self, parameters: Iterable[torch.Tensor], start: Sequence[torch.Tensor] | None = None) -> None:
        super().__init__()
        tensors = [*parameters]
        values = [t.detach().clone() for t in tensors] if start is None else [*start]
        if [t.shape for t in tensors] != [t.shape for t in values]:
            raise InputError("start: its tensors are not those of the parameters, one for one")
        self._start = {id(t): value for t, value in zip(tensors, values, strict=True)}

    def attach(self, optimizer: Any) -> None:
        """See `DecaySchedule.attach`.

        Raises:
            InputError: as there, or a tensor that decays and whose start is not known.
        """
        decaying = [p for g in optimizer.param_groups if g.get("weight_decay") for p in g["params"]]
        if any(id(p) not in self._start for p in decaying):
            raise InputError("the optimiser decays a tensor that is not among the parameters whose start is known")
        super().attach(optimizer)

    def decay(self, parameter: torch.Tensor, share: float, group: Mapping[str, Any]) -> None:
        """See `_OwnDecay.decay`."""
        del group
        parameter.lerp_(self._start[id(parameter)], share)


class RadialGap(DecaySchedule):
    """λ_t = ⟨∇L_unseen − ∇L_seen, P⁻¹θ⟩/‖θ‖², from 0 up to a cap: the decay that training text lacks along θ.

    With it a step on L_seen moves θ along itself as a step on unseen text would: ⟨P⁻¹∇L_seen + λθ, θ⟩ =
    ⟨P⁻¹∇L_unseen, θ⟩. P is 1 for SGD and √v̂ + ε for AdamW, as its step divides by. Where nothing is overfitted λ is 0.
    Both gradients are measured every so many steps, and λ is averaged exponentially before it is cut off at 0.

    The weight decay that groups have when it is attached only marks those that decay. It says nothing about directions
    other than θ, and unseen text that steers a run is no held-out text any more.

    Args:
        seen: a sample of what is trained on, of the model that is trained.
        unseen: text from the same source that is not trained on.
        every: steps between measurements.
        cap: largest λ.
        smoothing: weight of a new measurement in the average, in (0, 1].

    Raises:
        InputError: a number out of range, or objectives of two models.
    """

    def __init__(
        self, seen: Objective, unseen: Objective, *, every: int, cap: float, smoothing: float = 0.3
    ) -> None:  # fmt: skip
        super().__init__()
        check_positive(cap=cap, every=every, smoothing=smoothing)
        if smoothing > 1:
            raise InputError(f"smoothing={smoothing:g}: expected a number in (0, 1]")
        if seen.model is not unseen.model:
            raise InputError("the radial gap is between two texts of one model: these are two models")
        self.seen, self.unseen, self.every, self.cap, self.smoothing = seen, unseen, every, cap, smoothing
        self.average: float | None = None

    @property
    def measures_next(self) -> bool:
        """See `DecaySchedule.measures_next`."""
        return (self.steps + 1) % self.every == 0

    def step(self) -> None:
        """See `DecaySchedule.step`; measures where it is time to.

        Raises:
            NotFinite: the measured value.
        """
        if self.measures_next:
            measured = self.gap()
            if not math.isfinite(measured):
                raise NotFinite(f"step {self.steps + 1}: the radial gap is {measured}: the run has diverged")
            old = measured if self.average is None else self.average
            self.average = old + self.smoothing * (measured - old)
        super().step()

    def gap(self) -> float:
        """⟨∇L_unseen − ∇L_seen, P⁻¹θ⟩/‖θ‖² over the tensors that decay, at the θ of now; below 0 too."""
        decayed = {
            id(p): group for group, (start, _) in zip(self._groups, self._started, strict=True) if start
            for p in group["params"]
        }  # fmt: skip
        inner = norm = 0.0
        unseen, seen = self.unseen.gradient(), self.seen.gradient()
        for parameter, new, old in zip(self.seen.parameters.parameters, unseen, seen, strict=True):
            tensor = parameter.tensor
            if id(tensor) not in decayed:
                continue
            theta = tensor.detach().double()
            inner += float(((new - old) * theta / self._metric(tensor, decayed[id(tensor)])).sum())
            norm += float((theta * theta).sum())
        return inner / norm

    def _metric(self, tensor: torch.Tensor, group: Mapping[str, Any]) -> torch.Tensor | float:
        """P of a tensor: what the optimiser divides its gradient by."""
        state = self._optimizer.state.get(tensor, {})
        if "exp_avg_sq" not in state:
            return 1.0
        corrected: torch.Tensor = state["exp_avg_sq"].double() / (1 - group["betas"][1] ** float(state["step"]))
        return corrected.sqrt() + float(group["eps"])

    def value(self, start: float, first_rate: float, rate: float) -> float:
        """See `DecaySchedule.value`."""
        del start, first_rate, rate
        return min(self.cap, max(0.0, self.average or 0.0))

    def state_dict(self) -> dict[str, Any]:
        """See `DecaySchedule.state_dict`."""
        return super().state_dict() | {"average": self.average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `DecaySchedule.load_state_dict`."""
        super().load_state_dict(state)
        self.average = None if state["average"] is None else float(state["average"])
