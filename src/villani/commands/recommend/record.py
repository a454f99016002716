"""The records of `villani recommend`: losses over a grid of λ, which cannot be told apart, and where rules land."""

from typing import Literal

from pydantic import Field

from villani.work.records import Cost, EstimateRecord, ModelRecord, Provenance, Record, Status, TextRecord

OptimizerName = Literal["adamw", "sgd", "noisy-sgd"]
NAMES = {
    "adamw": "AdamW", "sgd": "SGD with L2", "noisy-sgd": "noisy SGD with L2", "adamw-start": "AdamW towards its start",
}  # fmt: skip


class MarginRecord(Record):
    """How much worse than the grid's best, nats per token."""

    value: float
    low: float
    high: float = Field(description="with `low`, an interval that allows for not knowing which λ is best")


class GridPoint(Record):
    """One λ of the grid, over its training seeds."""

    weight_decay: float = Field(ge=0)
    diverged: int = Field(description="seeds at which training diverged; with one, the rest is null")
    held_out: EstimateRecord | None = Field(description="mean nats per token; error over seeds and held-out units")
    train_loss: EstimateRecord | None = Field(description="on a fixed sample of the training blocks")
    norm_squared: float | None = Field(description="‖θ‖² at the end, mean over seeds")
    margin: MarginRecord | None
    forgotten: float | None = Field(
        default=None, description="share of the weights that decay alone takes away in the run, 1 − exp(−λΣη/(1 − μ))"
    )
    held_out_bound: float | None = Field(
        description="of the smoothed risk on the held-out contexts, mean over seeds; all cells at once"
    )
    document_bound: float | None = Field(description="the same on new documents; null without whole documents")
    certified: float | None = Field(description="path certificate of a noisy run at this λ; null without one")
    kept: bool = Field(description="whether it cannot be told apart from the best")
    change: EstimateRecord | None = Field(default=None, description="of the held-out loss from λ = 0, in pairs")
    resolved: int = Field(default=0, description="sign of `change` where it is beyond error, all λ at once; else 0")
    detectable: float | None = Field(
        default=None, description="the least change that would have been resolved with probability 80 %"
    )
    train_change: EstimateRecord | None = Field(default=None, description="of the training loss, seed by seed")
    curve: list[tuple[int, float]] = Field(description="(step, held-out nats per token), mean over seeds")


class RuleRecord(Record):
    """What a rule says (see `villani.choice.rules.Rule`), and how it would have done."""

    id: str
    name: str
    weight_decay: float | None = Field(description="null where the rule refuses")
    interval: tuple[float, float] | None
    would_be: float | None = Field(description="what its formula gives where it refuses")
    refused: str | None
    flags: list[str]
    domain: str
    status: Status
    source: str
    judged_at: float | None = Field(description="λ that was trained: its own, or the nearest of the grid")
    held_out: EstimateRecord | None
    margin: MarginRecord | None
    share: float | None = Field(description="training steps that following it takes, over those of the grid")


class ConventionRecord(Record):
    """The recommended decay as another system writes it."""

    name: str
    weight_decay: float | None = Field(description="null where there is no conversion")
    note: str


class OptimizerRecord(Record):
    """What was found with one optimiser."""

    optimizer: OptimizerName
    learning_rate: float
    learning_rate_source: str = Field(default="", description="who says so")
    momentum: float
    temperature: float | None
    meaning: str = Field(description="which λ of F its decay is, THEORY.md §8")
    recommended: float | None = Field(description="λ of the least held-out loss; null if training diverged at every λ")
    kept: list[float] = Field(description="λ that cannot be told apart from the best")
    undecided: bool = Field(default=False, description="whether no λ can be told from another")
    action: str = Field(
        default="", description="what decides: over how many steps decay forgets, beside those of the run"
    )
    effect: str = Field(
        default="",
        description="what decay changed beside none, or which change would have been seen; empty without λ = 0",
    )
    stopping: str = Field(
        default="",
        description="whether to stop earlier does more than any λ; empty where it does not, or nothing is seen",
    )
    least_bound: float | None = Field(description="λ of the least held-out bound")
    memory: float | None = Field(description="steps that weights remember at the recommended λ; null for ever")
    points: list[GridPoint]
    rules: list[RuleRecord]
    conventions: list[ConventionRecord]
    refusals: list[str] = Field(description="certificates that were not given, and why")
    sentence: str


class RecommendationRecord(Record):
    """Which weight decay to use, with its evidence."""

    kind: Literal["recommendation"] = "recommendation"
    model: ModelRecord
    text: TextRecord
    held_out: TextRecord
    parameters: int
    decayed_parameters: int
    steps: int
    batch: int
    block: int
    epochs: float
    seeds: int
    shared_start: bool = Field(
        default=False, description="whether all seeds began at the same weights: what they say is of that start only"
    )
    units: int = Field(description="independent pieces of the held-out text that errors are over")
    unit: Literal["documents", "blocks"]
    level: float = Field(description="of the set of λ that cannot be told apart, and of margins")
    delta: float = Field(description="all bounds of the record hold at once with probability 1 − δ")
    alpha: float = Field(description="prediction smoothing of the bounds")
    log_vocabulary: float = Field(description="ln V, nats: the risk of guessing")
    optimizers: list[OptimizerRecord]
    grid_note: str = Field(
        default="", description="which results this run had told before this grid was asked for; empty where none"
    )
    sentence: str
    provenance: Provenance
    cost: Cost | None = Field(default=None, description="null inside records.json, where every byte is reproducible")


RECORDS = (RecommendationRecord,)
