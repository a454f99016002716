"""Typed records of `villani exact` and `villani constants`: truths and bounds. No run directory is needed.

Constants travel as powers of ten, since e^{βω} leaves the range of floats; `value` is null where it does.
"""

from typing import Literal

from pydantic import Field

from villani.runs.records import ModelRecord, Record, Status


class ConstantRecord(Record):
    """One bound (see `villani.theory.constants.Constant`)."""

    id: str
    name: str
    value: float | None
    log10: float
    direction: Literal["upper", "lower"]
    kind: Literal["log-Sobolev", "Poincaré"]
    hypotheses: str
    status: Status
    source: str


class MissingRecord(Record):
    """A bound that does not apply, and why."""

    id: str
    reason: str


class LogSobolevRecord(Record):
    """C_LS where a way to it is known."""

    value: float
    status: Status
    note: str


class RelativeEntropyRecord(Record):
    """KL(Gibbs law ‖ prior) and its upper bounds, THEORY.md §5(c)."""

    value: float
    log_sobolev: float
    stam: float
    jeffreys: float


class PointRecord(Record):
    """The truth and the bounds at one λ, β and d."""

    weight_decay: float = Field(ge=0)
    temperature: float = Field(gt=0)
    beta: float = Field(gt=0)
    dimension: int = Field(ge=1)
    gaps: list[float] = Field(description="lowest eigenvalues of −(Δ − ∇U·∇) above 0")
    poincare: float = Field(description="C_P = 1/gaps[0]")
    error: float = Field(ge=0, description="relative, of C_P: the difference between two grids and boxes")
    diffusion_gap: float = Field(description="1/(βC_P), the slowest rate of the Langevin diffusion")
    log_sobolev: LogSobolevRecord | None
    moments: dict[str, float] = Field(description="expectations under the Gibbs law")
    identities: dict[str, float] = Field(description="relative failure of the identities of THEORY.md §1")
    relative_entropy: RelativeEntropyRecord | None
    constants: list[ConstantRecord] = Field(description="upper bounds from the least, then lower bounds")
    missing: list[MissingRecord]
    verdict: str


class ExactRecord(Record):
    """What `villani exact POTENTIAL` found."""

    record: Literal["exact"] = "exact"
    potential: str = Field(description="name or expression of L")
    expression: str
    about: str
    proved: str = Field(description="one line of proof of the inputs that are called certified")
    shape: Literal["ridge", "copies", "radial"]
    varied: Literal["weight_decay", "temperature", "dimension"] | None
    points: list[PointRecord]


class CheckRecord(Record):
    """A printed figure of THEORY.md beside the computed one."""

    row: str
    quantity: str
    printed: str
    computed: float
    passes: bool


class ReferenceRecord(Record):
    """What `villani exact --all` found."""

    record: Literal["reference"] = "reference"
    passed: int
    failed: int
    checks: list[CheckRecord]


class ModelPointRecord(Record):
    """The constants of a model at one λ and s."""

    weight_decay: float = Field(gt=0)
    temperature: float = Field(gt=0)
    visible: float | None = Field(description="largest constant that a run of the given length can have seen")
    sentence: str
    constants: list[ConstantRecord]


class ModelConstantsRecord(Record):
    """What `villani constants MODEL` found; no text is read, only shapes."""

    record: Literal["constants"] = "constants"
    model: ModelRecord
    parameters: int
    vocabulary: int = Field(description="rows of the output embedding")
    alpha: float = Field(description="prediction smoothing of the certified constant")
    smoothing_cost: float = Field(description="most that smoothing adds to a token's loss, nats")
    points: list[ModelPointRecord]
