"""Typed records: what a run leaves behind, in JSON that others may rely on.

A record holds figures and where they come from, never a clock reading: an interrupted and resumed run writes the same
bytes as one that was left alone. What the work cost is kept apart, in `Cost`, and joins the record on the way out.
The JSON schema is published in `docs/schema/`; `tests/work/test_records.py` holds the two together.
"""

from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Status = Literal["certified", "statistical", "estimated", "as-claimed", "refuted"]


class Record(BaseModel):
    """Base of all records: unknown keys and non-finite numbers are refused, and lists that should be of one length."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    parallel: ClassVar[tuple[str, ...]] = ()  # fields that are lists of one length

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


class DesignRecord(Record):
    """How the measurement was laid out."""

    groups: int
    sequences: int = Field(description="blocks in each group")
    block: int = Field(description="tokens in each block")
    probes: int = Field(description="independent probes in each group")
    trace: Literal["gauss-newton", "hutchinson", "taylor"]
    blocks: Literal["whole", "layer", "tensor"] = Field(description="what had a probe of its own")
    products: Literal["reverse-over-reverse", "forward-over-reverse", "finite-differences"] = Field(
        default="reverse-over-reverse", description="how products of the Hessian with probes were had, with hutchinson"
    )
    deflated: str | None = Field(
        default=None, description="sha256 of the directions whose share of the trace was taken exactly, with hutchinson"
    )
    seed: int
    confidence: float
    sketch: int | None = Field(description="buckets of the gradient sketch; null: gradients were kept whole")
    micro_tokens: int = Field(description="tokens in one forward pass at the most")


class PlanRecord(Record):
    """How a wanted error was planned for; the pilot's groups count nowhere else."""

    quantity: Literal["hessian_trace", "psi"] = Field(description="psi: at the first λ and s of `psi`")
    error: float = Field(gt=0, description="wanted standard error")
    relative: bool = Field(description="whether `error` is a share of the figure's own size")
    pilot_groups: int
    planned_groups: int = Field(description="fixed before any of them was measured; `design.groups` may be more")
    probe_deviation: float = Field(ge=0, description="of one probe on a group, from the pilot")
    data_deviation: float = Field(ge=0, description="between groups, without probe noise, from the pilot")
    note: str = Field(description="why a faster way was left out; empty if none was")


class LayerRecord(Record):
    """One layer's share of tr ∇²L."""

    name: str = Field(description="the number in its tensors' names, or the name of a tensor that has none")
    parameters: int
    hessian_trace: EstimateRecord | None = Field(description="null where nothing told layers apart")


class TensorRecord(Record):
    """One parameter tensor's share of the statistics."""

    name: str
    shape: list[int]
    parameters: int
    decayed: bool
    norm_squared: float
    hessian_trace: EstimateRecord | None = Field(
        description="null where nothing told tensors apart; `n` may be less than the groups of the whole trace"
    )


class Provenance(Record):
    """What determines the figures; the same provenance gives the same bytes."""

    command: str
    seed: int
    device: str
    threads: int
    versions: dict[str, str]
    parameter_checksum: str = Field(description="sha256 over names, shapes and values of θ")


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


class Displacement(Record):
    """Where on a ray θ₀ + r·u a measurement was taken, |u| = 1."""

    direction: str
    radius: float


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


class SpectralGapRecord(Record):
    """C10: whether raw cross-entropy, nothing smoothed, is known to have a spectral gap, although (iv) fails."""

    constant: ConstantRecord | None = Field(description="an upper bound on C_P; null where none is known")
    text: str = Field(description="what follows, what does not, or the reason why there is none")


class ModelPointRecord(Record):
    """The constants of a model's Gibbs law at one λ and s."""

    weight_decay: float = Field(gt=0)
    temperature: float = Field(gt=0)
    visible: float | None = Field(description="largest constant that a run of the given length can have seen")
    sentence: str
    constants: list[ConstantRecord] = Field(description="of the smoothed loss")
    spectral_gap: SpectralGapRecord | None = Field(
        default=None, description="of the loss as it is; null where the graph was not looked at"
    )


class ModelConstants(Record):
    """What theory offers for a model, from its shapes alone: no text is read and nothing is measured."""

    parameters: int = Field(description="d; all of them decay")
    vocabulary: int = Field(description="rows of the output embedding")
    alpha: float = Field(description="prediction smoothing of the certified constant")
    smoothing_cost: float = Field(description="most that smoothing adds to a token's loss, nats")
    time: float | None = Field(description="length of a run, the sum of its learning rates, for `visible`")
    points: list[ModelPointRecord]


class MeasurementRecord(Record):
    """The five statistics at θ and the Ψ_s that they give, DESIGN.md "Contracts"."""

    kind: Literal["measurement"] = "measurement"
    model: ModelRecord
    objective: ObjectiveRecord
    text: TextRecord
    design: DesignRecord
    displacement: Displacement | None = None
    loss: EstimateRecord = Field(description="L, mean nats per predicted token")
    gradient_norm_squared: EstimateRecord = Field(description="‖∇L‖², unbiased: may be negative")
    naive_gradient_norm_squared: EstimateRecord = Field(
        description="mean squared norm of one group's gradient, as a mini-batch reports it: biased"
    )
    gradient_dot_parameters: EstimateRecord = Field(description="⟨∇L, mθ⟩")
    hessian_trace: EstimateRecord = Field(description="tr ∇²L")
    gauss_newton_trace: EstimateRecord | None = Field(
        description="the part of hessian_trace that is never negative; not a stand-in for it. null with hutchinson"
    )
    decayed_norm_squared: float = Field(description="‖mθ‖², exact")
    covariance: list[list[float]] = Field(
        description="of loss, gradient_norm_squared, gradient_dot_parameters, hessian_trace, in this order"
    )
    degrees_of_freedom: float = Field(description="of the t-intervals")
    tensors: list[TensorRecord]
    layers: list[LayerRecord] = []
    plan: PlanRecord | None = Field(default=None, description="null where the design was given")
    psi: list[PsiRecord]
    constants: ModelConstants | None = Field(
        default=None, description="at every λ > 0 and s of `psi`; null where some parameter does not decay"
    )
    provenance: Provenance
    cost: Cost | None = Field(default=None, description="null inside records.json, where every byte is reproducible")

    @model_validator(mode="after")
    def _check_covariance(self) -> Self:
        if [len(row) for row in self.covariance] != [4] * 4:
            raise ValueError("a covariance that is not 4 by 4")
        return self


class TrainingRecord(Record):
    """A short training run: what was trained, and how the loss went."""

    parallel = ("steps", "loss")
    kind: Literal["training"] = "training"
    model: ModelRecord
    text: TextRecord
    optimizer: str
    weight_decay: float
    learning_rate: float
    batch: int
    seed: int
    steps: list[int]
    loss: list[float] = Field(description="mean nats per predicted token of the batch at each of `steps`")
    held_out_loss: float | None


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


class ModelConstantsRecord(ModelConstants):
    """What `villani constants MODEL` found."""

    kind: Literal["constants"] = "constants"
    model: ModelRecord
