"""PEFT adapters: low-rank changes of weights that others made, read as data and merged into a base model.

W + s·B·A for each pair (A, B) that is stored, with s = α/r, or α/√r where the configuration says `use_rslora`
(Hu et al., arXiv 2106.09685; Kalajdzievski, arXiv 2312.03732). What else an adapter stores, biases and whole modules,
takes the place of the base's. The layer's kind says which way round its weight lies, as in peft. The base that an
adapter names is told and never followed. peft is not needed; its variants that are no sum are refused by name.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from villani.errors import InputError
from villani.inputs.adapter_settings import Scaling, read_scaling
from villani.inputs.checkpoints import ADAPTER, base_named, check_pattern
from villani.inputs.folders import json_object, shortened
from villani.inputs.stored import Stored, other_formats, stored_tensors

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PART = re.compile(r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B)")


def merge_adapter(model: Any, folder: Path, name: str, *, allow_unused: str | None = None) -> str:
    """Merge the adapter of a folder into a model, in the model's precision.

    A weight that is tied in the base and changed in one of its places only is there a tensor of its own afterwards, as
    it is in what peft wraps.

    Args:
        model: the base, changed in place.
        folder: with adapter_config.json and adapter_model.safetensors.
        name: of the adapter in messages.
        allow_unused: regular expression on names of stored tensors that may go unused.

    Returns:
        what a reader of a record should know about it.

    Raises:
        InputError: no adapter, a damaged one, one that is no sum, or one that does not fit this base.
    """
    _check_files(folder, name)
    content = json_object(folder, ADAPTER)
    scaling = read_scaling(content, name)
    base = base_named(content)
    stored = stored_tensors(folder, name, [WEIGHTS])
    for key, tensor in stored.items():
        if tensor.dtype is None:
            raise InputError(f"{name}: {shortened(key)} is stored as {tensor.kind}: expected floats of 16 bits or more")
    tied = _tied(model)
    pairs, tensors, strays = _sorted(model, stored)
    allowed = check_pattern(allow_unused)
    unplaced = [key for key in strays if allowed is None or not allowed.search(key)]
    if unplaced:
        raise InputError(
            f"{name}: {len(unplaced)} tensors have no place in this base, such as {shortened(unplaced[0])}: give the "
            f"base that it was trained on ({base}), or allow them by name, as with --allow-unused"
        )
    if not pairs and not tensors:
        raise InputError(f"{name}: {WEIGHTS} changes nothing of the base: no tensor in it is an adapter's")
    _check_targets(model, scaling, pairs, name)
    untied = set()
    with torch.no_grad():
        for key, parameter in tensors.items():
            value = _fitting(folder, stored[key], parameter.shape, f"{name}: {shortened(key)}", base)
            path = _path(key)
            if any(owner.endswith(scaling.whole) for owner in _owners(path)):  # peft's modules_to_save: a copy
                untied |= _replaced(model, path, value.to(parameter), tied)
            else:
                parameter.copy_(value)
        for path, parts in pairs.items():
            untied |= _merged(model, path, parts, scaling, (folder, stored, name, base), tied)
    if untied:
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
    ranks = sorted({stored[parts["A"]].shape[0] for parts in pairs.values()})
    changes = [f"LoRA of {' and '.join(f'rank {rank}' for rank in ranks)} ({len(pairs)} pairs)"] if pairs else []
    changes += [f"whole tensors ({len(tensors)})"] if tensors else []
    changes += [f"{path} untied" for path in sorted(untied)]
    return f", with {name} merged: {', '.join(changes)}; {base}"


def absent_adapter_files(folder: Path) -> list[str]:
    """Files that an adapter's folder lacks."""
    return [file for file in (ADAPTER, WEIGHTS) if not (folder / file).exists()]


def _check_files(folder: Path, name: str) -> None:
    absent = absent_adapter_files(folder)
    if absent:
        seen = other_formats(folder) if absent == [WEIGHTS] else "no such file"
        raise InputError(
            f"{name}: needs {absent[0]}, found {seen}; villani reads adapters as safetensors only: load it once with "
            "peft where you trust it, and model.save_pretrained(folder)"
        )


def _path(key: str) -> str:
    """Where a whole tensor belongs, by the name that the base has for it."""
    return key.removeprefix(_PREFIX).replace(".base_layer.", ".")


def _owners(path: str) -> Iterator[str]:
    """The paths of all modules that a tensor is in."""
    parts = path.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


def _tied(model: nn.Module) -> frozenset[int]:
    """The tensors that have more than one place."""
    places = [id(tensor) for _, tensor in model.named_parameters(remove_duplicate=False)]
    return frozenset(one for one in places if places.count(one) > 1)


def _sorted(
    model: nn.Module, stored: dict[str, Stored]
) -> tuple[dict[str, dict[str, str]], dict[str, nn.Parameter], list[str]]:
    """Module → its parts by their keys; the key of a whole tensor → what it takes the place of; keys with no place."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    modules = dict(model.named_modules(remove_duplicate=False))
    pairs: dict[str, dict[str, str]] = {}
    tensors, strays = {}, []
    for key in stored:
        part = _PART.fullmatch(key.removeprefix(_PREFIX))
        if not key.startswith(_PREFIX):
            strays.append(key)
        elif part is None and _path(key) in parameters:
            tensors[key] = parameters[_path(key)]
        elif part is not None and part[1] in modules:
            letter = part[2].removesuffix(".weight").removeprefix("lora_").removeprefix("embedding_")
            pairs.setdefault(part[1], {})[letter] = key
        else:
            strays.append(key)
    return pairs, tensors, strays


def _check_targets(model: nn.Module, scaling: Scaling, pairs: dict[str, dict[str, str]], name: str) -> None:
    """Refuse an adapter that lacks a pair: peft would leave such a module as it is, with a warning."""
    ends = tuple(f".{end}" for end in scaling.targets)
    for path, _ in model.named_modules():
        if ends and f".{path}".endswith(ends) and path not in pairs:
            raise InputError(
                f"{name}: {ADAPTER} targets {shortened(path)}, and {WEIGHTS} has no pair for it: it is incomplete, "
                "or of another base"
            )
    for path, parts in pairs.items():
        if not parts.keys() >= {"A", "B"}:
            lacking = min({"A", "B"} - parts.keys())
            raise InputError(f"{name}: {shortened(path)} has no lora_{lacking}: the adapter is incomplete")


def _merged(
    model: nn.Module, path: str, parts: dict[str, str], scaling: Scaling,
    source: tuple[Path, dict[str, Stored], str, str], tied: frozenset[int],
) -> set[str]:  # fmt: skip
    """Merge one pair; the names that were untied."""
    folder, stored, name, base = source
    module: Any = model.get_submodule(path)
    lookup = parts["A"].endswith("lora_embedding_A")
    if not (isinstance(module, nn.Embedding) if lookup else _is_linear(module)):
        raise InputError(f"{name}: {shortened(path)} is a {type(module).__name__}, no layer that LoRA is merged into")
    transposed = lookup or not isinstance(module, nn.Linear)
    weight: torch.Tensor = module.weight.T if transposed else module.weight  # (out, in)
    shape = stored[parts["A"]].shape
    rank = shape[0] if shape else 0
    if rank not in scaling.ranks:
        raise InputError(f"{name}: {shortened(parts['A'])} has rank {rank}, which {ADAPTER} does not name")
    factor = scaling.factor(path, rank)
    sizes = {"A": (rank, weight.shape[1]), "B": (weight.shape[0], rank), "B.bias": (weight.shape[0],)}
    a, b, shift = (
        _fitting(folder, stored[key], sizes[part], f"{name}: {shortened(key)}", base)
        if (key := parts.get(part))
        else None
        for part in sizes
    )
    assert a is not None
    assert b is not None
    merged = torch.addmm(weight, b.to(weight), a.to(weight), alpha=factor)
    if shift is not None:
        shift = factor * shift.to(weight)
        module.bias = nn.Parameter(shift if module.bias is None else module.bias + shift, module.weight.requires_grad)
    return _replaced(model, f"{path}.weight", (merged.T if transposed else merged).contiguous(), tied)


def _is_linear(module: nn.Module) -> bool:
    """Whether it is W x + b and nothing else."""
    from transformers.pytorch_utils import Conv1D

    return type(module).forward in (nn.Linear.forward, Conv1D.forward)


def _fitting(folder: Path, stored: Stored, shape: tuple[int, ...], what: str, base: str) -> torch.Tensor:
    """A stored tensor, of this shape and finite."""
    if stored.shape != tuple(shape):
        raise InputError(
            f"{what} is {stored.shape}, and this base needs {tuple(shape)}: give the base that it was trained on "
            f"({base})"
        )
    value = stored.read(folder)
    if not torch.isfinite(value).all():
        raise InputError(f"{what} has infinite or NaN entries: the adapter is damaged or diverged")
    return value


def _replaced(model: nn.Module, path: str, value: torch.Tensor, tied: frozenset[int]) -> set[str]:
    """Put a tensor into one place of the model, and leave the others that the old one has; its name if it has any."""
    owner, _, leaf = path.rpartition(".")
    module: Any = model.get_submodule(owner)
    old = getattr(module, leaf)
    setattr(module, leaf, nn.Parameter(value, requires_grad=old.requires_grad))
    return {path} if id(old) in tied else set()
