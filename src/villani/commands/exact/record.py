"""The record of `villani exact`: the truth beside the bounds on it, and the reference values."""

from typing import Any, Literal

from pydantic import Field, model_validator

from villani.theory.constants import Constant
from villani.work.records import Record, Status

_LARGEST = 300  # orders of magnitude; a larger value is given by its logarithm alone


class ConstantRecord(Record):
    """One bound (see `villani.theory.constants.Constant`); e^{βω} leaves the range of floats, its logarithm stays."""

    id: str
    name: str
    value: float | None = Field(description="null where no float can hold it")
    log10: float
    direction: Literal["upper", "lower"]
    kind: Literal["log-Sobolev", "Poincaré"]
    hypotheses: str
    status: Status
    source: str

    @model_validator(mode="before")
    @classmethod
    def _of_constant(cls, bound: Any) -> Any:
        if not isinstance(bound, Constant):
            return bound
        fields = {name: getattr(bound, name) for name in cls.model_fields}
        return fields if bound.log10 < _LARGEST else fields | {"value": None}


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
    gaps: list[float] = Field(
        description="lowest eigenvalues of −(Δ − ∇U·∇) above 0 of the core and of Gaussian coordinates, whose sums are "
        "eigenvalues too; up to three, as far as two solutions agree; of a radial law the first among functions of the "
        "radius and the first among those that are linear on spheres"
    )
    poincare: float = Field(description="C_P = 1/gaps[0]")
    error: float = Field(
        ge=0,
        description="relative, of C_P: what two grids and boxes differ by, and, if certified, what intervals allow",
    )
    status: Status = Field(
        default="estimated", description="of C_P: certified within `error` by intervals, or estimated from two grids"
    )
    why: str = Field(default="", description="what kept intervals from closing; empty if certified")
    digits: int = Field(default=6, description="significant digits of C_P that its error leaves")
    floor: float = Field(default=0.0, ge=0, description="a certified lower bound on C_P; 0: none")
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

    kind: Literal["exact"] = "exact"
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

    kind: Literal["reference"] = "reference"
    passed: int
    failed: int
    checks: list[CheckRecord]


RECORDS = (ExactRecord, ReferenceRecord)
