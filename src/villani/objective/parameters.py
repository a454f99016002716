"""A named view of θ: tied weights once, decay masks, exact norms, checksum."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from villani.errors import InputError
from villani.objective.weights import Values, streamed_weights
from villani.work.foreign import clipped, pattern_of

NAMED_MASKS = ("all", "hf", "nanogpt", "olmo")
_PIECE = 1 << 20  # entries looked at at once


@dataclass(frozen=True)
class Parameter:
    """One trainable tensor of θ.

    Attributes:
        name: its first name in the module.
        tensor: the tensor itself, shared with the module; on the meta device where weights are streamed.
        offset: position of its first entry in the flattened θ.
        decayed: whether the mask m is 1 (rather than 0) on it.
    """

    name: str
    tensor: nn.Parameter
    offset: int
    decayed: bool


class ParameterSpace:
    """The coordinates θ ∈ R^d of a module: every tensor that requires a gradient, tied ones once.

    What does not is a constant of F, as the base of a LoRA: it neither moves nor decays.

    Args:
        model: the module.
        decay: which tensors decay. `all`; `hf` (what the installed Hugging Face Trainer decays: its own function names
            it, mostly all but biases and norms); `nanogpt` (tensors of two or more dimensions); `olmo` (all but
            embeddings); or `match:REGEX` (names that contain a match). DESIGN.md and PEERS.md list who uses which.

    Raises:
        InputError: no trainable parameter, an unknown mask, or a pattern that is invalid or matches nothing.
    """

    def __init__(self, model: nn.Module, decay: str = "all") -> None:
        trainable = [(name, tensor) for name, tensor in model.named_parameters() if tensor.requires_grad]
        if not trainable:
            raise InputError(
                "model has no parameter with requires_grad=True: there is no θ to measure; set it on those that are θ "
                "(an adapter that PEFT loads is frozen, too, unless it is loaded with is_trainable=True)"
            )
        decayed = _mask(model, decay)
        parameters = []
        offset = 0
        for name, tensor in trainable:
            parameters.append(Parameter(name, tensor, offset, decayed[name]))
            offset += tensor.numel()
        self.decay = decay
        self.parameters = tuple(parameters)
        self.size = offset  # d
        self.weights = streamed_weights(model)
        self._streamed_norms: np.ndarray | None = None
        self._checked = False
        if self.weights is not None and len(trainable) < sum(1 for _ in model.parameters()):
            raise InputError("some parameters of a model with streamed weights are frozen: all of them are θ there")

    @staticmethod
    def matching(names: Iterable[str]) -> str:
        """The mask under which exactly the tensors of these names decay, and those tied to them."""
        return "match:^(" + "|".join(re.escape(name) for name in names) + ")$"

    @property
    def mask(self) -> str:
        """The mask as ledgers keep it: with a checksum of the names that decay where a library draws it up."""
        if self.decay != "hf":
            return self.decay
        names = "\n".join(p.name for p in self.parameters if p.decayed)
        return f"hf {hashlib.sha256(names.encode()).hexdigest()[:12]}"

    @property
    def tensors(self) -> list[nn.Parameter]:
        """The tensors of θ, in order."""
        return [p.tensor for p in self.parameters]

    @property
    def values(self) -> Sequence[torch.Tensor]:
        """The values of θ, without a graph: the tensors themselves, or what reads them one by one."""
        if self.weights is not None:
            return Values(self.weights, [p.name for p in self.parameters])
        return [p.tensor.detach() for p in self.parameters]

    @property
    def device(self) -> torch.device:
        """Where θ is, or is wanted."""
        return self.parameters[0].tensor.device if self.weights is None else self.weights.device

    @property
    def decayed(self) -> np.ndarray:
        """(P,) bool: which tensors decay."""
        return np.array([p.decayed for p in self.parameters])

    @property
    def sizes(self) -> np.ndarray:
        """(P,) int: entries of each tensor."""
        return np.array([p.tensor.numel() for p in self.parameters])

    @property
    def decayed_size(self) -> int:
        """d_m, the number of decayed coordinates."""
        return int(self.sizes[self.decayed].sum())

    @property
    def dtype(self) -> torch.dtype:
        """The one dtype of θ (`check` refuses a mixture)."""
        return self.parameters[0].tensor.dtype

    def norms_squared(self) -> np.ndarray:
        """(P,) ‖θ_t‖² of each tensor, accumulated in float64."""
        if self.weights is None or self.weights.changed:
            return np.array([_squared_norm(t) for t in self.values])
        if self._streamed_norms is None:  # a pass over the disk
            self._streamed_norms = np.array([_squared_norm(t) for t in self.values])
        return self._streamed_norms

    def check(self) -> None:
        """Refuse a θ that cannot be measured.

        Raises:
            InputError: a dtype narrower than float32, a mixture of dtypes or devices, an entry that is not finite, or
                two tensors in the same memory, which are one parameter and would be moved as two.
        """
        placed = sorted((p for p in self.parameters if p.tensor.is_contiguous()), key=lambda p: _span(p.tensor)[0])
        for one, other in pairwise(placed):
            if share_memory(one.tensor, other.tensor):
                raise InputError(
                    f"parameters {one.name} and {other.name} are two tensors in the same memory, so that θ has fewer "
                    "coordinates than it seems: tie them by one nn.Parameter, or clone one"
                )
        for p in self.parameters:
            if p.tensor.dtype not in (torch.float32, torch.float64):
                raise InputError(f"parameter {p.name} is {p.tensor.dtype}: second derivatives need float32 or float64")
            if p.tensor.dtype != self.dtype or p.tensor.device != self.parameters[0].tensor.device:
                raise InputError(
                    f"parameter {p.name} is {p.tensor.dtype} on {p.tensor.device}, others are {self.dtype} on "
                    f"{self.parameters[0].tensor.device}: use one dtype and one device"
                )
            if p.tensor.is_meta and self.weights is None:
                raise InputError(f"parameter {p.name} is on the meta device, without values: load or make the weights")
        if self.weights is not None and self._checked and not self.weights.changed:
            return  # what is stored stays as it is, or the fingerprint says so
        for p, value in zip(self.parameters, self.values, strict=True):
            if not bool(torch.isfinite(value).all()):
                bad = int((~torch.isfinite(value)).sum())
                raise InputError(
                    f"parameter {p.name} has {bad} non-finite entries: the checkpoint is damaged or diverged"
                )
        self._checked = True

    def checksum(self) -> str:
        """sha256 over names, shapes and values, in order."""
        digest = hashlib.sha256()
        for p, value in zip(self.parameters, self.values, strict=True):
            digest.update(f"{p.name}:{tuple(p.tensor.shape)}:{p.tensor.dtype};".encode())
            digest.update(value.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def fingerprint(self) -> list[int]:
        """A number for the bits of each tensor, told apart by any change of one entry; on θ's own device, no copies.

        Σ_i (2i + 1)·bits_i mod 2⁶⁴, a piece at a time: a quarter of a second for 125M float32 numbers on one core.
        """
        return [_fingerprint(value) for value in self.values]


def double_dot(a: torch.Tensor, b: torch.Tensor) -> float:
    """⟨a, b⟩ in float64, a piece at a time so that no float64 copy of a large tensor is made."""
    total = torch.zeros((), dtype=torch.float64, device=a.device)
    flat_a, flat_b = a.detach().reshape(-1), b.detach().reshape(-1)
    for x, y in zip(flat_a.split(1 << 20), flat_b.split(1 << 20), strict=True):
        total += torch.dot(x.double(), y.double())
    return float(total)


def share_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether the stretches of memory that two tensors lie in overlap; entries between those of a view count, too."""
    (start, end), (first, last) = _span(one), _span(other)
    return one.device == other.device and start < last and first < end


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """Addresses from the first byte to behind the last; nothing of a tensor without entries or memory."""
    start = tensor.data_ptr() if tensor.device.type != "meta" else 0
    if not start or not tensor.numel():
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


def _fingerprint(tensor: torch.Tensor) -> int:
    whole = tensor.detach().reshape(-1).view(torch.int64 if tensor.element_size() == 8 else torch.int32)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    odd = torch.arange(1, 2 * min(len(whole), _PIECE), 2, device=tensor.device)
    for number, piece in enumerate(whole.split(_PIECE)):
        bits = piece.to(torch.int64)
        total += (bits * odd[: len(bits)]).sum() + 2 * number * _PIECE * bits.sum()
    return int(total)


def _squared_norm(tensor: torch.Tensor) -> float:
    flat = tensor.detach().reshape(-1)
    return float(sum(float(part.double().square().sum()) for part in flat.split(1 << 22)))


def _mask(model: nn.Module, decay: str) -> dict[str, bool]:
    """Whether each tensor decays, by its first name."""
    aliases: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(tensor), []).append(name)
    pattern = _pattern(decay)
    chosen = _chosen(model, decay)

    def decays(name: str, tensor: nn.Parameter) -> bool:
        if decay == "all":
            return True
        if decay == "hf":
            return name in chosen  # under its first name, as the Trainer looks it up
        if decay == "nanogpt":
            return tensor.dim() >= 2
        if decay == "olmo":
            return not chosen.intersection(aliases[id(tensor)])
        assert pattern is not None
        return any(pattern.search(n) for n in aliases[id(tensor)])

    mask = {name: decays(name, tensor) for name, tensor in model.named_parameters()}
    if pattern is not None and not any(mask.values()):
        raise InputError(f"decay {decay!r} matches no parameter: names look like {next(iter(mask))!r}")
    return mask


def check_decay(decay: str) -> None:
    """Refuse a mask that is unknown, or whose pattern is invalid, whatever the model."""
    _pattern(decay)


def _pattern(decay: str) -> re.Pattern[str] | None:
    if not isinstance(decay, str):
        raise InputError(f"decay {decay!r} is no text: expected {', '.join(NAMED_MASKS)} or match:REGEX")
    if decay in NAMED_MASKS:
        return None
    if not decay.startswith("match:"):
        raise InputError(f"decay {clipped(decay)!r} is unknown: expected {', '.join(NAMED_MASKS)} or match:REGEX")
    return pattern_of(decay.removeprefix("match:"), f"decay {clipped(decay)!r}")


def _chosen(model: nn.Module, decay: str) -> set[str]:
    """Names, under every alias: what the Trainer decays, for `hf`; the tables of embeddings, for `olmo`."""
    if decay == "hf":
        from transformers.trainer import Trainer  # here, since few ask for it; needs no accelerate

        return set(Trainer.get_decay_parameter_names(cast(Any, None), model))  # a method that does not look at itself
    return {
        f"{path}.{leaf}" if path else leaf
        for path, module in model.named_modules(remove_duplicate=False)
        if decay == "olmo" and isinstance(module, nn.Embedding)
        for leaf, _ in module.named_parameters(recurse=False)
    }
