"""Groups of token blocks as users have them, made into what a model's forward takes, or refused in a line.

What is measured is what `transformers` computes for the same batch: keys that the model's forward names go to it, and
every other key is refused. Two things are decided here, since a batch does not say them.

Padding on the left is moved to the right, where no causal model sees it: positions then follow from the mask as in
generation, and recurrent models keep no state of padding. A row stays as it is where labels ask for predictions from
its padding; its positions follow from the mask even then, unless the model counts them by itself. A mask that says no
more than where the padding on the right is goes: nothing that is predicted depends on it, and the softmax of a row that
is masked throughout is NaN in float64.

Without `labels`, a token is predicted where it and the token before it are real and its position is the next one: not
the first of a row, nor of a document in a packed row. Whether documents in a row see each other is up to the model:
`transformers` keeps them apart by `position_ids` where there is no `attention_mask`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from villani.errors import InputError
from villani.objective.positions import counts_positions

IGNORED = -100  # the label of a position that is not predicted
_TOKENS, _LABELS, _MASK, _POSITIONS = "input_ids", "labels", "attention_mask", "position_ids"
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_NO_DATA = {"inputs_embeds", "past_key_values", "cache_params", "cache_position", "state", "mems", "logits_to_keep"}


@dataclass(frozen=True)
class Batch:
    """Token blocks that go through the model together; all (B, T).

    Attributes:
        ids: token ids.
        labels: ids again, or −100 where the position is not predicted; label t is predicted from position t − 1.
        attention: 1 for real tokens, 0 for padding; None when nothing is masked.
        more: what else the model's forward takes, by name, each (B, …): `position_ids`, `token_type_ids`.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    attention: torch.Tensor | None = None
    more: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Predicted tokens."""
        return int((self.labels[:, 1:] != IGNORED).sum())

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """What the model's forward is given, by name; token ids come first."""
        mask = {} if self.attention is None else {_MASK: self.attention}
        return {_TOKENS: self.ids, **mask, **self.more}

    @property
    def form(self) -> tuple[Any, ...]:
        """What a traced graph depends on: names, shapes and dtypes of `inputs`."""
        return tuple((name, tuple(t.shape), t.dtype) for name, t in self.inputs.items())

    def holding(self, tensors: Sequence[torch.Tensor]) -> "Batch":
        """A batch with other tensors for `inputs`, in that order, and the same labels."""
        given = dict(zip(self.inputs, tensors, strict=True))
        return Batch(given.pop(_TOKENS), self.labels, given.pop(_MASK, None), given)

    def plain(self) -> "Batch":
        """A batch of the same form that says nothing: ids 0, no padding, positions in order, zeros."""
        plain = {name: torch.zeros_like(t) for name, t in self.inputs.items()}
        if _MASK in plain:
            plain[_MASK] += 1
        if _POSITIONS in plain:
            plain[_POSITIONS] += torch.arange(self.ids.shape[1], device=self.ids.device)
        return replace(self.holding([*plain.values()]), labels=plain[_TOKENS])

    def rows(self, start: int, stop: int) -> "Batch":
        """Some of the blocks."""
        return self.each(lambda t: t[start:stop])

    def beginning(self, tokens: int) -> "Batch":
        """The first tokens of every block; what is not (B, T) stays whole."""
        shape = self.ids.shape
        return self.each(lambda t: t[:, :tokens] if t.shape == shape else t)

    def to(self, device: torch.device) -> "Batch":
        """The same blocks on another device."""
        return self.each(lambda t: t.to(device))

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        """A function of every tensor."""
        attention = None if self.attention is None else change(self.attention)
        ids = change(self.ids)
        labels = ids if self.labels is self.ids else change(self.labels)
        return Batch(ids, labels, attention, {name: change(t) for name, t in self.more.items()})


def read_batch(group: Any, model: nn.Module, where: str) -> Batch:
    """A group as a user gives it: ids (B, T), or a mapping of tensors; see `Objective`.

    Args:
        group: to read; a `Batch` is checked like the rest.
        model: whose forward says which keys there are.
        where: the group's name in messages.

    Raises:
        InputError: keys that the forward does not name; dtypes, shapes or values that cannot be right; ids, labels or
            positions outside the model's vocabulary or context; nothing to predict.
    """
    if isinstance(group, Batch):
        fields: dict[str, Any] = {**group.inputs, _LABELS: group.labels}
    elif isinstance(group, Mapping):
        fields = {str(name): value for name, value in group.items() if value is not None}
    else:
        fields = {_TOKENS: group}
    _check_keys(fields, model, where)
    # a tensor from inference mode has no part in derivatives: a copy of it has
    fields = {k: v.clone() if isinstance(v, torch.Tensor) and v.is_inference() else v for k, v in fields.items()}
    ids = _token_ids(fields.pop(_TOKENS), where)
    attention = _mask(fields.pop(_MASK), ids, where) if _MASK in fields else None
    labels = _labels(fields.pop(_LABELS), ids, where) if _LABELS in fields else None
    more = {name: _other(name, value, ids, where) for name, value in fields.items()}
    if labels is None:
        labels = _predicted(ids, attention, more.get(_POSITIONS))
    batch = Batch(ids, labels, attention, more)
    if attention is not None:
        batch = _arranged(batch, attention, model, where)
    _check_ranges(batch, model, where)
    return batch


def takes(model: nn.Module) -> tuple[tuple[str, ...], bool]:
    """Names of the arguments of a model's forward, and whether it takes any others (`**kwargs`) as well.

    What names none is asked for what it wraps: a function put in the forward's place (accelerate), `torch.compile`,
    DistributedDataParallel.
    """
    names, any_name = _arguments(model.forward)
    if any_name and not names:
        names = _arguments(type(model).forward)[0][1:]  # without self
    adapted = getattr(model, "get_base_model", None)  # PEFT's name for what its own forward hands arguments to
    inner = adapted() if callable(adapted) else getattr(model, "_orig_mod", getattr(model, "module", None))
    if any_name and isinstance(inner, nn.Module) and (not names or callable(adapted)):
        return takes(inner)
    return names, any_name


def _arguments(function: Callable[..., Any]) -> tuple[tuple[str, ...], bool]:
    parameters = inspect.signature(function).parameters.values()
    names = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    return names, any(p.kind is p.VAR_KEYWORD for p in parameters)


def options(model: nn.Module) -> dict[str, Any]:
    """What a forward is told besides data: to keep no cache, where it can be told.

    Raises:
        InputError: the model's configuration has it return tuples.
    """
    if getattr(getattr(model, "config", None), "return_dict", None) is False:
        raise InputError("the model's config has return_dict=False, so that logits have no name: set it to True")
    names, any_name = takes(model)
    return {"use_cache": False} if any_name or "use_cache" in names else {}


def logits_of(output: Any, model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The logits (B, T, V) in what a model returns for ids (B, T): an object or a mapping that has `logits`.

    Raises:
        InputError: it has none, or they are of another shape.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    name = type(model).__name__
    if logits is None:
        raise InputError(f"{name} returns no logits but a {type(output).__name__}: give loss_fn(model, group)")
    if not isinstance(logits, torch.Tensor) or logits.dim() != 3 or logits.shape[:2] != ids.shape:
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise InputError(
            f"{name} returns logits {shape} for ids {tuple(ids.shape)}: expected (B, T, V); give loss_fn(model, group)"
        )
    return logits


def _check_keys(fields: Mapping[str, Any], model: nn.Module, where: str) -> None:
    if _TOKENS not in fields:
        raise InputError(f"{where}: no {_TOKENS} among its keys ({', '.join(fields) or 'none'})")
    known = {_TOKENS, _LABELS, *takes(model)[0]} - _NO_DATA
    for name in fields:
        if name not in known:
            usual = [n for n in (_TOKENS, _LABELS, _MASK, _POSITIONS, "token_type_ids") if n in known]
            raise InputError(
                f"{where}: {type(model).__name__}.forward takes no data of the name {name!r}: it takes "
                f"{', '.join(usual)}"
            )


def _token_ids(ids: Any, where: str) -> torch.Tensor:
    if not isinstance(ids, torch.Tensor) or ids.dim() != 2 or ids.dtype != torch.int64:
        shape = (tuple(ids.shape), ids.dtype) if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise InputError(
            f"{where}: expected int64 token ids of shape (B, T), got {shape}: pad rows of unequal length to one tensor"
        )
    _check_dense(_TOKENS, ids, where)
    if not ids.numel():
        raise InputError(f"{where}: token ids of shape {tuple(ids.shape)} are empty")
    return ids


def _check_dense(name: str, tensor: torch.Tensor, where: str) -> None:
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
        kind = "nested" if tensor.is_nested else "on the meta device" if tensor.is_meta else str(tensor.layout)
        raise InputError(f"{where}: {name} is a tensor that is {kind}: expected a dense one, with values")


def _like_ids(name: str, value: Any, ids: torch.Tensor, where: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.shape != ids.shape:
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
        raise InputError(f"{where}: {name} is {shape}: expected a tensor of the ids' shape {tuple(ids.shape)}")
    _check_dense(name, value, where)
    tensor: torch.Tensor = value.to(ids.device)
    return tensor


def _mask(given: Any, ids: torch.Tensor, where: str) -> torch.Tensor:
    mask = _like_ids(_MASK, given, ids, where)
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError(f"{where}: {_MASK} has other values than 0 (padding) and 1")
    return mask.to(torch.int64)


def _labels(given: Any, ids: torch.Tensor, where: str) -> torch.Tensor:
    labels = _like_ids(_LABELS, given, ids, where)
    if labels.dtype != torch.int64:
        raise InputError(f"{where}: labels are {labels.dtype}: expected int64")
    return labels


def _other(name: str, value: Any, ids: torch.Tensor, where: str) -> torch.Tensor:
    if name == _POSITIONS:
        if isinstance(value, torch.Tensor) and value.shape in (ids.shape[1:], (1, ids.shape[1])):
            value = value.expand(ids.shape).clone()  # one row for all blocks
        places = _like_ids(name, value, ids, where)
        if places.dtype not in _INTEGERS or int(places.min()) < 0:
            least = "" if places.is_complex() else f" from {places.min().item()}"
            raise InputError(f"{where}: {name} are {places.dtype}{least}: expected integers ≥ 0")
        return places.to(torch.int64)
    if not isinstance(value, torch.Tensor) or value.shape[:1] != ids.shape[:1]:
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
        raise InputError(f"{where}: {name} is {shape}: expected a tensor with {len(ids)} rows")
    return value


def _predicted(ids: torch.Tensor, attention: torch.Tensor | None, positions: torch.Tensor | None) -> torch.Tensor:
    """Labels where none are given, see the module; the ids themselves where all are predicted."""
    if attention is None and positions is None:
        return ids
    labels = ids.clone()
    if attention is not None:
        labels[attention == 0] = IGNORED
        labels[:, 1:][attention[:, :-1] == 0] = IGNORED
    if positions is not None:
        labels[:, 1:][positions.diff(dim=1) != 1] = IGNORED
    return labels


def _arranged(batch: Batch, mask: torch.Tensor, model: nn.Module, where: str) -> Batch:
    """Padding moved to the right, positions from the mask where it cannot move, and no mask where none is needed."""
    if not bool(mask.any()):
        return batch
    rows = mask.any(dim=1) | (batch.labels[:, 1:] != IGNORED).any(dim=1)
    if not bool(rows.all()):  # padding alone
        batch, mask = batch.each(lambda t: t[rows]), mask[rows]
    length = mask.shape[1]
    places = torch.arange(length, device=mask.device)
    first, last = mask.argmax(dim=1), length - 1 - mask.flip(1).argmax(dim=1)  # (B,) of real tokens
    whole = (mask.sum(dim=1) == last - first + 1) | ~mask.any(dim=1)  # (B,) no hole
    positioned = _POSITIONS in takes(model)[0] and _POSITIONS not in batch.more
    if positioned and not bool(whole.all()):
        raise InputError(f"{where}: {_MASK} has zeros between ones, so that positions are not clear: give {_POSITIONS}")
    asked = batch.labels[:, 1:] != IGNORED
    movable = ~(asked & (places[:-1] < first[:, None])).any(dim=1)  # (B,) nothing is predicted from padding on the left
    if any(t.shape != mask.shape for t in batch.more.values()):
        movable = torch.zeros_like(movable)
    shift = (first * movable)[:, None]
    batch = batch.each(lambda t: t.gather(1, (places + shift) % length) if t.shape == mask.shape else t)
    batch = replace(batch, labels=batch.labels.masked_fill(places >= length - shift, IGNORED))
    stay = first[:, None] - shift
    if positioned and bool(stay.any()):
        row = int(stay[:, 0].argmax())
        if counts_positions(model, batch.ids[row], batch.inputs[_MASK][row], options(model)):
            return batch  # in padding, too, positions are what they are to the model itself
        counted = (batch.inputs[_MASK].cumsum(dim=1) - 1).clamp(min=0)
        return replace(batch, more={**batch.more, _POSITIONS: torch.where(stay > 0, counted, places)})
    return replace(batch, attention=None) if bool(whole.all()) and _unmasked(batch) else batch


def _unmasked(batch: Batch) -> bool:
    """Whether no prediction depends on the mask: padding is on the right, and positions keep no documents apart."""
    mask, positions = batch.inputs[_MASK], batch.more.get(_POSITIONS)
    if not bool(mask[:, 0].all()) or bool((mask[:, :-1][batch.labels[:, 1:] != IGNORED] == 0).any()):
        return False
    return positions is None or bool((positions.diff(dim=1)[mask[:, 1:] == 1] == 1).all())


def _check_ranges(batch: Batch, model: nn.Module, where: str) -> None:
    sizes = [_embedded(model, f"get_{side}_embeddings") for side in ("input", "output")]
    vocabulary, classes = sizes[0], sizes[1] or sizes[0]
    low, high = int(batch.ids.min()), int(batch.ids.max())
    if low < 0 or (vocabulary is not None and high >= vocabulary):
        raise InputError(
            f"{where}: token ids run from {low} to {high}, outside the model's vocabulary of {vocabulary}: "
            "use the model's own tokenizer"
        )
    asked = batch.labels[batch.labels != IGNORED]
    if len(asked) and (int(asked.min()) < 0 or (classes is not None and int(asked.max()) >= classes)):
        raise InputError(
            f"{where}: labels run from {int(asked.min())} to {int(asked.max())}, outside the model's vocabulary of "
            f"{classes}: expected token ids, or {IGNORED} where nothing is predicted"
        )
    context = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    positions = batch.more.get(_POSITIONS)
    length = batch.ids.shape[1] if positions is None else int(positions.max()) + 1
    if isinstance(context, int) and 0 < context < length:  # XLNet's is −1: there is no limit
        raise InputError(f"{where}: blocks of {length} tokens are longer than the model's context of {context}")
    if batch.tokens == 0:
        raise InputError(f"{where}: nothing to predict (every label after the first position is −100)")


def _embedded(model: nn.Module, find: str) -> int | None:
    """Rows of the model's input or output embedding, where it has one."""
    method = getattr(model, find, None)
    try:
        embedding = method() if callable(method) else None
    except NotImplementedError:
        return None
    size = getattr(embedding, "num_embeddings", None) or getattr(embedding, "out_features", None)
    return size if isinstance(size, int) else None
