"""The records of `villani study paper`: every experiment of the preprint's abstract, and a verdict on every claim."""

from typing import Literal

from pydantic import Field

from villani.commands.audit.record import OrbitRecord, OutcomeRecord, RayRecord
from villani.commands.certify.record import CertificatePoint
from villani.commands.converge.record import FitRecord, RateRecord
from villani.commands.recommend.record import OptimizerRecord
from villani.commands.spectrum.record import DensityRecord
from villani.work.records import Cost, EstimateRecord, ModelRecord, Provenance, PsiRecord, Record, Status, TextRecord

Verdict = Literal["refuted", "consistent", "not identifiable"]


class ClaimRecord(Record):
    """One claim of the abstract. No verdict is ever "confirmed": measurements at finitely many points confirm none."""

    claim: str = Field(description="in our words")
    measured: str = Field(description="what was measured, with numbers")
    verdict: Verdict
    status: Status = Field(description="of the evidence that the verdict rests on")
    experiment: str


class CriteriaRecord(Record):
    """Criteria (i) to (iii), read off the traced loss and the decay mask."""

    decay: str = Field(description="which tensors decay")
    smoothness: OutcomeRecord
    growth: OutcomeRecord
    tails: OutcomeRecord


class LandscapePoint(Record):
    """E1 at one trained model: Ψ_s there, along rays and along orbits."""

    weight_decay: float = Field(ge=0)
    seed: int = Field(description="of training")
    norm: float = Field(description="‖θ‖, the unit that radii are multiples of")
    psi: list[PsiRecord] = Field(description="at θ, one for each s")
    rays: list[RayRecord] = Field(description="one for each direction and s")
    refuted_above: float | None = Field(description="(iv) fails for every s above; null if no orbit was resolved")
    level: float = Field(description="confidence of `refuted_above`; several orbits are accounted for")
    orbit: OrbitRecord | None = Field(
        description="the worst, with Ψ along it at the largest s; null if none is visible"
    )


class SpectrumPoint(Record):
    """E2 at one trained model."""

    weight_decay: float = Field(ge=0)
    seed: int
    largest: EstimateRecord = Field(description="λ₁(∇²L); the interval is its residual bound, not noise of data")
    smallest: EstimateRecord | None = Field(description="of those looked for")
    objective_largest: EstimateRecord | None = Field(description="λ₁(∇²F), worked out by itself; null if it was not")
    trace: EstimateRecord | None
    effective_rank: EstimateRecord | None
    negative_share: EstimateRecord | None
    density: DensityRecord | None = Field(default=None, description="of ∇²L, at the first training seed")


class TrendRecord(Record):
    """Something at one λ, over training seeds, and how it differs from the first λ of the grid."""

    optimizer: str
    weight_decay: float = Field(ge=0)
    seeds: int = Field(description="that did not diverge")
    value: EstimateRecord = Field(description="mean over seeds, with a t-interval over seeds")
    change: EstimateRecord | None = Field(description="from the first λ, seed by seed; null there")


class PathologyPoint(Record):
    """Pathologies at one trained model; intervals are over blocks."""

    optimizer: str
    weight_decay: float = Field(ge=0)
    seed: int
    sink: EstimateRecord | None = Field(description="attention on the first token; null where attention is not seen")
    sinks: list[EstimateRecord] = Field(description="by layer")
    uniform: float = Field(description="what `sink` would be for even attention")
    activation: EstimateRecord = Field(description="max |h| over median |h| of the residual stream, worst layer")
    activations: list[EstimateRecord] = Field(description="by layer")
    superposition: float = Field(description="mean squared cosine between embedding rows, exact")
    note: str


class ConvergencePoint(Record):
    """E3 at one λ; `converge-…/` in the run directory has the curves."""

    weight_decay: float = Field(ge=0)
    temperature: float
    sentence: str
    equilibrium: str
    fits: list[FitRecord]
    promises: list[RateRecord] = Field(description="what theory promises, each with its verdict")
    diverged: int = Field(description="chains that left")


class TrainingPoint(Record):
    """E4 and E6 at one optimiser and λ; means over training seeds, with t-intervals over seeds."""

    optimizer: str
    weight_decay: float = Field(ge=0)
    seeds: int
    diverged: int
    train_loss: EstimateRecord | None = Field(description="nats per token; null if fewer than two seeds remain")
    held_out: EstimateRecord | None
    gap: EstimateRecord | None = Field(description="held out − training")
    norm_squared: EstimateRecord | None
    train_change: EstimateRecord | None = Field(description="of the training loss, from the first λ, seed by seed")
    held_out_change: EstimateRecord | None
    gap_change: EstimateRecord | None
    steps: float | None = Field(description="mean steps to `common_loss`; null if a seed does not get there")


class SchedulePoint(Record):
    """E6: AdamW under one schedule, on seeds after the grid's; t-intervals over those seeds."""

    schedule: str
    optimizer: str
    chosen: float = Field(ge=0, description="λ of the least mean held-out loss over the seeds of the grid")
    weight_decay: float = Field(ge=0, description="λ₀; of radial-gap a mark without meaning")
    last: list[float] = Field(description="largest λ of the last step, by seed that did not diverge")
    seeds: list[int]
    diverged: int
    held_out: EstimateRecord | None = Field(description="nats per token at the end; null if under two seeds remain")
    train_loss: EstimateRecord | None
    change: EstimateRecord | None = Field(description="of `held_out`, from the chosen λ held constant, seed by seed")
    best_change: EstimateRecord | None = Field(description="the same of the least loss of the run's curve")


class EffectRecord(Record):
    """E7: one quantity of a trained model at one optimiser and λ, and what decay changed of it.

    Errors are over training seeds and over the blocks or groups that all models see; a change is taken in pairs.
    """

    quantity: str
    optimizer: str = Field(description="adamw-start: AdamW whose decay goes towards where training began")
    weight_decay: float = Field(ge=0)
    memory: float | None = Field(description="1/(ηλ) at the peak η, as a multiple of the run; null without decay")
    seeds: int = Field(description="at which it was measured; of tr ∇²L at one seed, errors are over groups alone")
    units: int = Field(description="blocks, documents or groups; 1 where a model has one number, known exactly")
    value: EstimateRecord | None = Field(
        description="of `forgetting`: nats per token of the other text, above what they were before training"
    )
    change: EstimateRecord | None = Field(description="from the first λ of the grid, seed by seed and unit by unit")
    resolved: bool = Field(description="whether the change is beyond its error; all of a quantity hold at once, 95 %")
    detectable: float | None = Field(
        description="least true change that would have been resolved with probability 80 %, errors being as they are"
    )
    kept: bool | None = Field(
        description="whether it may be the best of all λ, whatever decay goes towards, at 95 %; null where less is not "
        "better"
    )


class EstimatorPoint(Record):
    """E5: one way to tr ∇²L on fixed groups, repeated; seconds are in the cost."""

    way: str
    repeats: int
    relative_error: EstimateRecord = Field(description="root mean square of (estimate − reference)/reference")
    relative_sem: float = Field(description="mean reported standard error over the reference")
    covered: int = Field(description="intervals at 95 %, widened by the reference's own error, that hold the reference")
    mean: EstimateRecord = Field(description="of the repeats")


class EstimatorsRecord(Record):
    """E5: what the ways were held against."""

    optimizer: str
    weight_decay: float
    seed: int
    groups: int
    probes: int
    reference: EstimateRecord = Field(description="tr ∇²L of the same groups: exact, or a long run")
    reference_way: str
    points: list[EstimatorPoint]


class PaperRecord(Record):
    """The preprint's experiments, rerun: arXiv 2605.06599, as its abstract states them."""

    kind: Literal["paper"] = "paper"
    model: ModelRecord
    parameters: int
    text: TextRecord
    held_out: TextRecord
    grid: list[float]
    seeds: int
    optimizers: list[str]
    steps: int
    cut: list[str] = Field(default_factory=list, description="what this study leaves out or does less of, in words")
    temperatures: list[float]
    confidence: float
    grid_note: str = Field(
        default="", description="which results this run had told before this grid was asked for; empty where none"
    )
    criteria: list[CriteriaRecord]
    landscape: list[LandscapePoint]
    spectra: list[SpectrumPoint]
    learned: list[TrendRecord] = Field(description="λ₁(∇²L) over seeds, and how training moved it")
    convergence: list[ConvergencePoint]
    training: list[TrainingPoint]
    common_loss: dict[str, float] = Field(description="by optimiser, what `steps` counts towards, nats per token")
    certificates: list[CertificatePoint]
    certificate_sentence: str
    estimators: EstimatorsRecord | None
    schedules: list[SchedulePoint] = Field(default_factory=list, description="E6, schedules on fresh seeds")
    effects: list[EffectRecord] = Field(default_factory=list, description="E7, what decay changed in tuning")
    other_text: TextRecord | None = Field(default=None, description="E7, what `forgetting` is about")
    tuning_sentence: str = Field(default="", description="E7: what decay changes, or what it would have had to change")
    choices: list[OptimizerRecord] = Field(description="E6, as of `villani recommend`, from the same training runs")
    pathologies: list[PathologyPoint]
    trends: dict[str, list[TrendRecord]] = Field(description="pathologies over seeds, by name")
    claims: list[ClaimRecord]
    sentence: str
    choice_sentence: str
    decay_sentence: str = Field(description="whether decay regularises or changes the dynamics")
    provenance: Provenance
    cost: Cost | None = Field(default=None, description="null inside records.json, where every byte is reproducible")


RECORDS = (PaperRecord,)
