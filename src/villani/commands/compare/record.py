"""Records of comparisons. No torch."""

from typing import Literal

from pydantic import Field

from villani.commands.audit.record import Verdict
from villani.work.records import EstimateRecord, ModelRecord, ObjectiveRecord, Record, TextRecord

Kind = Literal["measurement", "spectrum", "audit"]
Method = Literal["paired", "independent", "dependent"]
Change = Literal["falls", "rises", "undecided", "unchanged"]


class ComparedRun(Record):
    """One of the runs; the first is what the others are held against."""

    name: str = Field(description="of its folder, as short as tells it from the others")
    run: str = Field(description="its folder, as it was given")
    records_checksum: str = Field(description="sha256 of its records.json")
    command: str = Field(description="that made it")
    model: ModelRecord
    objective: ObjectiveRecord
    text: TextRecord
    groups: int
    sequences: int
    block: int
    seed: int
    parameter_checksum: str = Field(description="sha256 over names, shapes and values of θ")


class DifferenceRecord(EstimateRecord):
    """A figure of another run minus that of the reference."""

    quantity: Literal[
        "loss", "gradient_norm_squared", "gradient_dot_parameters", "hessian_trace", "decayed_norm_squared", "psi"
    ]
    weight_decay: tuple[float, float] | None = Field(
        default=None, description="with psi, λ of the reference and of the other run"
    )
    temperature: tuple[float, float] | None = Field(default=None, description="with psi, s of the one and of the other")
    interval: tuple[float, float] = Field(description="all intervals of the record hold together, at its `confidence`")
    degrees_of_freedom: float | None = Field(description="of the t-interval; null where nothing was sampled")
    change: Change = Field(description="undecided: the interval holds 0; unchanged: nothing differs that it depends on")
    reference: EstimateRecord = Field(description="of the reference, with an interval of its own at 95 %")
    other: EstimateRecord = Field(description="of the other run, likewise")


class PairRecord(Record):
    """The reference and one of the other runs."""

    run: str = Field(description="name of the other one")
    method: Method = Field(
        description="paired: joint jackknife over common groups; independent: variances add; dependent: something may "
        "be shared, so standard errors add, which holds for any correlation"
    )
    reason: str = Field(description="why that method")
    unlike: list[str] = Field(description="what else differs between the two, in words")
    differences: list[DifferenceRecord]


class EigenvalueDifference(Record):
    """An eigenvalue by rank, in the reference and in another run."""

    rank: int = Field(description="1 for the largest, 2 for the next …; −1 for the smallest, −2 for the next …")
    reference: float
    reference_bound: float = Field(ge=0, description="an eigenvalue lies within it of `reference`")
    other: float
    other_bound: float = Field(ge=0, description="an eigenvalue lies within it of `other`")
    difference: float
    interval: tuple[float, float] = Field(
        description="holds the difference if no eigenvalue was missed; of the matrices of these groups: no data noise"
    )
    change: Change


class SpectrumPair(Record):
    """Eigenvalues of the reference and of another run, rank by rank."""

    run: str = Field(description="name of the other one")
    same_groups: bool = Field(description="whether both matrices are of the same groups of text")
    unlike: list[str] = Field(description="what else differs between the two, in words")
    eigenvalues: list[EigenvalueDifference] = Field(description="ranks that both runs have")


class AuditedRun(Record):
    """What the audit of one run came to."""

    run: str = Field(description="name")
    weight_decay: float = Field(ge=0)
    temperature: float = Field(gt=0, description="s at which (iv) was judged")
    villani: bool | None = Field(description="false: a criterion is refuted; true: all hold; null: neither")
    smoothness: Verdict
    growth: Verdict
    tails: Verdict
    differential_growth: Verdict
    refuted_above: float | None = Field(description="(iv) fails for every s above it; null if there is no such bound")


class ComparisonRecord(Record):
    """Runs side by side."""

    kind: Literal["comparison"] = "comparison"
    compared: Kind = Field(description="what the runs are of")
    command: str
    versions: dict[str, str]
    runs: list[ComparedRun]
    confidence: float
    comparisons: int = Field(description="intervals that hold together: sampled differences, over all pairs of runs")
    pairs: list[PairRecord] = Field(description="of measurements: the reference and each other run")
    spectra: list[SpectrumPair] = Field(description="of spectra, likewise")
    audits: list[AuditedRun] = Field(description="of audits: each run")


RECORDS = (ComparisonRecord,)
