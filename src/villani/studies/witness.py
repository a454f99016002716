"""The witness of a refutation: one safetensors file that holds the orbit or the direction, and what it was claimed of.

It holds no weights but those that the search moved. Its settings say which model and text it belongs to.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from villani.errors import InputError
from villani.landscape.parameters import ParameterSpace
from villani.runs.audits import ThresholdRecord
from villani.runs.store import write_bytes

NAME = "witness.safetensors"
_KINDS = ("orbit", "moved", "flat")


class Claim(BaseModel):
    """What a witness is a witness of.

    Attributes:
        settings: of the audit, from which model and text follow.
        parameter_checksum: of the θ that was given.
        orbit: its name, with `threshold` and `scales`; None where (iv) was not refuted.
        flat: the kind of the flat direction; None where there is none.
        slab: tensors along which L is bounded.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: dict[str, object]
    parameter_checksum: str
    orbit: str | None = None
    threshold: ThresholdRecord | None = None
    scales: tuple[float, ...] = ()
    flat: str | None = None
    slab: tuple[str, ...] = ()


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
        write_bytes(path, save(tensors, {"villani": "witness 1", "claim": self.claim.model_dump_json()}))


def read_witness(path: Path) -> tuple[Witness, str]:
    """A witness and the sha256 of its file.

    Raises:
        InputError: no such file, or not a witness.
    """
    if not path.is_file():
        raise InputError(f"--replay {path}: no such file; give the {NAME} of an audit's run directory")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        claim = Claim.model_validate(json.loads(metadata["claim"]))
    except (SafetensorError, KeyError, ValueError, ValidationError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"--replay {path}: not a witness ({reason}); give the {NAME} of an audit") from None
    groups: dict[str, dict[str, torch.Tensor]] = {kind: {} for kind in _KINDS}
    for name, tensor in tensors.items():
        kind, _, tensor_name = name.partition("/")
        if kind not in groups:
            raise InputError(f"--replay {path}: not a witness (tensor {name!r}); give the {NAME} of an audit")
        groups[kind][tensor_name] = tensor
    return Witness(claim, **groups), hashlib.sha256(path.read_bytes()).hexdigest()


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
    found = {}
    for name, tensor in tensors.items():
        if name not in places:
            raise InputError(f"the witness speaks of {name!r}, which the model does not have: give the model it is of")
        shape = space.parameters[places[name]].tensor.shape
        try:
            fits = tensor.shape == shape if whole else torch.broadcast_shapes(tensor.shape, shape) == shape
        except RuntimeError:
            fits = False
        if not fits or not bool(torch.isfinite(tensor).all()):
            raise InputError(f"the witness's {name} is {tuple(tensor.shape)} or not finite: expected {tuple(shape)}")
        found[places[name]] = tensor
    return found
