"""The witness of a refutation: one safetensors file that holds the orbit or the direction, and what it was claimed of.

It holds no weights but those that the search moved. Its settings say which model and text it belongs to.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors.torch import load, save

from villani.commands.audit.record import ThresholdRecord
from villani.errors import InputError
from villani.objective.parameters import ParameterSpace
from villani.work import foreign
from villani.work.ledger import write_bytes
from villani.work.records import TextRecord

NAME = "witness.safetensors"
_KINDS = ("orbit", "moved", "flat")
_FORMAT = "witness 1"
_REMEDY = f"give the {NAME} of an audit"
_MOST, _MOST_HEADER = 4 << 30, 16 << 20  # bytes
_DTYPES = {"F32", "F64"}


class Claim(BaseModel):
    """What a witness is a witness of.

    Attributes:
        settings: of the audit, from which model and text follow.
        parameter_checksum: of the θ that was given.
        orbit: its name, with `threshold` and `scales`; None where (iv) was not refuted.
        flat: the kind of the flat direction; None where there is none.
        slab: tensors along which L is bounded.
        text_checksum: of the files that text and tokenizer came from (`text_checksum`); None in older witnesses.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    settings: dict[str, object]
    parameter_checksum: str
    orbit: str | None = None
    threshold: ThresholdRecord | None = None
    scales: tuple[float, ...] = Field(default=(), max_length=64)
    flat: str | None = None
    slab: tuple[str, ...] = Field(default=(), max_length=100_000)
    text_checksum: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.orbit is None) != (self.threshold is None):
            raise ValueError("an orbit and its threshold come together")
        return self


@dataclass(frozen=True, eq=False)
class Witness:
    """A claim with its tensors, by name in θ.

    Attributes:
        claim: what is claimed.
        orbit: exponents that broadcast to the tensors' shapes.
        moved: values of the tensors that the search changed.
        flat: the direction.
    """

    claim: Claim
    orbit: Mapping[str, torch.Tensor] = field(default_factory=dict)
    moved: Mapping[str, torch.Tensor] = field(default_factory=dict)
    flat: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """The file, the same bytes for the same witness."""
        tensors = {
            f"{kind}/{name}": tensor.detach().cpu().contiguous().clone()
            for kind in _KINDS
            for name, tensor in getattr(self, kind).items()
        }
        content = save(tensors, {"villani": _FORMAT, "claim": self.claim.model_dump_json()})
        write_bytes(path, [_ordered(content)])


def _ordered(content: bytes) -> bytes:
    """A safetensors file with its header in order: that library writes metadata in a random one."""
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def text_checksum(text: TextRecord) -> str:
    """sha256 over what a text and its tokens come from, whatever the files are called and wherever they lie."""
    sources = [*text.sources, *text.tokenizer_sources]
    return hashlib.sha256(" ".join(f"{s.bytes}:{s.md5}" for s in sources).encode()).hexdigest()


def read_witness(path: Path) -> tuple[Witness, str]:
    """A witness and the sha256 of its file.

    Raises:
        InputError: no such file, or not a witness.
    """
    if not path.is_file():
        raise InputError(f"--replay {path}: no such file; give the {NAME} of an audit's run directory")
    content = foreign.read_content(path, _MOST, _REMEDY)
    with foreign.reading(f"--replay {path}: not a witness", _REMEDY):
        header = _header(content)
        metadata = header.pop("__metadata__")
        if metadata.get("villani") != _FORMAT:
            raise ValueError(f"of another kind or version than {_FORMAT!r}")
        claim = Claim.model_validate(foreign.json_value(metadata["claim"]))
        groups: dict[str, dict[str, torch.Tensor]] = {kind: {} for kind in _KINDS}
        for name, tensor in load(content).items():
            kind, _, tensor_name = name.partition("/")
            if kind not in groups or header[name]["dtype"] not in _DTYPES:
                raise ValueError(f"tensor {foreign.clipped(repr(name))}")
            groups[kind][tensor_name] = tensor
        if (claim.orbit is None and (groups["orbit"] or groups["moved"])) or (claim.flat is None and groups["flat"]):
            raise ValueError("tensors of what it does not claim")
        if claim.flat is not None and len(groups["flat"]) != 1:
            raise ValueError(f"{len(groups['flat'])} tensors of one flat direction")
        if claim.orbit is not None and not groups["orbit"]:
            raise ValueError("an orbit without exponents")
    return Witness(claim, **groups), hashlib.sha256(content).hexdigest()


def _header(content: bytes) -> dict[str, dict[str, str]]:
    """The header of a safetensors file: that library's own reader takes the last of two entries of one name."""
    length = int.from_bytes(content[:8], "little")
    if not 0 < length <= min(_MOST_HEADER, len(content) - 8):
        raise ValueError("not a safetensors file")
    header: dict[str, dict[str, str]] = foreign.json_value(content[8 : 8 + length])
    return header


def indexed(tensors: Mapping[str, torch.Tensor], space: ParameterSpace, *, whole: bool) -> dict[int, torch.Tensor]:
    """By index in θ instead of by name.

    Args:
        tensors: by name.
        space: names and shapes.
        whole: whether each has the shape of its tensor, rather than one that broadcasts to it.

    Raises:
        InputError: a name or shape that θ does not have, or a number that is not finite.
    """
    places = {p.name: i for i, p in enumerate(space.parameters)}
    by_index = {}
    for name, tensor in tensors.items():
        if name not in places:
            unknown = foreign.clipped(repr(name))
            raise InputError(f"the witness speaks of {unknown}, which the model does not have: give the model it is of")
        shape = space.parameters[places[name]].tensor.shape
        try:
            fits = tensor.shape == shape if whole else torch.broadcast_shapes(tensor.shape, shape) == shape
        except RuntimeError:
            fits = False
        if not fits or not bool(torch.isfinite(tensor).all()):
            raise InputError(f"the witness's {name} is {tuple(tensor.shape)} or not finite: expected {tuple(shape)}")
        by_index[places[name]] = tensor
    return by_index
