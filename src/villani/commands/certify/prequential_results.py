"""From the scores of passes to certificates without complexity: how δ is spent, the bounds, the words about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from villani.commands.certify.certified_text import moments, smoothed_losses
from villani.commands.certify.record import (
    BoundRecord,
    CertificateRecord,
    GainRecord,
    PassPoint,
    PrequentialRecord,
    SegmentRecord,
)
from villani.commands.certify.results import Evaluation, bound_record, competitors
from villani.dynamics.certificate import gain_bound, token_bound
from villani.dynamics.prequential import Rule, steps_of
from villani.outwards import lower, upper
from villani.statistics import Array
from villani.theory.complexity import Complexity
from villani.theory.constants import Smoothing
from villani.work.records import ModelRecord, Provenance, TextRecord

if TYPE_CHECKING:
    from villani.commands.certify.prequential import PrequentialSettings

SEGMENTS = 32
_ITERATES = "the weights from before each batch on the blocks of that batch, on average over the pass"
_NONE = Complexity(
    "none", "no complexity", 0.0,
    "blocks in the text's order, each scored before it is trained on; settings fixed before the text", "certified",
    "THEORY.md §5 (c″)",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass, or the frozen start's.

    Attributes:
        logs: (m,) ln p of the certified tokens under the weights from before their batch.
        clipped: share of steps whose gradient was.
        moved: ‖θ − centre‖ at the end.
        last: moments of the last weights on held-out text.
    """

    logs: Array
    clipped: float
    moved: float
    last: Mapping[str, Array]


def assemble(
    settings: "PrequentialSettings", model: ModelRecord, texts: tuple[TextRecord, TextRecord], moving: int,
    vocabulary: int, counts: Array, start: Pass, passes: Sequence[tuple[Rule, Pass]], *, held_out_ids: Array,
    provenance: Provenance,
) -> CertificateRecord:  # fmt: skip
    """The record: every λ and η, the frozen start that they are held against, and a sentence."""

    def evaluation(found: Pass) -> Evaluation:
        row = dict(found.last) | moments("certified", found.logs, counts, settings.alpha, vocabulary)
        return Evaluation.of(row, settings.alpha)

    compared = competitors(settings, evaluation(start), held_out_ids)
    level = settings.delta / settings.candidates / len(passes) / len(settings.alpha)
    points = [
        _point(settings, rule, found, evaluation(found), start, level, compared["prior_bound"], texts[0].documents)
        for rule, found in passes
    ]
    record = CertificateRecord(
        model=model, text=texts[0], held_out=texts[1], moving=moving,
        spending={"certificate of the iterates": level},
        points=[], sentence="", provenance=provenance,
        prequential=PrequentialRecord(
            direction=settings.direction, towards=settings.towards, batch=settings.batch,
            steps=steps_of(len(counts), settings.batch), warm_up=settings.warm_up, clip=settings.clip, points=points,
            segments=_segments(counts, settings.batch, start, [found for _, found in passes]),
        ),
        **compared,
    )  # fmt: skip
    return record.model_copy(update={"sentence": sentence(record)})


def _point(
    settings: "PrequentialSettings", rule: Rule, found: Pass, evaluation: Evaluation, start: Pass, level: float,
    prior_bound: float, documents: int,
) -> PassPoint:  # fmt: skip
    m = evaluation.tokens
    bounds: list[BoundRecord] = []
    gains: list[GainRecord] = []
    for each in evaluation.certified:
        bounds.append(
            bound_record(token_bound(each, m, 0.0, level), each, _NONE, _ITERATES, m, documents)
        )  # fmt: skip
        gains.append(_gain(found, start, each.smoothing, level))
    bound = min(bounds, key=lambda b: b.value)
    # the last weights are one more predictor on a text of its own: at all of δ, as the start's certificate
    share = settings.delta / settings.candidates / len(settings.alpha)
    held = min(token_bound(f, evaluation.held_out_tokens, 0.0, share).value for f in evaluation.held_out)
    return PassPoint(
        weight_decay=rule.weight_decay, learning_rate=rule.rate, certificate=bound,
        below_start=prior_bound - bound.value, gain=max(gains, key=lambda g: g.value), loss=evaluation.training_loss,
        moved=found.moved, clipped=found.clipped, held_out_loss=evaluation.held_out_loss(), held_out_bound=held,
    )  # fmt: skip


def _gain(found: Pass, start: Pass, smoothing: Smoothing, level: float) -> GainRecord:
    after, before = (smoothed_losses(one.logs, smoothing.alpha, smoothing.vocabulary) for one in (found, start))
    difference = after - before
    bound = gain_bound(
        float(difference.mean()), float((difference**2).mean()), len(difference), smoothing, level
    )  # fmt: skip
    return GainRecord(
        value=-bound.value, empirical=-bound.empirical, alpha=smoothing.alpha, choice=bound.choice, delta=level,
        about=f"risk of the frozen start less that of {_ITERATES}; {bound.about}",
        hypotheses=f"{_NONE.hypotheses}; {bound.hypotheses}",
    )  # fmt: skip


def _segments(counts: Array, batch: int, start: Pass, passes: Sequence[Pass]) -> list[SegmentRecord]:
    """Mean losses along the pass, in at most `SEGMENTS` parts of whole steps."""
    steps = steps_of(len(counts), batch)
    ends = np.unique(np.linspace(0, steps, min(SEGMENTS, steps) + 1).round().astype(int))
    edges = np.concatenate([[0], np.cumsum(counts)])[np.minimum(ends * batch, len(counts))]
    return [
        SegmentRecord(
            tokens=int(high), start=float(-start.logs[low:high].mean()),
            iterates=[float(-one.logs[low:high].mean()) for one in passes],
        )
        for low, high in pairwise(edges) if high > low
    ]  # fmt: skip


def best_pass(record: CertificateRecord) -> PassPoint | None:
    """The least certificate of all λ and η: they hold at once, so that choosing costs nothing more."""
    points = record.prequential.points if record.prequential else []
    return min(points, key=lambda p: p.certificate.value, default=None)


def sentence(record: CertificateRecord) -> str:
    """The best pass in words, beside the frozen start."""
    point = best_pass(record)
    assert point is not None
    bound, gain = point.certificate, point.gain
    beaten = [
        name
        for name, value in (
            ("guessing (ln V)", record.log_vocabulary),
            ("the unigram entropy of the held-out tokens", record.unigram_entropy),
        )
        if bound.value < value
    ]  # fmt: skip
    words = (
        f"With probability {1 - record.delta:g} the risk of {bound.predictor}, is at most "
        f"{upper(bound.value, places=3)} nats per token ({upper(bound.bits, places=3)} bits; λ = "
        f"{point.weight_decay:g}, η = {point.learning_rate:g}, {bound.status}): empirical {bound.empirical:.3f} and "
        f"{upper(bound.excess, places=3)} for chance over {record.tokens:,} tokens, without complexity. "
        + (f"It is below {' and below '.join(beaten)}. " if beaten else "It is vacuous: guessing does better. ")
    )
    if point.below_start > 0:
        words += (
            f"The frozen start's certificate on the same tokens is {upper(record.prior_bound, places=3)}, "
            f"{lower(point.below_start, places=3)} higher. "
        )
    else:
        words += (
            f"The frozen start's certificate on the same tokens is lower, {upper(record.prior_bound, places=3)}: by "
            f"{upper(-point.below_start, places=3)}. "
        )
    if gain.value > 0:
        words += (
            f"A certified gain from training of {lower(gain.value, places=3)} nats per token: by the paired losses and "
            f"with probability {1 - record.delta:g}, the iterates' risk is lower than the start's by that much."
        )
    else:
        words += (
            f"No gain from training is certified: the paired losses differ by {gain.empirical:.3f} nats, and the "
            f"bound allows {lower(gain.value, places=3)}."
        )
    return words
