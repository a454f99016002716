"""The loss that Hugging Face's Trainer descends, held against L on the batches of its own steps."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import Trainer

from villani.errors import InputError
from villani.integrations.descent import SAME_LOSS, TrainingLoss
from villani.objective.objective import IGNORED, MICRO_TOKENS, Objective

_SAME_GRADIENT = 1e-4  # relative; both ways go through the same forward pass in float32


class TrainerLoss:
    """Keeps the last step's batches of a Trainer, and compares its loss on them with L.

    The Trainer divides a step's loss by `num_items_in_batch`, which it counts by rules of its own: for models such as
    plain GPT-2 it counts T tokens in a row where T − 1 are predicted. Label smoothing, auxiliary losses and loss
    functions of the user's change it further. Rather than know them all, `compute_loss` is held against L by gradient.

    Args:
        trainer: whose `get_batch_samples` is listened to between `attach` and `detach`.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._batches: list[Any] = []
        self._items: Any = None
        self._least: torch.Tensor | None = None  # (2,) predicted tokens and counted items of a step
        self._most: torch.Tensor | None = None
        self._own: Callable[..., Any] | None = None  # that a user put in the Trainer's place
        self._listening: Callable[..., Any] | None = None

    def attach(self) -> None:
        """Listen."""
        self.detach()
        self._own = vars(self.trainer).get("get_batch_samples")
        fetch = self.trainer.get_batch_samples

        def listening(*args: Any, **kwargs: Any) -> Any:
            found = fetch(*args, **kwargs)
            try:
                self._note(*found)
            except Exception:  # whatever it is, the run is worth more; `compare` tells
                self._batches = []
            return found

        self.trainer.get_batch_samples = self._listening = listening

    def detach(self) -> None:
        """Leave the Trainer as it was."""
        if self._listening is not None and vars(self.trainer).get("get_batch_samples") is self._listening:
            del self.trainer.get_batch_samples
            if self._own is not None:
                self.trainer.get_batch_samples = self._own
        self._own = self._listening = self._least = self._most = None
        self._batches, self._items = [], None

    def compare(self, objective: Objective) -> TrainingLoss:
        """Hold the loss of the last step's first rows against L, at the θ of now and without dropout."""
        trainer = self.trainer
        for name in ("compute_loss", "training_step"):
            if name in vars(trainer) or getattr(type(trainer), name) is not getattr(Trainer, name):
                return _none("overridden", f"{name} of the Trainer is overridden: what it descends is not known")
        if trainer.args.world_size > 1 or trainer.args.n_gpu > 1:
            return _none("devices", "several devices average their losses: what that descends is not worked out")
        if not self._batches or not all(isinstance(b, Mapping) and "labels" in b for b in self._batches):
            return _none("batches", "batches of the Trainer have no labels to compare by")
        if objective.loss_fn is not None:
            return _none("loss_fn", "L is a loss_fn of your own, which cannot be held against the Trainer's loss")
        counts = [int(_predicted(batch)) for batch in self._batches]
        piece = _rows(self._batches[0], objective.device)
        try:
            plain = Objective(objective.model, [piece])
        except InputError as error:
            return _none("batches", f"the Trainer's own batch is none of which L is known: {error}")
        tokens = int(_predicted(piece))
        items = None if self._items is None else self._items * (tokens / sum(counts))
        tensors = plain.parameters.tensors
        with plain.evaluating():
            ours = plain.forward(plain.groups[0].to(plain.device))
            theirs = trainer.compute_loss(objective.model, dict(piece), num_items_in_batch=items)
            factor = float(theirs.detach()) * tokens / float(ours.loss.detach())
            slopes = [_gradient(loss, tensors) for loss in (ours.loss / tokens, theirs)]
            residual = sum(float((t - factor * o).double().square().sum()) for o, t in zip(*slopes, strict=True))
            whole = sum(float(t.double().square().sum()) for t in slopes[1])
            halves = self._by_count(objective.model, piece, items, float(theirs.detach()))
        if not residual <= _SAME_GRADIENT**2 * whole:
            return _none("loss", self._words())
        why: dict[str, str] = {}
        if len(counts) > 1:
            factor *= self._accumulated(len(counts), halves)
        if abs(factor - 1) > SAME_LOSS:
            why["scaled"] = (
                f"the Trainer's steps take {factor:.6g} of ∇L ({self._scaling()}), and the whole of the decay"
            )
        assert self._least is not None
        assert self._most is not None
        if not torch.equal(self._least, self._most) or (len(set(counts)) > 1 and not halves):
            least, most = int(self._least[0]), int(self._most[0])
            why["counts"] = (
                f"batches predict different numbers of tokens (a step: {least} to {most}): a mean of their means "
                "weights tokens unequally, which L does not"
            )
        return TrainingLoss(factor, why)

    def _note(self, batches: Sequence[Any], items: Any) -> None:
        self._batches = [dict(batch) if isinstance(batch, Mapping) else batch for batch in batches]
        self._items = items
        if batches and all(isinstance(b, Mapping) and "labels" in b for b in batches):
            tokens = torch.stack([_predicted(batch) for batch in batches]).sum()  # stays on its device: nothing waits
            pair = torch.stack([tokens, torch.as_tensor(items if items is not None else 0).to(tokens)])
            self._least = pair if self._least is None else torch.minimum(self._least, pair)
            self._most = pair if self._most is None else torch.maximum(self._most, pair)

    @torch.no_grad()
    def _by_count(self, model: Any, piece: dict[str, Any], items: Any, loss: float) -> bool:
        """Whether `compute_loss` divides by the number of items it is told."""
        if items is None:
            return False
        return (
            abs(float(self.trainer.compute_loss(model, dict(piece), num_items_in_batch=2 * items)) / loss - 0.5) < 0.01
        )

    def _accumulated(self, parts: int, by_count: bool) -> float:
        """What `training_step` makes of ∇L over so many accumulated batches, beside the factor of one."""
        trainer = self.trainer
        scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
        if scaled is None:
            scaled = (trainer.model_accepts_loss_kwargs and self._items is not None) or trainer.compute_loss_func
        if by_count:
            return 1.0 if scaled else 1 / parts
        return float(parts) if scaled else 1.0

    def _scaling(self) -> str:
        if self._items is None:
            return "by no count of items"
        predicted = sum(int(_predicted(batch)) for batch in self._batches)
        return f"{predicted} predicted tokens, divided by {float(self._items):g} items"

    def _words(self) -> str:
        smoothing = self.trainer.args.label_smoothing_factor
        if self.trainer.label_smoother is not None:
            return f"label smoothing of {smoothing:g}: the Trainer descends another loss than L"
        own = "compute_loss_func" if self.trainer.compute_loss_func is not None else "the model's own loss"
        return f"the Trainer's loss is no multiple of L ({own} has other terms)"


def _none(name: str, why: str) -> TrainingLoss:
    return TrainingLoss(None, {name: why})


def _predicted(batch: Mapping[str, Any]) -> torch.Tensor:
    found: torch.Tensor = (batch["labels"][..., 1:] != IGNORED).sum()
    return found


def _rows(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The first rows of a batch, from the one on that predicts most, of `MICRO_TOKENS` tokens or one row."""
    labels = batch["labels"]
    first = int((labels[..., 1:] != IGNORED).sum(-1).argmax())
    last = first + max(1, MICRO_TOKENS // labels.shape[-1])
    found = {}
    for name, value in batch.items():
        if isinstance(value, torch.Tensor):
            cut = value.dim() > 0 and value.shape[0] == labels.shape[0]
            found[name] = (value[first:last] if cut else value).to(device)
        else:
            found[name] = value
    return found


def _gradient(loss: torch.Tensor, tensors: list[Any]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True))
