"""The record of `villani measure`, and of the training run that a measured model came from."""

from typing import Literal, Self

from pydantic import Field, model_validator

from villani.commands.constants.record import ModelConstants
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


class DesignRecord(Record):
    """How the measurement was laid out."""

    groups: int
    sequences: int = Field(description="blocks in each group")
    block: int = Field(description="tokens in each block")
    probes: int = Field(description="independent probes in each group")
    trace: Literal["gauss-newton", "hutchinson", "taylor", "adjoint"]
    trace_reason: str | None = Field(
        default=None, description="why this way, where it was left to the model; null where it was asked for"
    )
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
    """How a wanted error was planned for."""

    quantity: Literal["hessian_trace", "psi"] = Field(description="psi: at the first λ and s of `psi`")
    error: float = Field(gt=0, description="wanted standard error")
    relative: bool = Field(description="whether `error` is a share of the figure's own size")
    pilot_groups: int = Field(description="groups before those that count, which only the plan was made on")
    start_groups: int = Field(default=0, description="groups that the plan was made on, and that count")
    planned_groups: int = Field(description="those of the start included; `design.groups` may be more")
    probe_deviation: float = Field(ge=0, description="of one probe on a group, from a few that were sampled twice")
    data_deviation: float = Field(ge=0, description="between groups, without probe noise")
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


class Displacement(Record):
    """Where on a ray θ₀ + r·u a measurement was taken, |u| = 1."""

    direction: str
    radius: float


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


RECORDS = (MeasurementRecord, TrainingRecord)
