"""Records of spectra. No torch."""

from typing import Literal

from pydantic import Field

from villani.work.records import (
    Cost,
    EstimateRecord,
    ModelRecord,
    ObjectiveRecord,
    Provenance,
    Record,
    Status,
    TextRecord,
)


class EigenvalueRecord(Record):
    """A Ritz value; an eigenvalue lies within `bound` of it. That none was missed is not proved."""

    rank: int = Field(description="1 for the largest, 2 for the next …; −1 for the smallest, −2 for the next …")
    value: float = Field(description="Rayleigh quotient of a unit vector")
    residual: float = Field(ge=0, description="‖Hu − ρu‖ of a product made for the purpose")
    bound: float = Field(ge=0, description="residual plus the estimated rounding of products")
    quadratic: float | None = Field(description="residual²/gap, valid if no eigenvalue was missed; null where not less")
    rank_limit: float | None = Field(
        default=None,
        description="the i-th largest eigenvalue is at least this (rank > 0), the i-th smallest at most this; it may "
        "be further out, for a residual does not say which eigenvalue is near: that none was missed is not proved",
    )
    status: Status
    held_out: EstimateRecord | None = Field(
        default=None, description="uᵀH u on groups that u never met: unbiased for the population at this u"
    )
    shares: list[float] = Field(description="‖u_layer‖² in the order of `layer_names`, of sum 1")


class QuadratureRecord(Record):
    """What one probe says about the spectrum."""

    nodes: list[float]
    weights: list[float]


class DensityRecord(Record):
    """Stochastic Lanczos quadrature, `samples[share][probe]`."""

    shares: int = Field(description="1: of all the data, errors over probes; more: of one share's, errors over shares")
    probes: int = Field(description="in each share")
    steps: int
    samples: list[list[QuadratureRecord]]
    grid: list[float]
    density: list[float] = Field(description="of integral 1: a node is a Gaussian of standard deviation `resolution`")
    sem: list[float]
    resolution: float
    trace: EstimateRecord
    frobenius_squared: EstimateRecord = Field(description="‖H‖_F²; of several shares, the mean of theirs")
    effective_rank: EstimateRecord = Field(
        description="(Σ|λ|)²/Σλ²; what the quadrature leaves open of |λ| is in its interval with the error of probes"
    )
    negative_share: EstimateRecord = Field(
        description="share of the eigenvalues below 0: the middle of what the quadrature leaves open, whose bounds are "
        "in the interval with the error of probes"
    )


class BlockRecord(Record):
    """The diagonal block of one layer."""

    name: str
    parameters: int
    largest: float = Field(description="at most the block's largest eigenvalue")
    largest_residual: float = Field(ge=0, description="an eigenvalue of the block lies within it of `largest`")
    smallest: float
    smallest_residual: float = Field(ge=0)
    trace: EstimateRecord


class SharpnessRecord(Record):
    """λ_1(∇²F) against 2/η, beyond which gradient descent with the step η is locally unstable."""

    learning_rate: float = Field(gt=0)
    threshold: float = Field(gt=0, description="2/η")
    low: float = Field(description="λ_1(∇²F) is at least this, up to the rounding that is taken off")
    high: float = Field(description="and at most this if no eigenvalue was missed")
    unstable: bool | None = Field(description="null: the bounds do not tell")


class SpectrumDesign(Record):
    """How the spectrum was worked out."""

    operator: Literal["hessian", "gauss-newton"]
    matrix: Literal["loss", "objective"] = Field(description="∇²L, or ∇²F = ∇²L + λM with M the decay mask")
    groups: int
    sequences: int = Field(description="blocks in each group")
    block: int = Field(description="tokens in each block")
    held_out: int = Field(description="groups beside these, for Rayleigh quotients")
    top: int
    bottom: int
    tolerance: float = Field(description="of residuals, over the largest |eigenvalue| of the same end")
    basis: int | None = Field(description="columns before a restart; null: by default")
    seed: int
    confidence: float
    micro_tokens: int


class SpectrumRecord(Record):
    """Eigenvalues at both ends, the density between them, and where the eigenvectors live."""

    kind: Literal["spectrum"] = "spectrum"
    model: ModelRecord
    objective: ObjectiveRecord
    text: TextRecord
    design: SpectrumDesign
    products: int = Field(description="with the matrix of all groups, until the residuals were small enough")
    converged: bool
    rounding: float = Field(ge=0, description="estimated error of a product with the first vector")
    layer_names: list[str]
    eigenvalues: list[EigenvalueRecord] = Field(description="top from the largest, then bottom from the smallest")
    density: DensityRecord | None
    layers: list[BlockRecord]
    sharpness: SharpnessRecord | None
    provenance: Provenance
    cost: Cost | None = Field(default=None, description="null inside records.json, where every byte is reproducible")


RECORDS = (SpectrumRecord,)
