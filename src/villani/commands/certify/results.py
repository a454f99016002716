"""From what chains left in the ledger to certificates: the spending of δ, the bounds, and the words about them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from villani.commands.certify.record import BoundRecord, CertificatePoint, CertificateRecord
from villani.dynamics.certificate import Moments, Plan, chain_complexity, token_bound
from villani.errors import InputError
from villani.outwards import upper
from villani.statistics import Array, Estimate, ratio_estimates
from villani.theory.complexity import Complexity, path
from villani.theory.constants import Smoothing
from villani.theory.pac_bayes import RiskBound, monte_carlo, weaken
from villani.work.records import EstimateRecord, ModelRecord, Provenance, TextRecord

if TYPE_CHECKING:
    from villani.commands.certify.certified_text import Asked
    from villani.commands.certify.run import CertifySettings

CONFIDENCE = 0.95
_DRAWN = "the one θ that this run ended at"
_LAW = "a fresh draw of θ from the law that such runs end with"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What the ledger holds of one model: losses on certified and held-out tokens, and the account of its run."""

    certified: list[Moments]
    held_out: list[Moments]
    row: Mapping[str, Array]

    @classmethod
    def of(cls, row: Mapping[str, Array], alphas: Sequence[float]) -> "Evaluation":
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
    def held_out_tokens(self) -> int:
        """Predicted tokens of the held-out text."""
        return int(self.row["held_out_counts"].sum())

    @property
    def training_loss(self) -> float:
        """Mean nats per certified token, not smoothed."""
        return float(self.row["certified_sums"].sum() / self.tokens)

    def held_out_loss(self) -> EstimateRecord:
        """Mean nats per held-out token, not smoothed, with its error over blocks."""
        sums, counts = self.row["held_out_sums"], self.row["held_out_counts"]
        if len(counts) < 2:
            raise InputError("the held-out text has one block: give more, so that its error can be told")
        value, sem = ratio_estimates(sums[:, None], counts)
        found = Estimate(float(value[0]), float(sem[0]), len(counts), "statistical")
        return EstimateRecord(
            value=found.value, sem=found.sem, n=found.n, interval=found.interval(CONFIDENCE), status=found.status
        )


@dataclass(frozen=True)
class Spending:
    """How δ is shared out at one λ and one α, so that everything in a record holds at once with probability ≥ 1 − δ."""

    path: float
    chain: float
    monte_carlo: float
    measured_complexity: float

    @classmethod
    def of(cls, delta: float, decays: int, alphas: int, chains: int) -> "Spending":
        """All of δ for the path bound of one chain; with more chains half of it for c4."""
        each = delta / decays / alphas
        if chains == 1:
            return cls(each, 0.0, 0.0, 0.0)
        return cls(each / 2, each / 4, each / 8, each / 8)


def assemble(
    settings: "CertifySettings", model: ModelRecord, text: TextRecord, held_out: TextRecord, moving: int,
    centre: Evaluation, runs: Mapping[float, Sequence[Evaluation]], *, held_out_ids: Array, provenance: Provenance,
) -> CertificateRecord:  # fmt: skip
    """The record: every λ, what it competes with, and a sentence."""
    share = settings.delta / settings.candidates
    spending = Spending.of(share, len(settings.weight_decay), len(settings.alpha), settings.chains)
    points = [_point(settings, decay, found, spending, text.documents) for decay, found in runs.items()]
    record = CertificateRecord(
        model=model, text=text, held_out=held_out, moving=moving,
        spending={
            "path certificate": spending.path, "c4 certificate": spending.chain,
            "Monte Carlo of its empirical risk": spending.monte_carlo,
            "Monte Carlo of its complexity": spending.measured_complexity,
        },
        points=points, sentence="", provenance=provenance, **competitors(settings, centre, held_out_ids),
    )  # fmt: skip
    return record.model_copy(update={"sentence": sentence(record)})


def competitors(settings: "Asked", centre: Evaluation, held_out_ids: Array) -> dict[str, Any]:
    """What every kind of certificate is held against, by the names of the record's fields."""
    size = int(centre.row["vocabulary"])
    prior = min(
        token_bound(f, centre.tokens, 0.0, settings.delta / len(settings.alpha)).value for f in centre.certified
    )
    frequencies = np.bincount(held_out_ids.astype(int)) / len(held_out_ids)
    seen = frequencies[frequencies > 0]
    return {
        "prior": _prior_words(settings), "train": settings.train, "tokens": centre.tokens, "vocabulary": size,
        "log_vocabulary": math.log(size), "unigram_entropy": float(-(seen * np.log(seen)).sum()),
        "prior_loss": centre.training_loss, "prior_bound": prior, "prior_held_out_loss": centre.held_out_loss(),
        "delta": settings.delta, "candidates": settings.candidates, "alphas": settings.alpha,
    }  # fmt: skip


def best_bound(record: CertificateRecord) -> tuple[CertificatePoint, BoundRecord] | None:
    """The least certified risk of all λ: they hold at once, so that choosing costs nothing more."""
    found = [(point, bound) for point in record.points for bound in (point.path, point.chain) if bound is not None]
    return min(found, key=lambda pair: pair[1].value, default=None)


def sentence(record: CertificateRecord) -> str:
    """The best certificate in words, and what it beats."""
    best = best_bound(record)
    if best is None:
        return "No certificate was given: " + "; ".join(r for p in record.points for r in p.refusals) + "."
    point, bound = best
    beaten = [
        name
        for name, value in (
            ("guessing (ln V)", record.log_vocabulary),
            ("the unigram entropy of the held-out tokens", record.unigram_entropy),
            ("the prior's centre, certified", record.prior_bound),
        )
        if bound.value < value
    ]  # fmt: skip
    beats = f"It is below {' and below '.join(beaten)}" if beaten else "It beats nothing"
    if "guessing (ln V)" not in beaten:
        beats += ": it is vacuous, since guessing does better"

    def at_most(nats: float) -> str:
        return upper(nats, places=3)

    return (
        f"With probability {1 - record.delta:g} the risk of {bound.predictor} is at most {at_most(bound.value)} nats "
        f"per token ({at_most(bound.bits)} bits; λ = {point.weight_decay:g}, {bound.status}): empirical "
        f"{bound.empirical:.3f}, of which {at_most(bound.monte_carlo)} is Monte Carlo, and {at_most(bound.excess)} for "
        f"a complexity of {upper(bound.complexity, places=0)} nats over {record.tokens:,} tokens. {beats}; ln V = "
        f"{record.log_vocabulary:.3f}, the unigram entropy {record.unigram_entropy:.3f}, the centre's own certificate "
        f"{at_most(record.prior_bound)}, and the held-out bound at the same δ {at_most(point.held_out_bound)}."
    )


def _point(
    settings: "CertifySettings", decay: float, runs: Sequence[Evaluation], spending: Spending, documents: int
) -> CertificatePoint:
    plan, first = settings.plan(decay), runs[0]
    refusals: list[str] = []
    drawn = path(float(first.row["log_ratio"]), settings.steps)
    paths = [
        bound_record(
            token_bound(f, first.tokens, drawn.value, spending.path), f, drawn, _DRAWN, first.tokens, documents
        )
        for f in first.certified
    ]
    chain = None
    if settings.chains == 1:
        refusals.append("c4: one chain tells nothing of the law that it is drawn from; use --chains")
    else:
        try:
            chain = _chain_bound(plan, runs, spending, documents)
        except InputError as error:
            refusals.append(str(error))
    level = settings.delta / len(settings.weight_decay) / len(settings.alpha)
    held = min(token_bound(f, first.held_out_tokens, 0.0, level).value for f in first.held_out)
    squares = first.row["squares"]
    noise = 0.0
    for kept, extra in zip(plan.contractions, plan.noises, strict=True):
        noise = kept**2 * noise + extra**2
    noise = plan.variance if plan.start == "prior" else noise
    certified = plan.descent is not None and plan.clip is not None and plan.start == "prior"
    return CertificatePoint(
        weight_decay=decay, chains=len(runs), log_ratio=float(first.row["log_ratio"]),
        path_cost=float((plan.rates**2 * squares / (2 * plan.noises**2)).sum()),
        clip_complexity=plan.descent.clipped(plan.clip).value if certified and plan.descent and plan.clip else None,
        noise=noise**0.5, moved=float(first.row["moved"]), clipped=float(first.row["clipped"]),
        training_loss=first.training_loss, held_out_loss=first.held_out_loss(), held_out_bound=held,
        path=min(paths, key=lambda b: b.value), chain=chain, refusals=refusals,
    )  # fmt: skip


def _chain_bound(plan: Plan, runs: Sequence[Evaluation], spending: Spending, documents: int) -> BoundRecord:
    """c4: the mean risk of J chains; its two limits and the second moment each get a third of the Monte-Carlo δ."""
    complexity = chain_complexity(plan, [run.row["squares"] for run in runs], spending.measured_complexity)
    found = []
    for index in range(len(runs[0].certified)):
        of = [run.certified[index] for run in runs]
        smoothing = of[0].smoothing
        first = np.array([moments.first for moments in of])
        level, span, least = spending.monte_carlo / 3, smoothing.oscillation, smoothing.lowest
        limit = monte_carlo(first, level, span=span, lowest=least)
        lower = (
            least + smoothing.highest - monte_carlo(least + smoothing.highest - first, level, span=span, lowest=least)
        )
        squares = np.array([m.second for m in of])  # of losses on both sides of 0, of which the positive reach further
        second = monte_carlo(squares, level, span=smoothing.highest**2, lowest=0.0)
        # V̂ = E ℓ² − 2cE ℓ + c² with 0 ≤ c ≤ highest: at most what these moments give for every such c
        moments = Moments(smoothing, limit, second + 2 * smoothing.highest * (limit - lower))
        more = spending.monte_carlo + spending.measured_complexity
        bound = weaken(token_bound(moments, runs[0].tokens, complexity.value, spending.chain), "statistical", more)
        found.append(
            bound_record(bound, moments, complexity, _LAW, runs[0].tokens, documents, limit - float(first.mean()))
        )  # fmt: skip
    return min(found, key=lambda b: b.value)


def bound_record(
    bound: RiskBound, moments: Moments, complexity: Complexity, predictor: str, tokens: int, documents: int,
    monte_carlo: float = 0.0,
) -> BoundRecord:  # fmt: skip
    """A bound and its complexity as they stand in JSON."""
    each = tokens / documents if documents > 1 else None
    return BoundRecord(
        value=bound.value, bits=bound.value / math.log(2),
        nats_per_document=bound.value * each if each else None, empirical=bound.empirical, excess=bound.excess,
        complexity=complexity.value, complexity_status=complexity.status, monte_carlo=monte_carlo,
        alpha=moments.smoothing.alpha, bound=bound.name, choice=bound.choice, predictor=predictor, about=bound.about,
        hypotheses=f"{complexity.hypotheses}; {bound.hypotheses}", delta=bound.delta, status=bound.status,
    )  # fmt: skip


def _prior_words(settings: "Asked") -> str:
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
