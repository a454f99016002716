"""The record of `villani constants`: the constants of a model, claimed and certified."""

from typing import Literal

from pydantic import Field

from villani.commands.exact.record import ConstantRecord
from villani.work.records import ModelRecord, Record


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


class ModelConstantsRecord(ModelConstants):
    """What `villani constants MODEL` found."""

    kind: Literal["constants"] = "constants"
    model: ModelRecord
    next_step: str = Field(
        default="", description="what to do next about λ, at the first λ and s; what a run resembles is heuristic"
    )


RECORDS = (ModelConstantsRecord,)
