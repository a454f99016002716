"""A checkpoint whose weights stay on disk: the model on the meta device, and what reads each tensor when it is used.

Files are read, not mapped. A map counts as memory of the process for as long as its pages stay, and a file that
is cut short under one ends the process; a read that comes up short is an error in one line. Pieces of a few MiB are
widened to θ's precision as they come, so that reading a tensor takes no more than the tensor.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from villani.errors import InputError
from villani.inputs.folders import inside, shortened
from villani.inputs.stored import Stored
from villani.objective.weights import Weights
from villani.work import foreign
from villani.work.budget import available_memory
from villani.work.memory import map_large

Streaming = Callable[[float], bool]
"""Whether weights are streamed whose values would take so many bytes."""

_PIECE = 1 << 22  # entries that are widened at a time
_MOST_HEADER = 100_000_000  # bytes, as of the format


def NEVER(size: float) -> bool:  # noqa: ARG001
    """Weights are not streamed."""
    return False


def when_larger(copies: float, device: str) -> Streaming:
    """Where so many copies of θ do not fit into the memory that is left."""
    return lambda size: copies * size > available_memory(device)[0]


def streamed_model(
    builder: Callable[[Any], Any], config: Any, folder: Path, stored: Mapping[str, Stored], name: str,
    dtype: torch.dtype, device: torch.device,
) -> tuple[Any, list[str]]:  # fmt: skip
    """A model whose parameters have no values, with `streamed_weights` to read them; and stored tensors it leaves.

    Args:
        builder: makes the model of a configuration.
        config: of the model.
        folder: that the files are in.
        stored: its tensors, by their headers.
        name: of the model in messages.
        dtype: that values are widened to.
        device: that values are wanted on.

    Raises:
        InputError: a parameter that no one stored tensor is: one that transformers computes from several, or that is
            missing, or of another shape.
    """
    map_large()
    plain = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with valueless_parameters():
            model = builder(config)
        model.tie_weights()
    finally:
        torch.set_default_dtype(plain)
    stored = _renamed(model, stored, name)
    keys = _keys(model, stored, name)
    files = {file: _begins(folder, file, name) for file in sorted({stored[key].file for key in keys.values()})}
    readers = {}
    for parameter, tensor in model.named_parameters():
        one = stored[keys[parameter]]
        if one.dtype is None:
            raise InputError(
                f"{name}: {parameter} is stored as {one.kind}: villani measures 16-bit or wider floats only"
            )
        if one.shape != tuple(tensor.shape):
            raise InputError(
                f"{name}: 1 or more tensors do not fit config.json, such as {parameter}: stored {one.shape}, expected "
                f"{tuple(tensor.shape)}"
            )
        tensor.data = tensor.data.to(dtype)
        readers[parameter] = partial(read_widened, inside(folder, one.file), files[one.file][one.key], one, dtype, name)
    used = set(keys.values())
    for buffer, tensor in model.named_buffers():
        key = next((key for key in _spelled(model, buffer) if key in stored), None)
        if key is not None and buffer in model.state_dict():
            tensor.copy_(stored[key].read(folder))
            used.add(key)
    for buffer, tensor in [*model.named_buffers()]:
        module = model.get_submodule(buffer.rpartition(".")[0])
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        module._buffers[buffer.rpartition(".")[2]] = tensor.to(device, kind)
    _check_aliases(model, stored, readers, used, files, folder, name)
    model.streamed_weights = Weights(readers, device)
    return model, sorted(stored[key].key for key in set(stored) - used)


def stream_from_memory(model: nn.Module) -> None:
    """Let a model that is in memory be measured as one that is not: a segment at a time, which takes less memory."""
    map_large()
    readers = {name: partial(torch.Tensor.detach, tensor.detach()) for name, tensor in model.named_parameters()}
    device = next(model.parameters()).device
    empty: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:
                module._parameters[name] = empty.setdefault(id(tensor), nn.Parameter(tensor.detach().to("meta")))
    model.streamed_weights = Weights(readers, device)  # type: ignore[assignment]


@contextmanager
def valueless_parameters() -> Iterator[None]:
    """Parameters that modules register inside are on the meta device; buffers are made as usual."""
    register = nn.Module.register_parameter

    def registered(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None and not parameter.is_meta:
            module._parameters[name] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    with patch.object(nn.Module, "register_parameter", registered), torch.random.fork_rng(devices=[]):
        yield


def _renamed(model: Any, stored: Mapping[str, Stored], name: str) -> dict[str, Stored]:
    """Stored tensors under the names that transformers knows them by.

    Raises:
        InputError: it computes tensors from others on the way from the file to the model.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    conversions = get_model_conversion_mapping(model, add_legacy=False)
    renamed: dict[str, Stored] = {}
    for key in sorted(stored):
        known = key
        for conversion in conversions:
            known, pattern = conversion.rename_source_key(known)
            if pattern is not None and getattr(conversion, "operations", None):
                raise InputError(
                    f"{name}: transformers computes what {shortened(key)} becomes as it loads it, so that weights "
                    "cannot be streamed: load it with streamed=False where it fits into memory"
                )
        if known in renamed:
            raise InputError(f"{name}: {shortened(key)} and {shortened(renamed[known].key)} are one tensor's names")
        renamed[known] = stored[key]
    return renamed


def _spelled(model: nn.Module, name: str) -> list[str]:
    """How checkpoints spell a name: as it is, or with or without the model's own prefix."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    return [name, name.removeprefix(prefix), prefix + name]


def _keys(model: nn.Module, stored: Mapping[str, Stored], name: str) -> dict[str, str]:
    """Parameter → the stored tensor that it is, under any of its names."""
    names: dict[int, list[str]] = {}
    for alias, tensor in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), []).append(alias)
    keys = {}
    for parameter, tensor in model.named_parameters():
        spelled = [key for alias in names[id(tensor)] for key in _spelled(model, alias)]
        key = next((key for key in spelled if key in stored), None)
        if key is None:
            raise InputError(
                f"{name}: no stored tensor is {parameter}, which transformers may make of several: its weights cannot "
                "be streamed; load it with streamed=False where it fits into memory"
            )
        keys[parameter] = key
    return keys


def _check_aliases(
    model: nn.Module, stored: Mapping[str, Stored], readers: Mapping[str, Callable[[], torch.Tensor]], used: set[str],
    files: Mapping[str, Mapping[str, int]], folder: Path, name: str,
) -> None:  # fmt: skip
    """Refuse a tied tensor that is stored twice, with other values the second time."""
    first = {id(tensor): parameter for parameter, tensor in model.named_parameters()}
    for alias, tensor in model.named_parameters(remove_duplicate=False):
        for key in _spelled(model, alias):
            if key in used or key not in stored:
                continue
            one, held = stored[key], readers[first[id(tensor)]]()
            if one.shape != tuple(held.shape) or not torch.equal(
                held, read_widened(inside(folder, one.file), files.get(one.file, _begins(folder, one.file, name))[key],
                                   one, held.dtype, name),
            ):  # fmt: skip
                raise InputError(
                    f"{name}: {alias} is tied and stored twice, with other values: untie it in config.json"
                )
            used.add(key)


def _begins(folder: Path, file: str, name: str) -> dict[str, int]:
    """Where each tensor of a safetensors file begins, in bytes; its header was looked through by `stored_tensors`."""
    path = inside(folder, file)
    with foreign.reading(f"{name}: {file}", "fetch it again"), path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > _MOST_HEADER:
            raise ValueError(f"a header of {length:,} bytes")
        header = json.loads(stream.read(length))
        return {key: 8 + length + int(of["data_offsets"][0]) for key, of in header.items() if key != "__metadata__"}


def read_widened(path: Path, begins: int, stored: Stored, dtype: torch.dtype, name: str) -> torch.Tensor:
    """A stored tensor in a precision, read piece by piece.

    Raises:
        InputError: the file has changed or is too short.
    """
    kind = stored.dtype
    assert kind is not None
    result = torch.empty(math.prod(stored.shape), dtype=dtype)
    same = kind == dtype
    buffer = torch.empty(0 if same else min(_PIECE, len(result)), dtype=kind)
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for start in range(0, len(result), _PIECE):
                piece = result[start : start + _PIECE]
                raw = piece if same else buffer[: len(piece)]
                view = raw.view(torch.uint8).numpy().data
                if os.preadv(file, [view], begins + start * kind.itemsize) != len(view):
                    raise InputError(f"{name}: {stored.file} is shorter than it was at {shortened(stored.key)}")
                if not same:
                    piece.copy_(raw)
        finally:
            os.close(file)
    except OSError as error:
        raise InputError(f"{name}: {stored.file} cannot be read any more: {error.strerror}") from error
    return result.view(stored.shape)
