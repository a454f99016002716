"""Typed records: what a run leaves behind, in JSON that others may rely on.

A record holds figures and where they come from, never a clock reading: an interrupted and resumed run writes the same
bytes as one that was left alone. What the work cost is kept apart, in `Cost`, and joins the record on the way out.
The JSON schema is published in `docs/schema/`; `tests/work/test_records.py` holds the two together.
"""

from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from villani.results import Shown, hash_of, told
from villani.statistics import Estimate

Status = Literal["certified", "statistical", "estimated", "as-claimed", "refuted"]


CONFIDENCE = 0.95  # of all intervals in records


class Record(Shown, BaseModel):
    """Base of all records: unknown keys and non-finite numbers are refused, and lists that should be of one length."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, from_attributes=True)
    parallel: ClassVar[tuple[str, ...]] = ()  # fields that are lists of one length

    @classmethod
    def of(cls, source: Any = None, **fields: Any) -> Self:
        """The record of a result: its attributes by the names of the record's fields, estimates among them.

        Args:
            source: an object, whose attributes may be results of which there are records in turn; None for none.
            fields: those that it has not, or that are to be others.
        """
        names = [name for name in cls.model_fields if name not in fields and hasattr(source, name)]
        return cls.model_validate({name: getattr(source, name) for name in names} | fields)

    def __repr__(self) -> str:
        return told(self) if "kind" in type(self).model_fields else super().__repr__()

    def __hash__(self) -> int:
        return hash_of(self)

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        lengths = {name: len(getattr(self, name)) for name in self.parallel}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"lists of one length are {', '.join(f'{name} {n}' for name, n in lengths.items())}")
        return self


class EstimateRecord(Record):
    """A number with its uncertainty (see `villani.statistics.Estimate`)."""

    value: float
    sem: float = Field(ge=0, description="standard error; 0 for a number that is not sampled")
    n: int = Field(ge=1, description="groups behind the number")
    interval: tuple[float, float] = Field(description="at the confidence level of `design.confidence`")
    status: Status

    @model_validator(mode="before")
    @classmethod
    def _of_estimate(cls, value: Any) -> Any:
        """An estimate gives its interval; fields of a record that hold one need no more than the estimate."""
        if not isinstance(value, Estimate):
            return value
        own = {name: getattr(value, name) for name in ("value", "sem", "n", "status")}
        return own | {"interval": value.interval(CONFIDENCE)}

    @model_validator(mode="after")
    def _check_interval(self) -> Self:
        if self.interval[0] > self.interval[1]:
            raise ValueError("an interval that ends before it begins")
        return self


class PsiParts(Record):
    """The five addends of Ψ_s, THEORY.md §6."""

    decay_norm: EstimateRecord = Field(description="λ²‖mθ‖²/s, exact")
    cross: EstimateRecord = Field(description="2λ⟨∇L, mθ⟩/s")
    gradient_norm: EstimateRecord = Field(description="‖∇L‖²/s")
    decay_laplacian: EstimateRecord = Field(description="−λ·d_m, exact")
    hessian_trace: EstimateRecord = Field(description="−tr ∇²L")


class PsiRecord(EstimateRecord):
    """Ψ_s = ‖∇F‖²/s − ΔF at one λ and s."""

    weight_decay: float = Field(ge=0)
    temperature: float = Field(gt=0)
    parts: PsiParts


class ModelRecord(Record):
    """Which model was measured."""

    spec: str
    architecture: str
    description: str = Field(description="where the weights come from, in words")
    dtype: str
    context: int | None = Field(description="longest sequence that the model accepts")


class TensorGroup(Record):
    """A named parameter tensor and its size."""

    name: str
    parameters: int


class ObjectiveRecord(Record):
    """F = L + (λ/2)‖m⊙θ‖²: λ, the decay mask m, and what it leaves out."""

    weight_decay: float = Field(ge=0, description="the first λ asked for; `psi` has all of them")
    decay: str = Field(description="which parameters decay: all | hf | nanogpt | olmo | match:REGEX")
    parameters: int = Field(description="d, tied weights counted once")
    decayed_parameters: int = Field(description="d_m")
    finite: bool = Field(description="true: the groups are the whole data set, so only probes are noise")
    undecayed: list[TensorGroup] = Field(description="tensors that the mask leaves out")


class SourceFile(Record):
    """A file that text or a tokenizer was read from."""

    name: str
    bytes: int
    md5: str


class TextRecord(Record):
    """Which text the loss is the mean over, and how it was cut into blocks."""

    spec: str
    sources: list[SourceFile]
    tokenizer: str
    tokenizer_sources: list[SourceFile]
    documents: int
    tokens: int
    blocks: int = Field(
        description="blocks in the text; each group is an independent seeded draw of them (disjoint if finite)"
    )
    cut: str = Field(description="how blocks are cut, in words")
    special_tokens: str = Field(
        default="no special token is put before a block; no chat template is applied",
        description="special tokens put before every block, in words",
    )
    remarks: list[str] = Field(default=[], description="what a reader might not expect to be in the text")
    token_checksum: str = Field(description="sha256 of the token ids and labels measured")

    @property
    def words(self) -> str:
        """How the text was cut, and what else to know about its tokens."""
        return "; ".join([self.cut, self.special_tokens, *self.remarks])


class Provenance(Record):
    """What determines the figures; the same provenance gives the same bytes."""

    command: str
    seed: int
    device: str
    threads: int
    versions: dict[str, str]
    parameter_checksum: str = Field(
        description="sha256 over names, shapes and values of θ; of a result in Python `fingerprint` and a sha256 over "
        "names, shapes and a sum of the bits of each tensor"
    )


class Cost(Record):
    """What the work took, summed over finished groups, restarts included."""

    seconds: float
    seconds_per_group: float
    peak_memory_bytes: int
    tokens: int = Field(description="predicted tokens, over all groups")
    probes: int = Field(description="probes, over all groups")
    pilot_seconds: float | None = Field(default=None, description="the part of `seconds` that went into the plan")
    predicted_seconds: float | None = Field(default=None, description="what the plan said the rest would take")
    observing_seconds: float | None = Field(default=None, description="the part of `seconds` that observables took")
    parts: dict[str, float] | None = Field(default=None, description="seconds of each part of a study, by its name")
