"""Causal language models to measure: local folders, hub ids, and random weights (see `architectures`).

Whatever the source, a model comes in eval mode, in float32 unless asked otherwise, with no key-value cache and with
eager attention, since fused attention has no second derivative. Weights are read from safetensors only: nothing is ever
unpickled. `checkpoints` reads folders.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from villani.errors import InputError, first_line
from villani.inputs.adapters import absent_adapter_files, merge_adapter
from villani.inputs.architectures import random_model
from villani.inputs.checkpoints import absent_files, check_pattern, is_adapter, read_folder
from villani.inputs.folders import local_path, shortened
from villani.inputs.hub import hub_folder, looks_like_path
from villani.inputs.stored import gguf_remedy
from villani.inputs.streaming import NEVER, Streaming, stream_from_memory, when_larger
from villani.objective.evaluation import plain_lookups
from villani.objective.weights import streamed_weights
from villani.work import foreign
from villani.work.memory import give_back
from villani.work.records import ModelRecord

_HUB_FILES = ("config.json", "model*.safetensors", "model.safetensors.index.json", "adapter_config.json")
_INSTEAD = {
    "model": "give a folder, a hub id, config:NAME or builtin:tiny",
    "adapter": "give a folder or a hub id",
}
_NEEDED = {
    "model": ("config.json", "model.safetensors"),
    "adapter": ("adapter_config.json", "adapter_model.safetensors"),
}
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_DEVICES = re.compile(r"cpu|mps|(cuda|xpu)(:\d{1,3})?")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be measured.

    Attributes:
        model: in eval mode, with eager attention and no key-value cache.
        record: what to write about it: spec, architecture, dtype, longest context.
        tokenizer: the spec of the tokenizer that is natural for it.
        start: copies of its parameters as they were loaded, where its weights are going to be changed.
    """

    model: torch.nn.Module
    record: ModelRecord
    tokenizer: str
    start: tuple[torch.Tensor, ...] = field(default=(), repr=False, compare=False)


def load_model(
    spec: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    trust_remote_code: bool = False,
    allow_unused: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    streamed: bool | Streaming | None = None,
) -> LoadedModel:
    """Load a causal language model; see the module for the state that it comes in.

        loaded = villani.load_model("config:gpt-neo-125m?layers=2&width=64")
        objective = villani.Objective(loaded.model, villani.groups_from_text("builtin", loaded, tokenizer="builtin"))

    The gradient of an embedding row is kept even where the checkpoint calls it padding, as OPT does: it is part of ∇L.

    Args:
        spec: `config:NAME[?key=value&...]` (random weights), `builtin:tiny[?...]`, a folder, or a hub id.
        dtype: of parameters, float32 or float64; checkpoints stored in bf16 or fp16 are converted.
        device: as torch names it.
        trust_remote_code: whether a checkpoint may run its own Python code.
        allow_unused: regular expression on names of stored tensors that the model may leave unused.
        adapter: folder or hub id of a PEFT adapter to merge into the weights, see `inputs/adapters.py`.
        streamed: whether weights are read from their files as they are used, a layer at a time (docs/large-models.md);
            a function of the bytes of θ that says so; by default where they do not fit into memory.

    Raises:
        InputError: no such model, or one that cannot be measured; the message says what to change.
    """
    spec = os.fspath(spec)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"dtype={dtype!r}: expected torch.float32 or torch.float64")
    check_device(device)
    check_pattern(allow_unused)
    with foreign.reading(f"model {foreign.clipped(spec)!r}", "mend its files, or give another"):
        return _loaded(
            spec, dtype, device, trust_remote_code, allow_unused, None if adapter is None else os.fspath(adapter),
            when_larger(1.0, device) if streamed is None else streamed if callable(streamed) else (lambda _: streamed),
        )  # fmt: skip


def _loaded(
    spec: str, dtype: torch.dtype, device: str, trust_remote_code: bool, allow_unused: str | None, adapter: str | None,
    streamed: Streaming,
) -> LoadedModel:  # fmt: skip
    name, description, tokenizer = spec, "", spec
    if spec.startswith(("config:", "builtin:")):
        if adapter is not None:
            raise InputError(
                f"adapter {shortened(adapter)!r}: {shortened(spec)!r} has random weights, which no adapter was trained "
                "for: give the base that it was trained on as the model"
            )
        model, description, tokenizer = random_model(spec)
        if streamed(0.0):
            _prepare(model, dtype, device)
            stream_from_memory(model)
            description += ", a segment at a time"
    else:
        folder, name = _locate(spec, "model", _HUB_FILES, lambda folder: is_adapter(folder) or not absent_files(folder))
        model, stored = read_folder(
            folder, name, dtype, trust=trust_remote_code, allow_unused=allow_unused,
            streamed=NEVER if adapter is not None else streamed, device=device,
        )  # fmt: skip
        if adapter is not None and streamed(0.0):
            raise InputError(f"adapter {shortened(adapter)!r}: what is merged is not streamed: leave streamed at False")
        description = f"weights of {name} (safetensors{stored})"
        if adapter is not None:
            _check_weights(model, name)
            description += _merged(model, adapter, allow_unused)
        if spec in ("gpt2", "builtin"):  # as tokenizers, these names belong to the data folder and to villani
            tokenizer = f"./{spec}" if Path(spec).is_dir() else f"hub:{spec}"
    _prepare(model, dtype, device)
    _check_weights(model, name)
    give_back()
    record = ModelRecord(
        spec=spec,
        architecture=type(model).__name__,
        description=description,
        dtype=str(dtype).removeprefix("torch."),
        context=_context(model),
    )
    return LoadedModel(model, record, tokenizer)


def _merged(model: Any, adapter: str, allow_unused: str | None) -> str:
    """Merge an adapter; how it is told."""
    with foreign.reading(f"adapter {foreign.clipped(adapter)!r}", "mend its files, or give another"):
        folder, name = _locate(adapter, "adapter", _ADAPTER_FILES, lambda folder: not absent_adapter_files(folder))
        words = merge_adapter(model, folder, name, allow_unused=allow_unused)
    _check_weights(model, name)
    return words


def check_device(device: str) -> None:
    """Refuse a device that is not known here, or that is not there."""
    if not _DEVICES.fullmatch(device):
        raise InputError(f"device {shortened(device)!r} cannot be used: expected cpu, cuda, cuda:1, mps or xpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used: {first_line(error)}") from error


def _prepare(model: Any, dtype: torch.dtype, device: str) -> None:
    try:
        if streamed_weights(model) is None:
            model.to(device=device, dtype=dtype)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used: {first_line(error)}") from error
    model.eval()
    model.config.use_cache = False
    model.config.return_dict = True
    if getattr(model, "loss_type", None) is None:
        model.loss_type = "ForCausalLM"  # which it falls back to anyway, with a warning at the first loss
    for module in plain_lookups(model):
        module.padding_idx = None  # it would zero that row's gradient, and leave the loss as it is


def _check_weights(model: torch.nn.Module, name: str) -> None:
    if streamed_weights(model) is not None:
        return  # floats by their header, and `ParameterSpace.check` reads them
    for key, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            raise InputError(f"{name}: {key} is {parameter.dtype}: villani measures floating-point weights only")
        if not torch.isfinite(parameter).all():
            raise InputError(f"{name}: {key} has infinite or NaN entries: there is no landscape around such a point")


def _context(model: torch.nn.Module) -> int | None:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)  # type: ignore[union-attr, operator]
    return int(context) if context and context > 0 else None  # XLNet's is −1: there is no limit


def _locate(spec: str, what: str, files: Sequence[str], complete: Callable[[Path], bool]) -> tuple[Path, str]:
    """Folder of a checkpoint or adapter, and how to call it in a record."""
    lead = "" if what == "model" else f"{what} "
    if not spec:
        raise InputError(f"no {what} is named: {_INSTEAD[what]}")
    path = local_path(spec, what)
    if path.is_dir():
        return path, f"{lead}folder {path.resolve().name}"
    if path.exists():
        if path.suffix == ".gguf":
            raise InputError(f"{spec!r}: villani reads safetensors only; {gguf_remedy(path.name)}")
        raise InputError(f"{lead}{spec!r} is a file: give the folder that holds {' and '.join(_NEEDED[what])}")
    if looks_like_path(spec):
        raise InputError(f"{lead}{shortened(spec)!r}: no such folder; {_INSTEAD[what]}")
    return hub_folder(spec, files, complete), f"{lead}hub model {spec}"
