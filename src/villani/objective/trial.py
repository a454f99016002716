"""What a forward pass has to be for L to be a function of θ and its tokens predictions; tried out on one row.

- It writes nothing into θ. RWKV in eval mode divides weights in place; an embedding with `max_norm` rescales rows.
- The same input twice gives the same logits. Reformer's hashing is random, and so is dropout that never stops.
- It is causal: the logits before a token do not move when that token is another one. An encoder sees what it is asked
  to predict, so that its loss is none of next tokens and every token-level bound is void (THEORY.md §5(e)).
- Its gradient is that of its loss (`slope.py`). HRM runs all but its last cycles under `no_grad`.
- Labels that are not the token ids mean to its own loss what they mean here: label t is predicted at t − 1.

A `loss_fn` says what L is: of it only `max_norm` and the gradient are looked at here, and θ after a measurement.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from math import isclose
from typing import Any

import torch
from torch import nn

from villani.errors import InputError, out_of_memory
from villani.objective.batches import IGNORED, Batch, takes
from villani.objective.parameters import double_dot
from villani.objective.slope import NoGradient, check_gradient, stir
from villani.work.memory import give_back

Objective = Any  # a `villani.Objective`, whose module imports this one
ROUNDING = 1e-5  # of the largest logit; 0 is usual, and 5·10⁻⁷ in mixtures of experts, whose products change shape
_FEW = 16  # tokens that a gradient is tried on
_SMALL = 0.02  # root mean square in place of a vector of zeros
_tried: ContextVar[bool] = ContextVar("tried", default=False)


@contextmanager
def already_tried() -> Iterator[None]:
    """Objectives made inside are of a model that was tried out: a training run makes one at every measurement."""
    token = _tried.set(True)
    try:
        yield
    finally:
        _tried.reset(token)


def check_forward(objective: Objective) -> None:
    """Refuse a forward pass that is not what the module says, tried out on one row.

    Takes ten forward passes of it and a gradient, and three copies of θ for that while.

    Causality is a matter of the model, not of θ: it is tried with small weights scaled up (`_unit_gain`), since a path
    from what is to be predicted may begin at zero, or be faint in a model that is small and untrained.

    Raises:
        InputError: says what the forward pass does, and what to do; θ and buffers are as they were, to the bit.
    """
    if was_tried():
        return
    name = type(objective.model).__name__
    check_max_norm(objective)
    if objective.loss_fn is not None:
        with _put_back(objective), uncompiled(), objective.evaluating(fused=True), torch.no_grad():
            _try_loss(objective, name)
        return
    row = fullest_row(objective.groups[0])
    if row is None:
        return
    row = row.to(objective.device)
    with _put_back(objective) as (changed, restore), uncompiled(), objective.evaluating(fused=True), torch.no_grad():
        first, again = _logits(objective, row), _logits(objective, row)
        if found := changed():
            raise InputError(
                f"{name} writes to its own weights in eval mode ({found}), so that no figure belongs to one θ: call it "
                "once in eval mode before, to measure the weights that it then has, or switch that off"
            )
        if not (bool(torch.isfinite(first).all()) and bool(torch.isfinite(again).all())):
            return  # what measures the loss says so
        moved = float((first - again).abs().max())
        if moved > ROUNDING * float(first.abs().max()):
            raise InputError(
                f"{name} is random in eval mode: the same tokens twice move logits by {moved:.2g}; fix its random "
                "numbers (a hash seed), or give loss_fn(model, group)"
            )
        _check_labels(objective, name)
        _unit_gain(objective.parameters.tensors)
        logits = _logits(objective, row)
        if not bool(torch.isfinite(logits).all()):
            restore()
            logits = first
        _check_causality(objective, row, logits, name)
        stir(objective.parameters.tensors)
        del first, again, logits
        give_back()  # the gradient is of θ's size
        check_gradient(objective, _beginning(objective, row), name)


def _beginning(objective: Objective, row: Batch) -> Batch:
    """Some first tokens of a row, which tell of a wrong gradient as all do; all where the model takes no fewer."""
    beginning = row.beginning(_FEW)
    if not beginning.tokens:
        return row
    try:
        objective.forward(beginning)
    except Exception as error:  # models that want whole chunks fail in ways of their own
        if out_of_memory(error) or isinstance(error, torch.OutOfMemoryError):
            raise
        return row
    return beginning


def _try_loss(objective: Objective, name: str) -> None:
    """The gradient of a custom loss near θ; a loss_fn that fails says so when it is used."""
    piece = next(objective.batches(0))
    stir(objective.parameters.tensors)
    try:
        check_gradient(objective, piece, name)
    except NoGradient:
        raise
    except Exception as error:
        if out_of_memory(error) or isinstance(error, torch.OutOfMemoryError):
            raise


def was_tried() -> bool:
    """Whether objectives that are made now are of a model that was tried out."""
    return _tried.get()


def check_max_norm(objective: Objective) -> None:
    """Refuse embeddings that rescale rows as they are read."""
    for path, module in objective.model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            raise InputError(f"{path} has max_norm={module.max_norm:g}: it rescales weights as it reads; set None")


def _check_labels(objective: Objective, name: str) -> None:
    """Refuse labels made for a model whose own loss does not shift them, such as BART's; ids as labels are clear."""
    if "labels" not in takes(objective.model)[0]:
        return
    row = labelled_row(objective)
    if row is None:
        return
    row = row.to(objective.device)
    try:
        own = objective.model(**row.inputs, labels=row.labels, **objective.options).loss
    except Exception:  # it has no loss of its own for them
        return
    if own is not None:
        check_shift(row, float(own), objective.logits(row), name)


def labelled_row(objective: Objective) -> Batch | None:
    """The first block with labels that are not its token ids, if there is one."""
    for group in objective.groups:
        asked = group.labels != IGNORED
        others = (asked & (group.labels != group.ids))[:, 1:].any(dim=1)
        if bool(others.any()):
            first = int(others.int().argmax())
            row: Batch = group.rows(first, first + 1)
            return row
    return None


def check_shift(row: Batch, own: float, logits: torch.Tensor, name: str) -> None:
    """Refuse a model whose `own` loss of a row holds labels against the `logits` (1, T, V) of their own positions."""
    shifted = nn.functional.cross_entropy(logits[0, :-1], row.labels[0, 1:], ignore_index=IGNORED)
    unshifted = nn.functional.cross_entropy(logits[0], row.labels[0], ignore_index=IGNORED)
    if isclose(own, float(unshifted), rel_tol=ROUNDING) and not isclose(own, float(shifted), rel_tol=ROUNDING):
        raise InputError(
            f"{name}'s own loss holds label t against the logits at t, where here it is held against those at "
            "t − 1: give token ids as labels, −100 where none is predicted, or loss_fn(model, group)"
        )


def _check_causality(objective: Objective, row: Batch, logits: torch.Tensor, name: str) -> None:
    """`logits` (n, V) are those of the row."""
    for j, other in other_rows(objective, row, logits.shape[-1]):
        check_before(row, j, logits, _logits(objective, other), name)


def other_rows(objective: Objective, row: Batch, vocabulary: int) -> Iterator[tuple[int, Batch]]:
    """Positions, and the row with another token there: the first, one in the middle and the last predicted one."""
    real = _places(row) + 1
    for j in sorted({int(real[0]), int(real[len(real) // 2]), int(real[-1])}):
        other = _other_token(objective, row.ids[0], j, vocabulary)
        if other is not None:
            ids = row.ids.clone()
            ids[0, j] = other
            yield j, replace(row, ids=ids)


def check_before(row: Batch, j: int, logits: torch.Tensor, others: torch.Tensor, name: str) -> None:
    """Refuse a model whose logits (n, V) before position j are `others` when the token there is another one."""
    before = _places(row) < j
    moved = float((others - logits)[before].abs().max())
    share = moved / float(logits[before].abs().max() or 1.0)
    if share > ROUNDING:
        raise InputError(
            f"{name} is not causal: another token at position {j} moves logits before it, by {share:.1g} of the "
            "largest (small weights scaled up), so that it sees what it is to predict; set is_decoder=True if its "
            "config has that, or give loss_fn(model, group)"
        )


def _places(row: Batch) -> torch.Tensor:
    """(n,) where in the row each of its logits was made."""
    return torch.nonzero(row.labels[0, 1:] != IGNORED)[:, 0]


def fullest_row(group: Any) -> Batch | None:
    """The block with most pairs of neighbours that are no padding, with all of them to predict; None without any."""
    real = torch.ones_like(group.ids) if group.attention is None else group.attention
    pairs = (real[:, 1:] != 0) & (real[:, :-1] != 0)
    most = int(pairs.sum(dim=1).argmax())
    if not bool(pairs[most].any()):
        return None
    row: Batch = group.rows(most, most + 1)
    labels = torch.full_like(row.ids, IGNORED)
    labels[:, 1:] = row.ids[:, 1:].masked_fill(~pairs[most : most + 1].to(row.ids.device), IGNORED)
    return replace(row, labels=labels)


def _other_token(objective: Objective, ids: torch.Tensor, j: int, logits: int) -> int | None:
    """A token of the row that is not the one at j, or else the next of the vocabulary, if it has two."""
    others = ids[ids != ids[j]]
    if len(others):
        return int(others[0])
    find = getattr(objective.model, "get_input_embeddings", None)
    size = getattr(find() if callable(find) else None, "num_embeddings", logits)
    return None if size < 2 else (int(ids[j]) + 1) % int(size)


def _logits(objective: Objective, row: Batch) -> torch.Tensor:
    found: torch.Tensor = objective.forward(row).logits
    assert found is not None
    return found


def _unit_gain(tensors: Sequence[torch.Tensor]) -> None:
    """Scale matrices up to a root mean square of 1/√(their lesser side), so that what goes in comes out as large."""
    generator = torch.Generator().manual_seed(0)
    for tensor in tensors:
        to_unit_gain(tensor, generator)


def to_unit_gain(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One tensor of `_unit_gain`, in place."""
    size = (double_dot(tensor, tensor) / tensor.numel()) ** 0.5
    wanted = min(tensor.shape[-2:]) ** -0.5 if tensor.dim() > 1 else _SMALL
    if size == 0:
        tensor.copy_(wanted * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))
    elif size < wanted and tensor.dim() > 1:
        tensor.mul_(wanted / size)
    return tensor


@contextmanager
def uncompiled() -> Iterator[None]:
    """Without code of torch.compile, which would be made for shapes that are not those of the data."""
    if "torch._dynamo" not in sys.modules:  # seconds to import
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def _put_back(objective: Objective) -> Iterator[tuple[Callable[[], str | None], Callable[[], None]]]:
    """θ, buffers and plain attributes of modules come back at the end.

    Gives what names a weight that was written to, if any, and what puts θ back before that.
    """
    model, space = objective.model, objective.parameters
    saved = [t.detach().clone() for t in space.tensors]
    frozen = [(n, p, p._version) for n, p in model.named_parameters() if not (p.requires_grad or p.is_inference())]
    tables = [(module, dict(module._buffers)) for module in model.modules()]
    buffers = [(b, b.detach().clone()) for _, table in tables for b in table.values() if b is not None]
    plain = [
        (module, {k: v for k, v in vars(module).items() if isinstance(v, bool | int | float | str | None)})
        for module in model.modules()
    ]

    def changed() -> str | None:
        pairs = zip(space.parameters, saved, strict=True)
        moved = (p.name for p, before in pairs if not torch.equal(p.tensor, before))
        return next(moved, None) or next((f"{n}, frozen" for n, p, version in frozen if p._version != version), None)

    def restore() -> None:
        with torch.no_grad():
            for tensor, before in zip(space.tensors, saved, strict=True):
                tensor.copy_(before)

    try:
        yield changed, restore
    finally:
        restore()
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
        for module, table in tables:
            module._buffers.clear()
            module._buffers.update(table)
        for module, attributes in plain:
            vars(module).update(attributes)
