"""Causal language models to measure: local folders, hub ids, and random weights (see `architectures`).

Whatever the source, a model comes in eval mode, in float32 unless asked otherwise, with no key-value cache and with
eager attention, since fused attention has no second derivative. Weights are read from safetensors only: nothing is ever
unpickled.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from villani.errors import InputError
from villani.landscape.architectures import random_model
from villani.landscape.evaluation import plain_lookups
from villani.landscape.hub import first_line, hub_folder, looks_like_path, quiet
from villani.runs import foreign
from villani.runs.records import ModelRecord

_HUB_FILES = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json")
_INDEX = "model.safetensors.index.json"
_FLOATS = {"F64", "F32", "F16", "BF16"}  # safetensors' names; float8 is left out, since it needs its scales


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be measured, what to write about it, and the tokenizer spec that is natural for it."""

    model: torch.nn.Module
    record: ModelRecord
    tokenizer: str


def load_model(
    spec: str, *, dtype: torch.dtype = torch.float32, device: str = "cpu", trust_remote_code: bool = False
) -> LoadedModel:
    """Load a causal language model; see the module for the state that it comes in.

    The gradient of an embedding row is kept even where the checkpoint calls it padding, as OPT does: it is part of ∇L.

    Args:
        spec: `config:NAME[?key=value&...]` (random weights), `builtin:tiny[?...]`, a folder, or a hub id.
        dtype: of parameters; checkpoints stored in bf16 or fp16 are converted.
        device: as torch names it.
        trust_remote_code: whether a checkpoint may run its own Python code.

    Raises:
        InputError: no such model, or one that cannot be measured; the message says what to change.
    """
    with foreign.reading(f"model {foreign.clipped(spec)!r}", "mend its files, or give another"):
        return _loaded(spec, dtype, device, trust_remote_code)


def _loaded(spec: str, dtype: torch.dtype, device: str, trust_remote_code: bool) -> LoadedModel:
    name, description, tokenizer = spec, "", spec
    if spec.startswith(("config:", "builtin:")):
        model, description, tokenizer = random_model(spec)
    else:
        folder, name = _locate(spec)
        model, stored = _read_folder(folder, name, dtype, trust_remote_code)
        description = f"weights of {name} (safetensors{stored})"
        if spec in ("gpt2", "builtin"):  # as tokenizers, these names belong to the data folder and to villani
            tokenizer = f"./{spec}" if Path(spec).is_dir() else f"hub:{spec}"
    _prepare(model, dtype, device)
    _check_weights(model, name)
    record = ModelRecord(
        spec=spec,
        architecture=type(model).__name__,
        description=description,
        dtype=str(dtype).removeprefix("torch."),
        context=_context(model),
    )
    return LoadedModel(model, record, tokenizer)


def check_device(device: str) -> None:
    """Refuse a device that torch does not know, or that is not there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used: {first_line(error)}") from error


def _prepare(model: Any, dtype: torch.dtype, device: str) -> None:
    try:
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
    for key, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            raise InputError(f"{name}: {key} is {parameter.dtype}: villani measures floating-point weights only")
        if not torch.isfinite(parameter).all():
            raise InputError(f"{name}: {key} has infinite or NaN entries: there is no landscape around such a point")


def _context(model: torch.nn.Module) -> int | None:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)  # type: ignore[union-attr, operator]
    return int(context) if context and context > 0 else None  # XLNet's is −1: there is no limit


def _locate(spec: str) -> tuple[Path, str]:
    """Folder of a checkpoint, and how to call it in a record."""
    if not spec:
        raise InputError("no model is named: give a folder, a hub id, config:NAME or builtin:tiny")
    path = Path(spec).expanduser()
    if path.is_dir():
        return path, f"folder {path.resolve().name}"
    if path.exists():
        raise InputError(f"{spec!r} is a file: give the folder that holds config.json and model.safetensors")
    if looks_like_path(spec):
        raise InputError(f"{spec!r}: no such folder; give a folder, a hub id, config:NAME or builtin:tiny")
    return hub_folder(spec, _HUB_FILES, lambda folder: not _absent(folder)), f"hub model {spec}"


def _absent(folder: Path) -> list[str]:
    """Files that a checkpoint folder lacks."""
    absent = [] if (folder / "config.json").is_file() else ["config.json"]
    return absent + [name for name in _weight_files(folder) if not (folder / name).is_file()]


def _weight_files(folder: Path) -> list[str]:
    index = folder / _INDEX
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return ["model.safetensors"]
    shards = _json_object(index, folder.name).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise InputError(f"{folder.name}/{_INDEX} has no weight_map")
    return sorted(set(shards.values()))


def _json_object(file: Path, folder: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}/{file.name} cannot be read as JSON: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{folder}/{file.name}: expected a JSON object")
    return content


def _read_folder(folder: Path, name: str, dtype: torch.dtype, trust: bool) -> tuple[Any, str]:
    """The model in a folder, and what a reader of the record should know about how its weights were stored."""
    absent = _absent(folder)
    if "config.json" in absent:
        raise InputError(f"{name}: no config.json there: give the folder that save_pretrained wrote")
    if absent:
        pickles = sorted(file.name for suffix in ("*.bin", "*.pt", "*.pth") for file in folder.glob(suffix))
        found = f"only {pickles[0]}, a pickle" if pickles else "no such file"
        raise InputError(
            f"{name}: needs {absent[0]}, found {found}; villani reads safetensors only: load the model once with "
            "transformers where you trust it, and model.save_pretrained(folder)"
        )
    _check_config(_json_object(folder / "config.json", folder.name), name, trust)
    kinds = _stored_kinds(folder, name)
    model, info = _from_pretrained(folder, name, dtype, trust)
    _check_keys(info, name)
    stored = "" if kinds == {str(dtype)} else f", stored in {' and '.join(sorted(kinds))}, converted to {dtype}"
    stored = stored.replace("torch.", "")
    unused = sorted(info["unexpected_keys"])
    return model, stored + (f", {len(unused)} tensors unused, such as {unused[0]}" if unused else "")


def _check_config(config: dict[str, Any], name: str, trust: bool) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if "quantization_config" in config:
        raise InputError(f"{name}: quantised weights have no landscape of their own: give the unquantised checkpoint")
    kind = config.get("model_type")
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or (trust and "auto_map" in config):
        return
    if "auto_map" in config:
        raise InputError(f"{name}: model type {kind!r} runs code of its own: pass --trust-remote-code if you trust it")
    raise InputError(f"{name}: model type {kind!r} in config.json is no causal language model that transformers knows")


def _stored_kinds(folder: Path, name: str) -> set[str]:
    """Dtypes that weights are stored in, as torch names them; reads headers only, and so finds truncated files."""
    from safetensors import SafetensorError, safe_open

    kinds = set()
    for file in _weight_files(folder):
        try:
            with safe_open(folder / file, framework="pt") as tensors:
                found = {key: tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"{name}: {file} is truncated or corrupt: {first_line(error)}") from error
        # masks that old checkpoints store as integers are biases by name, and not parameters
        weights = {key: kind for key, kind in found.items() if kind in _FLOATS or key.endswith(".weight")}
        for key, kind in weights.items():
            if kind not in _FLOATS:
                raise InputError(f"{name}: {key} is stored as {kind}: villani measures 16-bit or wider floats only")
        kinds |= set(weights.values())
    names = {"F64": "torch.float64", "F32": "torch.float32", "F16": "torch.float16", "BF16": "torch.bfloat16"}
    return {names[kind] for kind in kinds}


def _from_pretrained(folder: Path, name: str, dtype: torch.dtype, trust: bool) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    try:
        # ignore_mismatched_sizes: so that they come back in a list, which is then refused
        with quiet(), torch.random.fork_rng(devices=[]):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                attn_implementation="eager",
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=trust,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # a configuration can be wrong in as many ways as there are architectures
        raise InputError(
            f"{name}: transformers cannot build it: {type(error).__name__}: {first_line(error)}"
        ) from error
    model, info = loaded
    return model, info


def _check_keys(info: dict[str, Any], name: str) -> None:
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(
            f"{name}: {len(missing)} tensors missing, such as {missing[0]}: config.json does not fit the weights"
        )
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        key, stored, expected = mismatched[0]
        raise InputError(
            f"{name}: {len(mismatched)} tensors do not fit config.json, such as {key}: "
            f"stored {tuple(stored)}, expected {tuple(expected)}"
        )
    if info.get("error_msgs"):
        raise InputError(f"{name}: {info['error_msgs'][0]}")
