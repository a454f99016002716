"""The records of `villani certify`: certified risks, what they are made of, and what they compete with."""

from typing import Literal

from pydantic import Field

from villani.work.records import Cost, EstimateRecord, ModelRecord, Provenance, Record, Status, TextRecord


class BoundRecord(Record):
    """A certified risk in nats per token; it is empirical + excess."""

    value: float
    bits: float = Field(description="the same in bits per token")
    nats_per_document: float | None = Field(description="null where the text is one document")
    empirical: float = Field(description="smoothed empirical risk; with Monte Carlo, its upper confidence limit")
    excess: float = Field(description="what the bound adds")
    complexity: float = Field(description="KL, or the log-ratio of the path, nats")
    complexity_status: Status
    monte_carlo: float = Field(description="what Monte Carlo added to the mean empirical risk; 0 where all is computed")
    alpha: float = Field(description="prediction smoothing")
    bound: str = Field(description="linear | Bernstein")
    choice: float | None = Field(description="β or t, chosen from a grid that the bound has paid for")
    predictor: str = Field(description="whose risk it is")
    about: str = Field(description="what the risk is the mean over")
    hypotheses: str
    delta: float
    status: Status


_AS_MANY = "what held_out_bound would be on as many tokens as are certified, were their losses alike; no certificate"


class DriftRecord(Record):
    """A reference that moves with gradients on the prior's text, THEORY.md §5 (c′)."""

    blocks: int = Field(description="of the prior's text")
    batch: int | None = Field(description="blocks in a gradient of the reference; null for all")
    every: int = Field(description="steps from one to the next")
    still_cost: float = Field(description="Σ η²‖g‖²/(2τ²): what path_cost would be on this path, were h = 0")


class CertificatePoint(Record):
    """One λ: the certificates of its runs, and what they compete with."""

    weight_decay: float = Field(ge=0)
    chains: int
    log_ratio: float = Field(description="ln dQ/dP of the first chain's path")
    path_cost: float = Field(description="Σ η²‖g − h‖²/(2τ²), what the log-ratio is on average")
    drift: DriftRecord | None = Field(default=None, description="null where the reference stands still, h = 0")
    clip_complexity: float | None = Field(description="c4 from the clip alone, certified; null without one")
    noise: float = Field(description="standard deviation of a coordinate at the end, were there no directions")
    moved: float = Field(description="‖w‖ at the end of the first chain, in units of its scale")
    clipped: float = Field(description="share of steps that were clipped, first chain")
    training_loss: float = Field(description="of the first chain's last iterate on the certified tokens, not smoothed")
    held_out_loss: EstimateRecord = Field(description="of the same on held-out text, not smoothed")
    held_out_bound: float = Field(description="on held-out text at the same δ, by the same bounds without complexity")
    held_out_bound_of_as_many: float | None = Field(default=None, description=_AS_MANY)
    path: BoundRecord | None = Field(description="about the first chain's last iterate itself")
    chain: BoundRecord | None = Field(description="c4: about a fresh draw from the law of the last iterate")
    refusals: list[str] = Field(description="certificates that were not given, and the hypothesis that failed")

    @property
    def bounds(self) -> dict[str, BoundRecord]:
        """Those that were given, by name."""
        return {name: bound for name, bound in (("path", self.path), ("c4", self.chain)) if bound is not None}


class GainRecord(Record):
    """What training certifiably took off the risk, from paired losses of the iterates and of the frozen start."""

    value: float = Field(description="lower bound, nats per token; negative where none is certified")
    empirical: float = Field(description="mean difference of the smoothed losses")
    alpha: float = Field(description="prediction smoothing of both")
    choice: float | None = Field(description="t, chosen from a grid that the bound has paid for")
    delta: float
    about: str
    hypotheses: str


class MixtureRecord(Record):
    """The mixture of K iterates, each scored on a round of whole documents before it was trained on them."""

    certificate: BoundRecord = Field(description="risk on a new document, nats per token of its mean; at δ of its own")
    start_bound: float = Field(description="of the frozen start on the same documents, at δ")
    documents: int = Field(description="n, that it is from")
    shares: list[float] = Field(description="of the K iterates: of the documents that each was scored on")
    neighbours: EstimateRecord = Field(
        description="rank correlation of documents that are neighbours in the text, by the frozen start's losses; "
        "about 0 of independent ones"
    )
    repeated: int = Field(description="documents that are copies of another")
    held_out_documents: int
    held_out_loss: EstimateRecord = Field(description="of the mixture on held-out documents, smoothed; mean of theirs")
    held_out_iterates: float = Field(description="mean of the iterates' losses on the same: never less (Jensen)")
    held_out_bound: float = Field(description="certified risk of the mixture from the held-out documents alone, at δ")
    folder: str = Field(description="of the iterates, in the run directory; see `villani.Mixture`")


class PassPoint(Record):
    """One λ and η: a pass over the text, every block scored before it was trained on."""

    weight_decay: float = Field(ge=0)
    learning_rate: float = Field(gt=0)
    certificate: BoundRecord = Field(description="about the iterates, each on its own next blocks; complexity 0")
    below_start: float = Field(description="prior_bound − certificate, nats: two upper bounds, each at its own δ")
    gain: GainRecord
    loss: float = Field(description="of the blocks before they were trained on, mean nats per token, not smoothed")
    moved: float = Field(description="‖θ − centre‖ at the end of the pass")
    clipped: float = Field(description="share of steps whose gradient was clipped")
    held_out_loss: EstimateRecord = Field(description="of the last weights on held-out text, not smoothed")
    held_out_bound: float = Field(description="of the same at the same δ: a bound for the last weights")
    held_out_bound_of_as_many: float | None = Field(default=None, description=_AS_MANY)
    mixture: MixtureRecord | None = Field(default=None, description="null but with --iid-documents")

    @property
    def bounds(self) -> dict[str, BoundRecord]:
        """The one that there is of the iterates."""
        return {"iterates": self.certificate}


class SegmentRecord(Record):
    """Some consecutive tokens of the pass."""

    tokens: int = Field(description="certified tokens up to its end")
    start: float = Field(description="mean loss of the frozen start, not smoothed")
    iterates: list[float] = Field(description="of every point's iterates")


class PrequentialRecord(Record):
    """One pass in the text's order, THEORY.md §5 (c″)."""

    direction: str
    towards: Literal["centre", "zero"] = Field(description="what decay pulls towards")
    batch: int = Field(description="consecutive blocks in a step")
    steps: int
    warm_up: int
    clip: float | None
    points: list[PassPoint]
    segments: list[SegmentRecord]


class CertificateRecord(Record):
    """PAC-Bayes certificates of noisy training, THEORY.md §5 and docs/certificates.md."""

    kind: Literal["certificate"] = "certificate"
    model: ModelRecord
    text: TextRecord
    held_out: TextRecord
    prior: str = Field(description="the prior's centre, and why the certified tokens had no part in it")
    train: str = Field(description="which tensors move")
    moving: int = Field(description="k, coordinates that move; the rest stays at the centre")
    tokens: int = Field(description="m, certified tokens")
    held_out_tokens: int | None = Field(default=None, description="that the held-out bounds are of")
    vocabulary: int
    log_vocabulary: float = Field(description="ln V, nats: the risk of guessing")
    unigram_entropy: float = Field(description="of the held-out tokens, by their own frequencies, nats")
    prior_loss: float = Field(description="of the centre on the certified tokens, not smoothed")
    prior_bound: float = Field(description="certified risk of the centre, at δ, without complexity")
    prior_held_out_loss: EstimateRecord
    delta: float
    spending: dict[str, float] = Field(description="what each part of δ is for, at one λ and one α")
    candidates: int = Field(description="size of the grid of settings that these were chosen from; δ is divided by it")
    alphas: list[float]
    points: list[CertificatePoint] = Field(description="of noisy runs; empty with `prequential`")
    prequential: PrequentialRecord | None = Field(default=None, description="null but with --kind prequential")
    sentence: str
    provenance: Provenance
    cost: Cost | None = Field(default=None, description="null inside records.json, where every byte is reproducible")


RECORDS = (CertificateRecord,)
