"""Records of an audit: four criteria, each a verdict with its evidence. No torch. Infinities are null."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from villani.commands.constants.record import ModelConstants, SpectralGapRecord
from villani.work.records import (
    Cost,
    EstimateRecord,
    ModelRecord,
    ObjectiveRecord,
    Provenance,
    PsiRecord,
    Record,
    TextRecord,
)

Verdict = Literal["holds", "refuted", "not refuted", "unknown"]


def finite(value: float | None) -> float | None:
    """A number as it stands in a record."""
    return value if value is not None and math.isfinite(value) else None


class OutcomeRecord(Record):
    """How one criterion comes out."""

    verdict: Verdict
    reason: str


class OperationRecord(Record):
    """An operation that keeps F from being certified as C^∞."""

    operation: str
    kind: str
    place: str = Field(description="module path, file and line, source line")
    consequence: str


class NormalisationRecord(Record):
    """A normalisation, smooth only as far as its ε is from 0."""

    operation: str
    place: str
    eps: float
    jacobian_bound: float
    laplacian_bound: float


class SmoothnessRecord(Record):
    """Criterion (i)."""

    operations: int = Field(description="θ-dependent operations examined")
    findings: list[OperationRecord]
    normalisations: list[NormalisationRecord]


class FlatRecord(Record):
    """A direction along which L is constant at every θ."""

    parallel = ("steps", "changes", "tolerance")

    tensor: str
    coordinates: int
    kind: str
    deleted_by: list[str]
    steps: list[float]
    changes: list[float] = Field(description="|L(θ + c·direction) − L(θ)|, nats per token, at each of `steps`")
    tolerance: list[float] = Field(description="what rounding explains")


class SlabRecord(Record):
    """Undecayed tensors along which L is bounded."""

    parallel = ("steps", "losses")

    tensors: list[str]
    coordinates: int
    bound: float = Field(description="nats per token")
    radius: float = Field(description="half the side of the box that holds all other parameters")
    steps: list[float]
    losses: list[float] = Field(description="nats per token, at each of `steps`")


class BoundedOrbitRecord(Record):
    """A curve to infinity with constant loss and bounded decayed norm."""

    parallel = ("scales", "changes", "decayed_norms_squared", "norms_squared")

    name: str
    scales: list[float]
    changes: list[float]
    decayed_norms_squared: list[float]
    norms_squared: list[float]


class CoverageRecord(Record):
    """Criteria (ii) and (iii)."""

    lower_bound: float | None = Field(description="of L, nats per token; null where none is known")
    log_integral_bound: float | None = Field(
        description="certified bound on log ∫ exp(−2F/s); null if it is infinite or nobody knows"
    )
    flat: list[FlatRecord]
    slab: SlabRecord | None
    orbits: list[BoundedOrbitRecord]


class ThresholdRecord(Record):
    """The temperature above which Ψ_s → −∞ along one orbit through one θ."""

    value: float | None = Field(description="s*; null where Δ_B L ≤ 0")
    upper: float | None = Field(description="confidence bound of s*; null where the data do not show Δ_B L > 0")
    level: float = Field(description="confidence of `upper`; 1 where nothing was sampled, and only rounding is left")
    norm_squared: float = Field(description="λ²‖mA‖² if it counts, else 0")
    gradient_norm_squared: EstimateRecord = Field(description="‖∇_B L‖²")
    laplacian: EstimateRecord = Field(description="Δ_B L")
    rounding: float | None = Field(default=None, description="what of Δ_B L rounding may be; null if it was not told")
    directions: float | None = Field(
        default=None,
        description="of the noise of ∇_B L, (tr Σ)²/tr Σ²; below 20, or null, `upper` is a wider bound for any number",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_threshold(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return value
        infinite = {name: finite(getattr(value, name)) for name in ("value", "upper", "rounding")}
        return {name: getattr(value, name) for name in cls.model_fields} | infinite


class StepRecord(Record):
    """One point θ_R of an orbit."""

    scale: float = Field(description="R")
    loss_change: float = Field(description="largest |L(θ_R) − L(θ)| over groups, nats per token; 0: the same bits")
    predicted: EstimateRecord = Field(description="Ψ_s(θ_R) from what was measured at θ")
    measured: EstimateRecord = Field(description="Ψ_s(θ_R)")


class OrbitRecord(Record):
    """One rescaling symmetry and its s*."""

    name: str
    theorem: Literal["C", "D"] = Field(description="of THEORY.md §2.2; with D, no λ helps")
    up: int = Field(description="exponent of what grows fastest")
    down: int = Field(description="minus the exponent of what shrinks fastest")
    confirmed: bool = Field(description="whether the groups had no part in choosing this orbit")
    moved: list[str] = Field(description="tensors whose values the search changed; empty at the given θ")
    threshold: ThresholdRecord
    guard: float | None = Field(description="smallest λ with s* above the temperature; null where none has, or unknown")
    walk: list[StepRecord]


class FitRecord(Record):
    """a·r² + b·r + c by weighted least squares, and its lack of fit."""

    quadratic: EstimateRecord
    linear: EstimateRecord
    constant: EstimateRecord
    chi_squared: float
    degrees_of_freedom: int
    p_value: float


class RayRecord(Record):
    """Ψ along θ + r·u."""

    parallel = ("radii", "psi", "data")

    direction: str
    radii: list[float] = Field(description="in the units of θ")
    psi: list[PsiRecord]
    data: list[EstimateRecord] = Field(description="Ψ − λ²‖mθ‖²/s + λ·d_m, what depends on the data")
    fit: FitRecord = Field(description="of `psi`")
    data_fit: FitRecord = Field(description="of `data`")
    exact_quadratic: float = Field(description="λ²‖mu‖²/s, the exact share of `fit.quadratic`")


class SkippedRecord(Record):
    """What the search for symmetries did not understand, and what may hide there."""

    operation: str
    reason: str = Field(description="as a sentence goes on after the operation")
    count: int = Field(description="how often it occurs")
    place: str = Field(description="the first of its places: module path, file and line, source line")
    tensors: list[str] = Field(description="a symmetry that was missed here moves at least one of them")


class DifferentialRecord(Record):
    """Criterion (iv)."""

    refuted_above: float | None = Field(description="the smallest bound of s* found; null if there is none")
    symmetries: int = Field(description="independent rescalings that the traced loss shows")
    skipped: list[SkippedRecord] | None = Field(
        default=None, description="where symmetries may be missed; empty: the search is complete; null: it did not say"
    )
    orbits: list[OrbitRecord] = Field(description="confirmed ones first, smallest s* first")
    rays: list[RayRecord] = Field(description="growth on them neither supports nor contradicts the criterion")
    rays_left_out: dict[str, str] | None = Field(
        default=None, description="direction → why it was not walked along; null in older records"
    )


class RescueRecord(Record):
    """A change under which (iv) would not fail in the way that was found."""

    name: str
    text: str


class AuditDesign(Record):
    """How the audit was laid out."""

    groups: int
    sequences: int = Field(description="blocks in each group")
    block: int = Field(description="tokens in each block")
    probes: int
    search: int = Field(description="rounds of descent allowed")
    ray_groups: int
    seed: int
    confidence: float
    micro_tokens: int


class AuditRecord(Record):
    """Whether F is a Villani function, as the preprint's abstract states the criteria."""

    kind: Literal["audit"] = "audit"
    model: ModelRecord
    objective: ObjectiveRecord
    text: TextRecord
    design: AuditDesign
    temperature: float = Field(gt=0, description="s at which (iv) is judged")
    villani: bool | None = Field(description="false: a criterion is refuted; true: all hold; null: neither")
    smoothness: OutcomeRecord
    growth: OutcomeRecord
    tails: OutcomeRecord
    differential_growth: OutcomeRecord
    smoothness_evidence: SmoothnessRecord
    coverage_evidence: CoverageRecord
    differential_evidence: DifferentialRecord
    rescues: list[RescueRecord]
    spectral_gap: SpectralGapRecord | None = Field(default=None, description="what still holds where (iv) fails: C10")
    constants: ModelConstants | None = Field(description="null where λ = 0 or some parameter does not decay")
    witness: str | None = Field(description="file beside records.json that `villani audit --replay` re-evaluates")
    provenance: Provenance
    cost: Cost | None = Field(default=None, description="null inside records.json, where every byte is reproducible")


class ReplayRecord(Record):
    """A witness re-evaluated: what it claims, and what came out."""

    kind: Literal["replay"] = "replay"
    model: ModelRecord
    text: TextRecord
    witness_checksum: str
    reproduced: bool = Field(description="whether everything that the witness refutes is refuted again")
    weight_decay: float
    temperature: float
    seed: int
    orbit: str | None
    claimed: ThresholdRecord | None
    found: ThresholdRecord | None
    walk: list[StepRecord]
    flat: FlatRecord | None
    slab: SlabRecord | None
    sentences: list[str]
    provenance: Provenance


RECORDS = (AuditRecord, ReplayRecord)
