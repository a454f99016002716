"""What a result in Python was made of: the model, the data and the call, as records have them."""

import platform
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from typing import Any, Protocol

import torch
from pydantic import Field

from villani.objective.batches import Batch
from villani.objective.objective import Objective
from villani.work.records import ModelRecord, ObjectiveRecord, Provenance, Record, TensorGroup, TextRecord

_VERSIONS = ("villani", "torch", "transformers", "tokenizers", "numpy")


class Tensors(Protocol):
    """θ by its tensors, of which names are wanted: a `ParameterSpace` or an `Origin`."""

    @property
    def parameters(self) -> Sequence[Any]:
        """What has a `name`, in order."""


class Origin(Record):
    """What a result was made of. It holds no tensor, and stays what it is when the model goes on training."""

    model: ModelRecord
    objective: ObjectiveRecord
    text: TextRecord
    provenance: Provenance
    tensors: list[TensorGroup] = Field(description="of θ, in order")
    outputs: int | None = Field(description="V, rows of the output embedding; null where the model has none")
    groups: int
    sequences: int = Field(description="rows of the largest group; 0 where groups are no tokens")
    block: int = Field(description="tokens of the longest row; 0 where groups are no tokens")
    micro_tokens: int
    call: dict[str, str | int | float | None] = Field(description="arguments of the call that a record has")

    @property
    def parameters(self) -> list[TensorGroup]:
        """The tensors of θ, in order."""
        return self.tensors

    @property
    def facts(self) -> dict[str, Any]:
        """What every record of a result has, by the names of its fields."""
        return {name: getattr(self, name) for name in ("model", "objective", "text", "provenance")}


def origin_of(objective: Objective, call: str, seed: int, chosen: int | None = None, **options: Any) -> Origin:
    """The origin of what is made of an objective now, at its current θ.

    Args:
        objective: model, groups and mask.
        call: the name of the function.
        seed: its seed.
        chosen: how many of the groups it looked at; all when None.
        options: what else a record of it holds.
    """
    space, model = objective.parameters, objective.model
    config = getattr(model, "config", None)
    name = str(getattr(config, "name_or_path", ""))  # "None" where transformers was given weights and no place
    context = getattr(config, "max_position_embeddings", None)
    shapes = [tuple(group.ids.shape) for group in objective.groups if isinstance(group, Batch)]
    return Origin(
        model=ModelRecord(
            spec=type(model).__name__ if name in ("", "None") else name, architecture=type(model).__name__,
            description="a model in memory, given in Python", dtype=str(space.dtype).removeprefix("torch."),
            context=context if isinstance(context, int) else None,
        ),
        objective=objective_record(objective),
        text=_text(objective, shapes),
        provenance=provenance_of(objective, f"villani.{call}(…) in Python", seed, _fingerprint(objective)),
        tensors=[TensorGroup(name=p.name, parameters=p.tensor.numel()) for p in space.parameters],
        outputs=_outputs(model),
        groups=len(objective.groups) if chosen is None else chosen,
        sequences=max((rows for rows, _ in shapes), default=0),
        block=max((tokens for _, tokens in shapes), default=0),
        micro_tokens=objective.micro_tokens,
        call=options,
    )  # fmt: skip


def objective_record(objective: Objective) -> ObjectiveRecord:
    """λ and the mask as they stand in JSON."""
    space = objective.parameters
    left_out = [TensorGroup(name=p.name, parameters=p.tensor.numel()) for p in space.parameters if not p.decayed]
    return ObjectiveRecord.of(
        objective, decay=space.decay, parameters=space.size, decayed_parameters=space.decayed_size, undecayed=left_out
    )


def provenance_of(objective: Objective, command: str, seed: int, checksum: str | None = None) -> Provenance:
    """What determines the bits of a measurement, beside its settings; θ is hashed where no `checksum` is given."""
    return Provenance(
        command=command,
        seed=seed,
        device=_device_name(objective.device),
        threads=torch.get_num_threads(),
        versions={"python": platform.python_version(), **_versions()},
        parameter_checksum=checksum or objective.parameters.checksum(),
    )


def _fingerprint(objective: Objective) -> str:
    """sha256 over names, shapes and the fingerprint of each tensor, which is known already while θ is watched."""
    space = objective.parameters
    each = zip(space.parameters, objective.bits or space.fingerprint(), strict=True)
    text = ";".join(f"{p.name}:{tuple(p.tensor.shape)}:{p.tensor.dtype}:{bits}" for p, bits in each)
    return f"fingerprint {sha256(text.encode()).hexdigest()}"


@cache
def _versions() -> Mapping[str, str]:
    return {name: version(name) for name in _VERSIONS}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"


def _text(objective: Objective, shapes: list[tuple[int, ...]]) -> TextRecord:
    """The groups as a text: of rows of tokens, a checksum; of anything else, that it is not known."""
    digest = sha256()
    for group in objective.groups:
        if isinstance(group, Batch):
            for name, tensor in (*group.inputs.items(), ("labels", group.labels)):
                digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().data)
    rows = sum(shape[0] for shape in shapes)
    return TextRecord(
        spec="groups given in Python", sources=[], tokenizer="not known", tokenizer_sources=[], documents=rows,
        tokens=sum(group.tokens for group in objective.groups if isinstance(group, Batch)), blocks=rows,
        cut="rows as they were given; each counts as a document" if shapes else "groups of a loss of one's own",
        special_tokens="whether rows begin with a special token is not known",
        token_checksum=digest.hexdigest() if shapes else "not tokens",
    )  # fmt: skip


def _outputs(model: Any) -> int | None:
    """Rows of the output embedding of a causal language model."""
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    weight = getattr(head, "weight", None)
    size = getattr(getattr(model, "config", None), "vocab_size", None) if weight is None else weight.shape[0]
    return int(size) if isinstance(size, int) else None
