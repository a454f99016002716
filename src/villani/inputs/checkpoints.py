"""Checkpoint folders: configurations and weights that others made, read as data.

transformers is never shown the folder. Its configuration is built here from `config.json` without the keys that choose
code, kernels, files or devices; its weights come from the safetensors files that the index names, as tensors. So no key
and no other file of the folder (an adapter, a second checkpoint, a generation script) has a say, and nothing of it can
ask for the network. Only with trust does a checkpoint that brings code run it.
"""

import inspect
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from villani.errors import InputError, out_of_memory
from villani.inputs.folders import inside, json_object, shortened
from villani.inputs.hub import closed, quiet
from villani.inputs.stored import Stored, gguf_remedy, other_formats, stored_tensors
from villani.inputs.streaming import NEVER, Streaming, streamed_model
from villani.objective.weights import streamed_weights
from villani.work.budget import Needs, hold
from villani.work.foreign import clipped, pattern_of

INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
# Keys that choose code, kernels, files, devices or outputs rather than the function that the model is.
_CHOICES = re.compile(
    r"_(?!sliding_window_pattern).*|.*implementation.*|.*_kernels|kernel_config|.*_plan|auto_map|custom_pipelines|transformers_weights|fusion_config|"
    r"distributed_config|device_map|compile_config|gguf_file|adapter_.*|base_model_name_or_path|name_or_path|dtype|"
    r"num_labels|id2label|label2id|torch_dtype|torchscript|use_cache|output_attentions|output_hidden_states|return_dict"
)
_COUNTS = re.compile(r"(n|num)_.*|.*layers.*|.*experts.*")
_SIZE, _COUNT, _LISTED = 2**40, 10**6, 10**6  # largest integer of a configuration, of its counts, and within its lists
# Masks and tables that old checkpoints keep and their models make anew.
_MADE = re.compile(r"(.*\.)?(attn|attention|self_attn)\.(masked_)?bias|(.*\.)?rotary_emb\.inv_freq")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter and no model."""
    return (folder / ADAPTER).is_file() and not (folder / "config.json").exists()


def absent_files(folder: Path) -> list[str]:
    """Files that a checkpoint folder lacks."""
    absent = [] if (folder / "config.json").is_file() else ["config.json"]
    return absent + [name for name in _weight_files(folder) if not (folder / name).exists()]


def read_folder(
    folder: Path, name: str, dtype: torch.dtype, *, trust: bool = False, allow_unused: str | None = None,
    streamed: Streaming = NEVER, device: str = "cpu",
) -> tuple[Any, str]:  # fmt: skip
    """The model in a folder, and what a reader of a record should know about how its weights were stored.

    Args:
        folder: with config.json and safetensors weights.
        name: of the model in messages.
        dtype: of parameters.
        trust: whether it may run code of its own.
        allow_unused: regular expression on names of stored tensors that may go unused.
        streamed: whether weights stay on disk (`inputs/streaming.py`).
        device: where streamed weights are wanted.

    Raises:
        InputError: no checkpoint, or one that cannot be read, is damaged, or does not fit its configuration.
    """
    _check_files(folder, name)
    content = json_object(folder, "config.json")
    _check_config(content, name, trust)
    stored = stored_tensors(folder, name, _weight_files(folder))
    for key, tensor in stored.items():
        # masks that old checkpoints store as integers are biases by name, and not parameters
        if tensor.dtype is None and key.endswith(".weight"):
            raise InputError(f"{name}: {key} is stored as {tensor.kind}: villani measures 16-bit or wider floats only")
    if trust and "auto_map" in content:
        if streamed(0.0):
            raise InputError(f"{name}: a checkpoint that runs code of its own is not streamed: leave streamed at False")
        model, info = _trusted(folder, name, dtype)
    else:
        model, info = _built(folder, name, dtype, content, stored, streamed, device)
    _check_keys(info, name)
    unused = sorted(key for key in info["unexpected_keys"] if not _MADE.fullmatch(key))
    _check_unused(unused, allow_unused, name)
    words = ", streamed from disk" if streamed_weights(model) else ""
    return model, _stored_words(stored, dtype, unused) + words


def _check_files(folder: Path, name: str) -> None:
    absent = absent_files(folder)
    if "config.json" in absent:
        if is_adapter(folder):
            raise InputError(
                f"{name}: a PEFT adapter and no model ({base_named(json_object(folder, ADAPTER))}): give its base as "
                "the model, and this folder as its adapter, with --adapter FOLDER"
            )
        packed = sorted(file.name for file in folder.glob("*.gguf"))
        advice = gguf_remedy(packed[0]) if packed else "give the folder that save_pretrained wrote"
        raise InputError(f"{name}: no config.json there: {advice}")
    if absent:
        raise InputError(
            f"{name}: needs {shortened(absent[0])}, found {other_formats(folder)}; villani reads safetensors only: "
            "load the model once with transformers where you trust it, and model.save_pretrained(folder)"
        )


def base_named(content: dict[str, Any]) -> str:
    """Which base an adapter's configuration names, for people to read: it is never followed."""
    base = content.get("base_model_name_or_path")
    return f"{ADAPTER} names {shortened(base)!r}" if isinstance(base, str) else f"{ADAPTER} names no base"


def _check_config(content: dict[str, Any], name: str, trust: bool) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if "quantization_config" in content:
        raise InputError(f"{name}: quantised weights have no landscape of their own: give the unquantised checkpoint")
    kind = content.get("model_type")
    if (isinstance(kind, str) and kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) or (trust and "auto_map" in content):
        _check_sizes(content, name)
        return
    kind = shortened(kind) if isinstance(kind, str) else kind
    if "auto_map" in content:
        raise InputError(f"{name}: model type {kind!r} runs code of its own: pass --trust-remote-code if you trust it")
    raise InputError(f"{name}: model type {kind!r} in config.json is no causal language model that transformers knows")


def _check_sizes(value: Any, name: str, key: str = "", *, listed: bool = False) -> None:
    """Refuse numbers that no model has: configurations make lists and loops of them before any weight is allocated."""
    if isinstance(value, dict):
        for inner, one in value.items():
            _check_sizes(one, name, inner)
    elif isinstance(value, list):
        for one in value:
            _check_sizes(one, name, key, listed=True)
        words, times = _words_and_numbers(value)
        if words * times > _LISTED:  # such as attention_types, where a number says how often words are repeated
            raise InputError(f"{name}: {shortened(key)} in config.json asks for more than {_LISTED:,} entries")
    elif isinstance(value, int) and not isinstance(value, bool):
        most = _LISTED if listed else _COUNT if _COUNTS.fullmatch(key) else _SIZE
        if not -most <= value <= most:
            raise InputError(f"{name}: {shortened(key)} in config.json is out of range: expected at most {most:,}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name}: {shortened(key)} in config.json is not finite")


def _words_and_numbers(value: Any) -> tuple[int, int]:
    """How many strings a nested list has, and its largest whole number."""
    if isinstance(value, list):
        found = [_words_and_numbers(one) for one in value]
        return sum(words for words, _ in found), max((number for _, number in found), default=0)
    return int(isinstance(value, str)), value if isinstance(value, int) and not isinstance(value, bool) else 0


def _weight_files(folder: Path) -> list[str]:
    if (folder / "model.safetensors").exists() or not (folder / INDEX).exists():
        return ["model.safetensors"]
    shards = json_object(folder, INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise InputError(f"{folder.name}/{INDEX} has no weight_map")
    names = sorted(set(shards.values()))
    for name in names:
        if (folder / name).exists() or ".." in Path(name).parts or Path(name).is_absolute():
            inside(folder, name)
    return names


def _built(
    folder: Path,
    name: str,
    dtype: torch.dtype,
    content: dict[str, Any],
    stored: dict[str, Stored],
    streamed: Streaming,
    device: str,
) -> tuple[Any, dict[str, Any]]:
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    kind = CONFIG_MAPPING[content["model_type"]]
    layers = content.get(kind.attribute_map.get("num_hidden_layers", "num_hidden_layers"))
    if isinstance(layers, int) and layers > len(stored):
        raise InputError(f"{name}: config.json has {layers:,} layers, and {len(stored)} tensors are stored")
    try:
        with quiet(), closed():
            config = kind(**_function_of(content, kind))
            config._attn_implementation = "eager"
            builder: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
            if isinstance(builder, list | tuple):
                builder = next((one for one in builder if [one.__name__] == config.architectures), builder[0])
            with torch.device("meta"), torch.random.fork_rng(devices=[]):
                drawn = builder(config)
            needed = dtype.itemsize * sum(p.numel() for p in drawn.parameters())
            needed += sum(buffer.numel() * buffer.element_size() for buffer in drawn.buffers())
            _check_fit(drawn, stored, name)
            if streamed(float(needed)):
                model, left = streamed_model(builder, config, folder, stored, name, dtype, torch.device(device))
                return model, {"missing_keys": (), "mismatched_keys": (), "unexpected_keys": left}
            hold(
                Needs(memory=float(needed)), what=f"{name}: a model of these sizes",
                instead="choose a smaller model",
            )  # fmt: skip
            state = {key: tensor.read(folder) for key, tensor in stored.items()}
            with torch.random.fork_rng(devices=[]):
                model, info = builder.from_pretrained(
                    None, config=config, state_dict=state, attn_implementation="eager", dtype=dtype,
                    output_loading_info=True, ignore_mismatched_sizes=True,
                )  # fmt: skip
    except InputError:
        raise
    except Exception as error:  # a configuration can be wrong in as many ways as there are architectures
        if out_of_memory(error):
            raise
        raise InputError(f"{name}: transformers cannot build it: {type(error).__name__}: {_reason(error)}") from error
    return model, info


def _reason(error: BaseException) -> str:
    """What transformers says, whose first line is often a heading only."""
    return clipped(" ".join(str(error).split()))


def _check_fit(drawn: Any, stored: dict[str, Stored], name: str) -> None:
    """Refuse a model that has more numbers than are stored, before it is allocated."""
    wanted = {id(p): p.numel() for p in drawn.parameters()}
    there = sum(math.prod(tensor.shape) for tensor in stored.values())
    if sum(wanted.values()) > 4 * there + 10**6:
        raise InputError(
            f"{name}: config.json describes {sum(wanted.values()):,} parameters, and {there:,} numbers are stored: "
            "config.json does not fit the weights"
        )


def _function_of(content: Any, kind: Any = None) -> Any:
    """A configuration without the keys that choose anything but the function; `kind`: the class it is for."""
    if isinstance(content, list):
        return [_function_of(one) for one in content]
    if not isinstance(content, dict):
        return content
    kept = {key: _function_of(value) for key, value in content.items() if not _CHOICES.fullmatch(key)}
    if kind is None:
        return kept
    # what the class has as a method or a constant is no field, and would be hidden by a value of that name
    own = {field.name for field in fields(kind)}
    return {key: value for key, value in kept.items() if key in own or _may_be_set(kind, key)}


def _may_be_set(kind: Any, key: str) -> bool:
    known = inspect.getattr_static(kind, key, None)
    return known is None or (isinstance(known, property) and known.fset is not None)


def _trusted(folder: Path, name: str, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """A checkpoint that runs its own code, by the user's word."""
    from transformers import AutoModelForCausalLM

    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, attn_implementation="eager", dtype=dtype, use_safetensors=True, local_files_only=True,
                trust_remote_code=True, output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
    except Exception as error:  # that code may raise anything
        raise InputError(f"{name}: transformers cannot build it: {type(error).__name__}: {_reason(error)}") from error
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


def check_pattern(allowed: str | None) -> re.Pattern[str] | None:
    """The pattern of names that may go unused.

    Raises:
        InputError: it is no regular expression.
    """
    return None if allowed is None else pattern_of(allowed, f"allow_unused {clipped(allowed)!r}")


def _check_unused(unused: list[str], allowed: str | None, name: str) -> None:
    pattern = check_pattern(allowed)
    stray = [key for key in unused if pattern is None or not pattern.search(key)]
    if stray:
        raise InputError(
            f"{name}: {len(stray)} stored tensors are unused, such as {shortened(stray[0])}: config.json does not fit "
            "the weights; where it does, allow them by name, as with --allow-unused 'value_head'"
        )


def _stored_words(stored: dict[str, Stored], dtype: torch.dtype, unused: list[str]) -> str:
    dtypes = {tensor.dtype for key, tensor in stored.items() if tensor.dtype and not _MADE.fullmatch(key)}
    kinds = {str(one).removeprefix("torch.") for one in dtypes}
    wanted = str(dtype).removeprefix("torch.")
    words = "" if kinds == {wanted} else f", stored in {' and '.join(sorted(kinds))}, converted to {wanted}"
    return words + (f", {len(unused)} tensors unused, such as {unused[0]}" if unused else "")
