"""The objective F = L + (λ/2)‖m⊙θ‖² over groups of token blocks: what everything that measures is handed."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import nn

from villani.errors import InputError
from villani.landscape.evaluation import evaluating, plain_arithmetic
from villani.landscape.parameters import ParameterSpace
from villani.landscape.trial import check_forward

IGNORED = -100  # the label of a position that is not predicted
MICRO_TOKENS = 512  # tokens in one forward pass: what fits a 125M-parameter double backward into 8 GiB

Work = TypeVar("Work", bound=Callable[..., Any])
LossFunction = Callable[[nn.Module, Any], torch.Tensor | tuple[torch.Tensor, float]]


@dataclass(frozen=True)
class Batch:
    """Token blocks that go through the model together; all (B, T).

    Attributes:
        ids: token ids.
        labels: ids again, or −100 where the position is not predicted; label t is predicted from position t − 1.
        attention: 1 for real tokens, 0 for padding; None when nothing is masked.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    attention: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        """Predicted tokens."""
        return int((self.labels[:, 1:] != IGNORED).sum())

    def rows(self, start: int, stop: int) -> "Batch":
        """Some of the blocks."""
        attention = None if self.attention is None else self.attention[start:stop]
        return Batch(self.ids[start:stop], self.labels[start:stop], attention)

    def to(self, device: torch.device) -> "Batch":
        """The same blocks on another device."""
        attention = None if self.attention is None else self.attention.to(device)
        return Batch(self.ids.to(device), self.labels.to(device), attention)


@dataclass(frozen=True)
class Forward:
    """One forward pass: the loss sum with its graph, its token count, and what label sampling needs.

    Attributes:
        loss: sum of nats over predicted tokens, a scalar with a graph.
        tokens: how many.
        logits: (n, V) of the predicted positions, with their graph; None for a custom loss function.
        labels: (n,) of the predicted positions; None for a custom loss function.
    """

    loss: torch.Tensor
    tokens: float
    logits: torch.Tensor | None = None
    labels: torch.Tensor | None = None


class Objective:
    """A model, its data in groups, and its weight decay.

    Args:
        model: a module whose forward is that of a Hugging Face causal language model, or any module with `loss_fn`.
        groups: int64 token ids (G, B, T); or a sequence of G groups, each ids (B, T) or a mapping with `input_ids` and,
            if wanted, `labels` (−100: not predicted) and `attention_mask`; sizes may differ. With `loss_fn`, a sequence
            of whatever it takes. A group is the unit of data noise: groups are taken as independent draws.
        weight_decay: λ ≥ 0, the default of `Measurement.psi`; it enters no measurement.
        decay: the mask m, see `ParameterSpace`.
        finite: the groups are the whole data set, rather than a sample of it.
        loss_fn: `loss_fn(model, group)` returns a mean loss, or (sum of losses, number of terms).
        micro_tokens: tokens in one forward pass at most; blocks are never split. Fixes memory, and rounding.

    Raises:
        InputError: λ negative or not finite, no groups, ids outside the vocabulary, blocks longer than the model's
            context, nothing to predict in a group, a θ that cannot be measured, or a forward pass that is no function
            of θ or, without `loss_fn`, predicts no next token (see `landscape/trial.py`).
    """

    def __init__(
        self,
        model: nn.Module,
        groups: torch.Tensor | Sequence[Any],
        weight_decay: float = 0.0,
        decay: str = "all",
        finite: bool = False,
        loss_fn: LossFunction | None = None,
        micro_tokens: int = MICRO_TOKENS,
    ) -> None:
        check_weight_decay(weight_decay)
        if micro_tokens < 1:
            raise InputError(f"micro_tokens={micro_tokens}: expected at least 1")
        self.model = model
        self.weight_decay = float(weight_decay)
        self.finite = finite
        self.loss_fn = loss_fn
        self.micro_tokens = micro_tokens
        self.parameters = ParameterSpace(model, decay)
        self.parameters.check()
        self.device = self.parameters.tensors[0].device
        self._watched = False
        self.traced: dict[Any, Any] = {}  # the graphs that landscape/graph.py made of it
        self.groups: list[Any] = list(groups) if loss_fn else [_as_batch(g, i) for i, g in enumerate(groups)]
        if not self.groups:
            raise InputError("groups is empty: expected a tensor (G, B, T) or a sequence of groups")
        if loss_fn is None:
            _check_tokens(model, self.groups)
        check_forward(self)

    @contextmanager
    def evaluating(self, *, fused: bool = False) -> Iterator[None]:
        """Plain arithmetic, dropout off, twice-differentiable attention; see `landscape/evaluation.py`."""
        with evaluating(self.model, self.device, fused=fused):
            yield

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Refuse, at the end, what has changed θ for good; one such block in another leaves that to the outer one.

        Raises:
            InputError: names the first tensor whose bits are not what they were.
        """
        if self._watched:
            yield
            return
        before = self.parameters.fingerprint()
        self._watched = True
        try:
            yield
        finally:
            self._watched = False
        pairs = zip(self.parameters.parameters, before, self.parameters.fingerprint(), strict=True)
        if changed := [p.name for p, old, new in pairs if old != new]:
            raise InputError(
                f"parameter {changed[0]} has changed ({len(changed)} in all): evaluating the loss writes to θ, so that "
                "no figure belongs to one θ; load the weights anew, and take that out of the model's forward"
            )

    def batches(self, group: int) -> Iterator[Any]:
        """The group in pieces of at most `micro_tokens` tokens; a custom group is one piece."""
        whole = self.groups[group]
        if not isinstance(whole, Batch):
            yield whole
            return
        step = max(1, self.micro_tokens // whole.ids.shape[1])
        for start in range(0, whole.ids.shape[0], step):
            piece = whole.rows(start, start + step)
            if piece.tokens:
                yield piece.to(self.device)

    def forward(self, batch: Any) -> Forward:
        """Run the model on one piece. Cross-entropy is taken in float32 or wider, in nats.

        Raises:
            InputError: the model's output has no logits.
        """
        if self.loss_fn is not None:
            result = self.loss_fn(self.model, batch)
            loss, tokens = result if isinstance(result, tuple) else (result, 1.0)
            return Forward(loss, float(tokens))
        arguments = {"input_ids": batch.ids, "use_cache": False}
        if batch.attention is not None:
            arguments["attention_mask"] = batch.attention
        output = self.model(**arguments)
        if not hasattr(output, "logits"):
            raise InputError(f"{type(self.model).__name__} returns no logits: give loss_fn(model, group)")
        targets = batch.labels[:, 1:]
        predicted = targets != IGNORED
        logits = output.logits[:, :-1][predicted]  # (n, V)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        labels = targets[predicted]  # (n,)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        return Forward(loss, float(len(labels)), logits, labels)

    def loss(self, group: int | None = None) -> float:
        """Mean nats per predicted token, of one group or of all."""
        total, tokens = 0.0, 0.0
        with self.evaluating(), torch.no_grad():
            for g in range(len(self.groups)) if group is None else [group]:
                for batch in self.batches(g):
                    forward = self.forward(batch)
                    total += float(forward.loss.double())
                    tokens += forward.tokens
        return total / tokens

    def gradient(self, group: int | None = None, *, fused: bool = False) -> list[torch.Tensor]:
        """∇L of one group or of all, in float64, tensor by tensor; uses no more than one copy of θ in float64.

        `fused` is that of `evaluating`.
        """
        sums, tokens, _ = self.gradient_sum(range(len(self.groups)) if group is None else [group], fused=fused)
        return [total / tokens for total in sums]

    def gradient_sum(self, groups: Iterable[int], *, fused: bool = False) -> tuple[list[torch.Tensor], float, float]:
        """(∇ of the loss sum of some groups as `gradient` gives it, tokens, loss sum)."""
        sums = [torch.zeros(t.shape, dtype=torch.float64, device=self.device) for t in self.parameters.tensors]
        tokens = loss = 0.0
        with self.evaluating(fused=fused):
            for g in groups:
                for batch in self.batches(g):
                    forward = self.forward(batch)
                    tokens += forward.tokens
                    loss += float(forward.loss.detach().double())
                    pieces = torch.autograd.grad(forward.loss, self.parameters.tensors, allow_unused=True)
                    for total, piece in zip(sums, pieces, strict=True):
                        if piece is not None:
                            total.add_(piece)
        return sums, tokens, loss

    @contextmanager
    def displaced(self, direction: list[torch.Tensor], radius: float) -> Iterator[None]:
        """θ + radius·direction for a while; θ comes back bit for bit."""
        tensors = self.parameters.tensors
        saved = [t.detach().clone() for t in tensors]
        try:
            with torch.no_grad():
                for t, u in zip(tensors, direction, strict=True):
                    t.add_((radius * u).reshape(t.shape).to(t))
            yield
        finally:
            with torch.no_grad():
                for t, original in zip(tensors, saved, strict=True):
                    t.copy_(original)


def at_one_theta(work: Work) -> Work:
    """A function of an objective, in plain arithmetic, that raises InputError if θ is not what it was in the end."""

    @wraps(work)
    def checked(objective: Objective, *args: Any, **kwargs: Any) -> Any:
        with objective.unchanged(), plain_arithmetic():
            return work(objective, *args, **kwargs)

    return cast(Work, checked)


def check_weight_decay(weight_decay: float) -> None:
    """Refuse a λ that is negative or not finite."""
    if not 0 <= weight_decay < float("inf"):
        raise InputError(f"weight_decay={weight_decay}: expected a finite number ≥ 0")


def _as_batch(group: Any, index: int) -> Batch:
    if isinstance(group, Batch):
        return group
    fields = group if isinstance(group, Mapping) else {"input_ids": group}
    ids = fields["input_ids"]
    if not isinstance(ids, torch.Tensor) or ids.dim() != 2 or ids.dtype != torch.int64:
        shape = (tuple(ids.shape), ids.dtype) if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise InputError(f"group {index}: expected int64 token ids of shape (B, T), got {shape}")
    attention = fields.get("attention_mask")
    labels = fields.get("labels")
    if labels is None:
        labels = ids if attention is None else ids.masked_fill(attention == 0, IGNORED)
    return Batch(ids, labels, attention)


def _check_tokens(model: nn.Module, groups: list[Batch]) -> None:
    find = getattr(model, "get_input_embeddings", None)
    vocabulary = getattr(find() if callable(find) else None, "num_embeddings", None)
    context = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    for index, batch in enumerate(groups):
        low, high = int(batch.ids.min()), int(batch.ids.max())
        if low < 0 or (vocabulary is not None and high >= vocabulary):
            raise InputError(
                f"group {index}: token ids run from {low} to {high}, outside the model's vocabulary of {vocabulary}: "
                "use the model's own tokenizer"
            )
        if context is not None and batch.ids.shape[1] > context:
            raise InputError(
                f"group {index}: blocks of {batch.ids.shape[1]} tokens are longer than the model's context of {context}"
            )
        if batch.tokens == 0:
            raise InputError(f"group {index}: nothing to predict (every label after the first position is −100)")
