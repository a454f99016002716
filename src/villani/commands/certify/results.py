"""What certificates of either kind are made of: a scored model, its bounds, and the record with its competitors."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from villani.commands.certify.certified_text import Prepared
from villani.commands.certify.record import BoundRecord, CertificatePoint, CertificateRecord, PassPoint
from villani.commands.certify.settings import CertifySettings
from villani.dynamics.certificate import Moments, token_bound
from villani.errors import InputError
from villani.statistics import Array, mean_per_token
from villani.theory.complexity import Complexity
from villani.theory.constants import Smoothing
from villani.theory.pac_bayes import RiskBound
from villani.work.records import EstimateRecord

_PRIORS = {
    "init": "random weights, drawn without any data",
    "text": "random weights trained for {steps} steps of AdamW on the first {share:.0%} of {text}, which comes "
    "before all certified tokens",
    "given": "the given weights, on the user's word that no certified token had a part in them",
}


_DRIFT = (
    "; the reference moves with the gradients of the first {share:.0%} of the text, which comes before all certified "
    "tokens, at the weights that the run passes"
)


@dataclass(frozen=True, eq=False)
class ScoredModel:
    """What the ledger holds of one model: losses on `certified` and `held_out` tokens, and the account of its run.

    Attributes:
        row: of the ledger.
        alphas: that predictions were smoothed with.
    """

    row: Mapping[str, Array]
    alphas: Sequence[float]

    def tokens(self, part: str = "certified") -> int:
        """m."""
        return int(self.row[f"{part}_counts"].sum())

    def losses(self, part: str = "certified") -> list[Moments]:
        """Of the tokens, at every α."""
        smoothings = [Smoothing(int(self.row["vocabulary"]), alpha) for alpha in self.alphas]
        moments = self.row[f"{part}_moments"]
        return [Moments(s, float(one), float(two)) for s, (one, two) in zip(smoothings, moments, strict=True)]

    @property
    def training_loss(self) -> float:
        """Mean nats per certified token, not smoothed."""
        return float(self.row["certified_sums"].sum() / self.tokens())

    @property
    def held_out_loss(self) -> EstimateRecord:
        """Mean nats per held-out token, not smoothed, with its error over blocks.

        Raises:
            InputError: there is one block, which tells no error.
        """
        sums, counts = self.row["held_out_sums"], self.row["held_out_counts"]
        if len(counts) < 2:
            raise InputError("the held-out text has one block: give more, so that its error can be told")
        return EstimateRecord.model_validate(mean_per_token(sums, counts))

    def bound(self, delta: float, part: str = "held_out", tokens: int | None = None) -> float:
        """The least bound without complexity of all α, on tokens that it has not seen, each at δ.

        With `tokens` it is what that would be on so many of them, were their losses alike.
        """
        return min(token_bound(losses, tokens or self.tokens(part), 0.0, delta).value for losses in self.losses(part))

    def certificate(self, complexity: Complexity, delta: float, predictor: str, documents: int) -> BoundRecord:
        """The least bound of all α on certified tokens, each at δ."""
        bounds = [
            (token_bound(losses, self.tokens(), complexity.value, delta), losses.smoothing) for losses in self.losses()
        ]
        records = [bound_record(*one, complexity, predictor, self.tokens(), documents) for one in bounds]
        return min(records, key=lambda bound: bound.value)


def bound_record(
    bound: RiskBound, smoothing: Smoothing, complexity: Complexity, predictor: str, tokens: int, documents: int,
    monte_carlo: float = 0.0,
) -> BoundRecord:  # fmt: skip
    """A bound and its complexity as they stand in JSON."""
    return BoundRecord.of(
        bound, bits=bound.value / math.log(2),
        nats_per_document=bound.value * (tokens / documents) if documents > 1 else None, complexity=complexity.value,
        complexity_status=complexity.status, monte_carlo=monte_carlo, alpha=smoothing.alpha, bound=bound.name,
        predictor=predictor, hypotheses=f"{complexity.hypotheses}; {bound.hypotheses}",
    )  # fmt: skip


def certificate_record(
    settings: CertifySettings, prepared: Prepared, centre: ScoredModel, sentence: Callable[[CertificateRecord], str],
    **own: Any,
) -> CertificateRecord:  # fmt: skip
    """The record of either kind: what is its own, what every certificate is held against, and a sentence."""
    targets, size = prepared.held_out.labels[:, 1:], int(centre.row["vocabulary"])
    held_out = np.asarray(targets[targets >= 0].numpy())
    frequencies = np.bincount(held_out.astype(int)) / len(held_out)
    seen = frequencies[frequencies > 0]
    text, other = prepared.records
    record = CertificateRecord(
        model=prepared.loaded.record, text=text, held_out=other, train=settings.train, tokens=centre.tokens(),
        held_out_tokens=centre.tokens("held_out"),
        prior=_prior(settings), vocabulary=size,
        log_vocabulary=math.log(size), unigram_entropy=float(-(seen * np.log(seen)).sum()),
        prior_loss=centre.training_loss, prior_bound=prior_bound(settings, centre), delta=settings.delta,
        prior_held_out_loss=centre.held_out_loss, candidates=settings.candidates, alphas=settings.alpha, sentence="",
        provenance=prepared.provenance, **own,
    )  # fmt: skip
    return record.model_copy(update={"sentence": sentence(record)})


def _prior(settings: CertifySettings) -> str:
    """Where the prior comes from, in words."""
    steps, share = settings.prior_steps, settings.prior_share
    words = _PRIORS["init" if settings.prior == "text" and not steps else settings.prior]
    text = "the documents in the order drawn" if settings.iid_documents else "the text"
    return words.format(steps=steps, share=share, text=text) + (
        _DRIFT.format(share=share) if settings.prior_drift else ""
    )


def no_complexity(order: str) -> Complexity:
    """Of weights that score a text before they are trained on it; `order`, in words, is the text's."""
    hypotheses = f"{order}, each scored before it is trained on; settings fixed before the text"
    return Complexity("none", "no complexity", 0.0, hypotheses, "certified", "THEORY.md §5 (c″)")


def prior_bound(settings: CertifySettings, centre: ScoredModel) -> float:
    """The certified risk of the centre, or of the frozen start, which has no complexity."""
    return centre.bound(settings.delta / len(settings.alpha), "certified")


def best_bound(record: CertificateRecord) -> tuple[CertificatePoint | PassPoint, BoundRecord] | None:
    """The least certified risk of all λ and η: they hold at once, so that choosing costs nothing more."""
    points = record.prequential.points if record.prequential else record.points
    bounds = [(point, bound) for point in points for bound in point.bounds.values()]
    return min(bounds, key=lambda pair: pair[1].value, default=None)


def beaten(record: CertificateRecord, bound: BoundRecord) -> list[str]:
    """What a bound is below, in words."""
    compared = {
        "guessing (ln V)": record.log_vocabulary,
        "the unigram entropy of the held-out tokens": record.unigram_entropy,
    }
    return [name for name, value in compared.items() if bound.value < value]
