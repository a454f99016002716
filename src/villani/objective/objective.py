"""The objective F = L + (λ/2)‖m⊙θ‖² over groups of token blocks: what everything that measures is handed."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, TypeVar, cast

import torch
from torch import nn

from villani.errors import InputError, check_whole, first_line, is_number
from villani.objective.batches import IGNORED as IGNORED
from villani.objective.batches import Batch as Batch
from villani.objective.batches import logits_of, options, read_batch
from villani.objective.evaluation import evaluating, plain_arithmetic
from villani.objective.parameters import ParameterSpace
from villani.objective.trial import check_forward
from villani.objective.weights import refuse_streamed
from villani.work.memory import give_back

MICRO_TOKENS = 512  # tokens in one forward pass: what fits a 125M-parameter double backward into 8 GiB

Work = TypeVar("Work", bound=Callable[..., Any])
LossFunction = Callable[[nn.Module, Any], torch.Tensor | tuple[torch.Tensor, float]]


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
            if wanted, `labels` (−100: not predicted), `attention_mask`, `position_ids` and what else the model's
            forward names; sizes may differ, and `objective/batches.py` says what becomes of padding and of packed rows.
            With `loss_fn`, a sequence of whatever it takes. A group is the unit of data noise: groups are taken as
            independent draws.
        weight_decay: λ ≥ 0, the default of `Measurement.psi`; it enters no measurement.
        decay: the mask m, see `ParameterSpace`.
        finite: the groups are the whole data set, rather than a sample of it.
        loss_fn: `loss_fn(model, group)` returns a mean loss, or (sum of losses, number of terms); losses are tensors.
        micro_tokens: tokens in one forward pass at most; blocks are never split. Fixes memory, and rounding.

    Raises:
        InputError: λ negative or not finite, no groups, what `read_batch` refuses, inference mode, a θ that cannot be
            measured or that is cut over processes, or a forward pass that is no function of θ or, without `loss_fn`,
            predicts no next token (see `objective/trial.py`).
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
        check_whole(1, micro_tokens=micro_tokens)
        if not isinstance(model, nn.Module):
            raise InputError(f"model is a {type(model).__name__}: expected a torch.nn.Module")
        if loss_fn is not None and not callable(loss_fn):
            raise InputError(f"loss_fn is a {type(loss_fn).__name__}: expected a function of (model, group)")
        single = isinstance(groups, Mapping | str) or (isinstance(groups, torch.Tensor) and groups.dim() == 0)
        if single or not isinstance(groups, Iterable):
            raise InputError(
                f"groups is a {type(groups).__name__}: expected a tensor (G, B, T) or a sequence of groups"
            )
        _check_whole(model)
        self.model = model
        self.weight_decay = float(weight_decay)
        self.finite = finite
        self.loss_fn = loss_fn
        self.micro_tokens = micro_tokens
        self.parameters = ParameterSpace(model, decay)
        _check_inference_mode()
        if any(t.is_inference() for t in self.parameters.tensors):
            raise InputError("the model was made in torch.inference_mode: it has no derivatives; make it outside")
        self.parameters.check()
        if loss_fn is None:
            check_frozen(model, self.parameters.dtype)
        self.streamed = self.parameters.weights is not None
        if self.streamed and loss_fn is not None:
            refuse_streamed(model, "a loss_fn", "measure the language model's own loss, or load with streamed=False")
        self.device = self.parameters.device
        self._watched = False
        self.bits: list[int] | None = None  # the fingerprint of θ, where `unchanged` holds it to be the same
        self.displacements = 0  # how many surround what is done now
        self.traced: dict[Any, Any] = {}  # the graphs that objective/graph.py made of it
        self.doubly_checked = False  # by curvature/double_backward.py
        self.options = {} if loss_fn else options(model)
        self.groups: list[Any] = list(groups)
        if not self.groups:
            raise InputError("groups is empty: expected a tensor (G, B, T) or a sequence of groups")
        if loss_fn is None:
            self.groups = [read_batch(group, model, f"group {index}") for index, group in enumerate(self.groups)]
        if self.streamed:
            from villani.objective.streamed_trial import check_streamed  # which needs graphs, and they this module

            check_streamed(self)
        else:
            check_forward(self)
        give_back()

    @contextmanager
    def evaluating(self, *, fused: bool = False) -> Iterator[None]:
        """Plain arithmetic, dropout off, twice-differentiable attention; see `objective/evaluation.py`.

        Raises:
            InputError: inference mode is on.
        """
        _check_inference_mode()
        with evaluating(self.model, self.device, fused=fused):
            yield

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Refuse a θ that cannot be measured and, at the end, what has changed it for good.

        One such block in another leaves both to the outer one.

        Raises:
            InputError: as `ParameterSpace.check`; or names the first tensor whose bits are not what they were.
        """
        if self._watched:
            yield
            return
        self.parameters.check()
        before = self.parameters.fingerprint()
        self._watched, self.bits = True, before
        try:
            yield
        finally:
            self._watched, self.bits = False, None
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
            InputError: the model fails on it or its output has no logits; the custom loss is no tensor of one entry.
        """
        if self.loss_fn is not None:
            return _custom(self.loss_fn(self.model, batch))
        targets = batch.labels[:, 1:]
        predicted = targets != IGNORED
        labels = targets[predicted]  # (n,)
        if self.streamed:
            return self._streamed_forward(batch)
        try:
            logits = self.logits(batch)[:, :-1][predicted]  # (n, V)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        except (InputError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a forward fails in as many ways as there are models
            mixed = self.parameters.dtype == torch.float64 and isinstance(error, RuntimeError)
            advice = "; some models mix precisions: try float32" if mixed else ""
            raise InputError(f"{type(self.model).__name__} fails on a batch: {first_line(error)}{advice}") from error
        if batch.attention is not None and not bool(torch.isfinite(loss)) and not bool(batch.attention.all()):
            raise InputError(
                f"{type(self.model).__name__} gives {float(loss.detach())} where padding cannot be moved to the "
                "right: set labels to −100 in padding and at the first token after it, and give no other inputs"
            )
        return Forward(loss, float(len(labels)), logits, labels)

    def _streamed_forward(self, batch: Batch) -> Forward:
        """The same without a graph: of a model whose weights are streamed."""
        from villani.objective.streamed import Tape

        tape = Tape(self, batch)
        return Forward(torch.tensor(tape.loss(), dtype=torch.float64), float(len(tape.labels)), None, tape.labels)

    def logits(self, batch: Batch) -> torch.Tensor:
        """What the model gives for a batch, (B, T, V).

        Raises:
            InputError: it gives no logits.
        """
        return logits_of(self.model(**batch.inputs, **self.options), self.model, batch.ids)

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
        return [total.div_(tokens) for total in sums]

    def gradient_sum(self, groups: Iterable[int], *, fused: bool = False) -> tuple[list[torch.Tensor], float, float]:
        """(∇ of the loss sum of some groups as `gradient` gives it, tokens, loss sum).

        Raises:
            InputError: weights are streamed, so that no copy of θ fits into memory.
        """
        refuse_streamed(self.model, "a whole gradient", "load the model with streamed=False where it fits")
        sums = [torch.zeros(t.shape, dtype=torch.float64, device=self.device) for t in self.parameters.tensors]
        size = self.parameters.size * self.parameters.dtype.itemsize
        tokens = loss = 0.0
        with self.evaluating(fused=fused):
            for g in groups:
                for batch in self.batches(g):
                    forward = self.forward(batch)
                    tokens += forward.tokens
                    loss += float(forward.loss.detach().double())
                    check_differentiable(forward.loss)
                    pieces = torch.autograd.grad(forward.loss, self.parameters.tensors, allow_unused=True)
                    for total, piece in zip(sums, pieces, strict=True):
                        if piece is not None:
                            total.add_(piece)
                    del forward, pieces, piece
                    give_back(size)  # else what was freed between pieces that stay adds up, batch by batch
        return sums, tokens, loss

    @contextmanager
    def _displacement(self) -> Iterator[None]:
        self.displacements += 1
        try:
            yield
        finally:
            self.displacements -= 1

    @contextmanager
    def displaced(self, direction: list[torch.Tensor], radius: float) -> Iterator[None]:
        """θ + radius·direction for a while; θ comes back bit for bit."""
        tensors = self.parameters.tensors
        if self.parameters.weights is not None:
            names = [p.name for p in self.parameters.parameters]
            moves = {n: partial(_moved, direction=u, radius=radius) for n, u in zip(names, direction, strict=True)}
            with self.parameters.weights.changing(moves), self._displacement():
                yield
            return
        saved = [t.detach().clone() for t in tensors]
        try:
            with torch.no_grad():
                for t, u in zip(tensors, direction, strict=True):
                    t.add_((radius * u).reshape(t.shape).to(t))
            with self._displacement():
                yield
        finally:
            with torch.no_grad():
                for t, original in zip(tensors, saved, strict=True):
                    t.copy_(original)


def _moved(tensor: torch.Tensor, direction: torch.Tensor, radius: float) -> torch.Tensor:
    return tensor + (radius * direction).reshape(tensor.shape).to(tensor)


def at_one_theta(work: Work) -> Work:
    """A function of an objective, in plain arithmetic, that raises InputError if θ is not what it was in the end."""

    @wraps(work)
    def checked(objective: Objective, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(objective, Objective):
            raise InputError(f"objective is a {type(objective).__name__}: expected a villani.Objective")
        with objective.unchanged(), plain_arithmetic():
            return work(objective, *args, **kwargs)

    return cast(Work, checked)


def check_weight_decay(weight_decay: float) -> None:
    """Refuse a λ that is negative or not finite."""
    if not is_number(weight_decay) or not 0 <= weight_decay < float("inf"):
        raise InputError(f"weight_decay={weight_decay}: expected a finite number ≥ 0")


def check_differentiable(loss: torch.Tensor) -> None:
    """Refuse a loss that autograd has no graph of."""
    if not loss.requires_grad:
        raise InputError("the loss has no gradient: loss_fn has to compute it without detach, item or no_grad")


def _custom(result: Any) -> Forward:
    """What a custom loss function returns, as a loss sum."""
    loss, tokens = result if isinstance(result, tuple) and len(result) == 2 else (result, 1.0)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        found = f"{loss.dtype} of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise InputError(f"loss_fn returns {found}, no tensor of one entry: expected that, or (that, number of terms)")
    if isinstance(tokens, torch.Tensor) and tokens.numel() == 1:
        tokens = float(tokens)
    if not is_number(tokens) or not 0 < tokens < float("inf"):
        raise InputError(f"loss_fn returns {tokens!r} as its number of terms: expected a finite number > 0")
    return Forward(loss if loss.dim() == 0 else loss.reshape(()), float(tokens))


def check_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Refuse constants of a language model that its values and derivatives would be rounded to, as by a LoRA's base."""
    for name, tensor in model.named_parameters():
        if not tensor.requires_grad and tensor.is_floating_point() and tensor.dtype != dtype:
            raise InputError(
                f"parameter {name} is frozen and {tensor.dtype}, and θ is {dtype}: measure a copy of one precision, "
                f"such as model.to(torch.{str(dtype).removeprefix('torch.')}), whose constants are as exact as θ"
            )


def _check_whole(model: nn.Module) -> None:
    """Refuse a model of which each process has a part, by names: torch's distributed modules take long to load."""
    cut = [name for name, p in model.named_parameters() if type(p).__name__ == "DTensor"]
    kinds = {base.__name__ for module in model.modules() for base in type(module).__mro__}
    if cut or kinds & {"FSDPModule", "FullyShardedDataParallel"}:
        which = f"parameter {cut[0]} is a DTensor" if cut else "weights are in FSDP"
        raise InputError(
            f"{which}, of which each process has a part: measure a whole copy, such as a saved checkpoint, or measure "
            "in the run itself by villani.integrations.live.Live"
        )


def _check_inference_mode() -> None:
    if torch.is_inference_mode_enabled():
        raise InputError("torch.inference_mode is on, where nothing has derivatives: leave it, or use torch.no_grad")
