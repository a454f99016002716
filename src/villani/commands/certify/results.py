"""What certificates of either kind are made of: a scored model, bounds as they stand in JSON, and competitors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from villani.commands.certify.record import BoundRecord, CertificatePoint, CertificateRecord, PassPoint
from villani.commands.certify.settings import CertifySettings
from villani.dynamics.certificate import Moments, token_bound
from villani.errors import InputError
from villani.statistics import Array, mean_per_token
from villani.theory.complexity import Complexity
from villani.theory.constants import Smoothing
from villani.theory.pac_bayes import RiskBound
from villani.work.records import EstimateRecord


@dataclass(frozen=True, eq=False)
class ScoredModel:
    """What the ledger holds of one model: losses on certified and held-out tokens, and the account of its run."""

    certified: list[Moments]
    held_out: list[Moments]
    row: Mapping[str, Array]

    @classmethod
    def of(cls, row: Mapping[str, Array], alphas: Sequence[float]) -> "ScoredModel":
        """Read a row."""
        size = int(row["vocabulary"])
        certified, held_out = (
            [
                Moments(Smoothing(size, alpha), float(first), float(second))
                for alpha, (first, second) in zip(alphas, row[name], strict=True)
            ]
            for name in ("certified_moments", "held_out_moments")
        )
        return cls(certified, held_out, row)

    @property
    def tokens(self) -> int:
        """m."""
        return int(self.row["certified_counts"].sum())

    @property
    def training_loss(self) -> float:
        """Mean nats per certified token, not smoothed."""
        return float(self.row["certified_sums"].sum() / self.tokens)

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

    def certified_bound(self, delta: float) -> float:
        """The least bound without complexity of all α, on certified tokens that it has not seen, each at δ."""
        return min(token_bound(losses, self.tokens, 0.0, delta).value for losses in self.certified)

    def held_out_bound(self, delta: float) -> float:
        """The same on held-out tokens."""
        m = int(self.row["held_out_counts"].sum())
        return min(token_bound(losses, m, 0.0, delta).value for losses in self.held_out)


def competitors(settings: CertifySettings, centre: ScoredModel, held_out_ids: Array) -> dict[str, Any]:
    """What every kind of certificate is held against, by the names of the record's fields."""
    size = int(centre.row["vocabulary"])
    frequencies = np.bincount(held_out_ids.astype(int)) / len(held_out_ids)
    seen = frequencies[frequencies > 0]
    return {
        "prior": _prior_words(settings), "train": settings.train, "tokens": centre.tokens, "vocabulary": size,
        "log_vocabulary": math.log(size), "unigram_entropy": float(-(seen * np.log(seen)).sum()),
        "prior_loss": centre.training_loss, "prior_bound": centre.certified_bound(settings.delta / len(settings.alpha)),
        "prior_held_out_loss": centre.held_out_loss, "delta": settings.delta, "candidates": settings.candidates,
        "alphas": settings.alpha,
    }  # fmt: skip


def bound_record(
    bound: RiskBound, moments: Moments, complexity: Complexity, predictor: str, tokens: int, documents: int,
    monte_carlo: float = 0.0,
) -> BoundRecord:  # fmt: skip
    """A bound and its complexity as they stand in JSON."""
    return BoundRecord.of(
        bound, bits=bound.value / math.log(2),
        nats_per_document=bound.value * (tokens / documents) if documents > 1 else None, complexity=complexity.value,
        complexity_status=complexity.status, monte_carlo=monte_carlo, alpha=moments.smoothing.alpha, bound=bound.name,
        predictor=predictor, hypotheses=f"{complexity.hypotheses}; {bound.hypotheses}",
    )  # fmt: skip


def best_bound(record: CertificateRecord) -> tuple[CertificatePoint | PassPoint, BoundRecord] | None:
    """The least certified risk of all λ and η: they hold at once, so that choosing costs nothing more."""
    bounds: list[tuple[CertificatePoint | PassPoint, BoundRecord | None]]
    if record.prequential:
        bounds = [(point, point.certificate) for point in record.prequential.points]
    else:
        bounds = [(point, bound) for point in record.points for bound in (point.path, point.chain)]
    given = [(point, bound) for point, bound in bounds if bound is not None]
    return min(given, key=lambda pair: pair[1].value, default=None)


def beaten(record: CertificateRecord, bound: BoundRecord) -> list[str]:
    """What a bound is below, in words."""
    compared = {
        "guessing (ln V)": record.log_vocabulary,
        "the unigram entropy of the held-out tokens": record.unigram_entropy,
    }
    return [name for name, value in compared.items() if bound.value < value]


def _prior_words(settings: CertifySettings) -> str:
    match settings.prior:
        case "init":
            return "random weights, drawn without any data"
        case "text":
            return (
                f"random weights trained for {settings.prior_steps} steps of AdamW on the first "
                f"{settings.prior_share:.0%} of the text, which comes before all certified tokens"
            )
        case _:
            return "the given weights, on the user's word that no certified token had a part in them"
