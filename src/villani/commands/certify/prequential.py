"""`villani certify --kind prequential`: one pass over the text at every λ and η, scored before it is trained on.

A stretch of steps is a unit of work, see `work.stretches`: the tokens' ln p in the ledger, weights and the optimiser's
memory in a file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from villani.commands.certify.certified_text import START, Prepared, judge, moments, needs_of, smoothed_losses
from villani.commands.certify.mixture import Rounds, check_independent, mixture_record, mixture_sentence
from villani.commands.certify.record import CertificateRecord, GainRecord, PassPoint, PrequentialRecord, SegmentRecord
from villani.commands.certify.results import (
    ScoredModel,
    beaten,
    best_bound,
    certificate_record,
    no_complexity,
    prior_bound,
)
from villani.commands.certify.settings import CertifySettings
from villani.commands.subject import outputs
from villani.dynamics.certificate import gain_bound
from villani.dynamics.chain import matching
from villani.dynamics.prequential import Learner, UpdateRule, advance, step_edges
from villani.outwards import lower, upper
from villani.statistics import Array
from villani.theory.constants import Smoothing
from villani.work.budget import Needs, Shape
from villani.work.stretches import Enough, stretches
from villani.work.team import Rows
from villani.work.work import Work

SEGMENTS = 32
_ITERATES = "the weights from before each batch on the blocks of that batch, on average over the pass"
_ORDERS = ("blocks in the text's order", "blocks of whole documents in an order drawn beforehand")  # iid_documents


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass, or the frozen start's.

    Attributes:
        logs: (m,) ln p of the certified tokens under the weights from before their batch.
        clipped: share of steps whose gradient was.
        moved: ‖θ − centre‖ at the end.
        scored: on the certified tokens as `logs`, on held-out text at the end.
        rounds: rows of `Rounds.score`, where documents are taken as independent.
    """

    logs: Array
    clipped: float
    moved: float
    scored: ScoredModel
    rounds: list[Rows]


def certify(settings: CertifySettings, prepared: Prepared, work: Work) -> tuple[CertificateRecord, int]:
    """Pass over the text once at every λ and η from the centre, where the model is; the record, and tokens seen."""
    model, states = prepared.loaded.model.eval(), work.folder("states")
    tensors: list[torch.Tensor] = [p for _, p in matching(model, settings.train)]
    rounds = Rounds.of(settings, prepared) if settings.iid_documents else None
    edges = step_edges(len(prepared.certified.ids), settings.batch, rounds.edges if rounds else ())
    work.stage("scoring the frozen start", START)
    start = _pass(settings, prepared, edges, None, states / "start", work.scope("start"))
    neighbours = check_independent(prepared, start.logs) if rounds else None
    passes: list[tuple[UpdateRule, Pass]] = []
    rules = settings.rules()
    for number, rule in enumerate(rules):
        words = f"λ = {rule.weight_decay:g}, η = {rule.rate:g} ({number + 1} of {len(rules)})"
        work.stage(f"{words}: one pass over the text", _stage(number))
        learner = Learner(rule, tensors)
        kept = (rounds, work.folder(_folder(number))) if rounds else None
        one = _pass(settings, prepared, edges, learner, states / f"pass-{number}", work.scope(f"pass/{number}"), kept)
        passes.append((rule, one))
    counts, documents = prepared.certified.counts, prepared.records[0].documents
    level = settings.delta / settings.candidates / len(passes) / len(settings.alpha)

    complexity = no_complexity(_ORDERS[settings.iid_documents])

    def point(number: int, rule: UpdateRule, one: Pass) -> PassPoint:
        own = one.scored
        bound = own.certificate(complexity, level, _ITERATES, documents)
        gains = [_gain(one, start, losses.smoothing, level, complexity.hypotheses) for losses in own.losses()]
        # the last weights are one more predictor on a text of its own: at all of δ, as the start's certificate
        share = settings.delta / settings.candidates / len(settings.alpha)
        return PassPoint(
            weight_decay=rule.weight_decay, learning_rate=rule.rate, certificate=bound,
            below_start=prior_bound(settings, start.scored) - bound.value, gain=max(gains, key=lambda g: g.value),
            loss=own.training_loss, moved=one.moved, clipped=one.clipped, held_out_loss=own.held_out_loss,
            held_out_bound=own.bound(share), held_out_bound_of_as_many=own.bound(share, tokens=own.tokens()),
            mixture=None if rounds is None or neighbours is None else mixture_record(
                settings, prepared, rounds, one.rounds, start.logs, neighbours, work.folder(_folder(number)), level
            ),
        )  # fmt: skip

    prequential = PrequentialRecord.of(
        settings, steps=len(edges) - 1, points=[point(number, *one) for number, one in enumerate(passes)],
        segments=_segments(counts, edges, start, [one for _, one in passes]),
    )  # fmt: skip
    record = certificate_record(
        settings, prepared, start.scored, sentence, moving=sum(t.numel() for t in tensors), points=[],
        spending={"certificate of the iterates": level}, prequential=prequential,
    )  # fmt: skip
    return record, int(counts.sum()) * len(rules)


def _stage(number: int) -> str:
    return f"passes over the text: {number}"


def _folder(number: int) -> str:
    return f"mixture-{number}"


def needs(settings: CertifySettings, prepared: Prepared) -> Needs:
    """A gradient over every block at every λ and η; a third of one for the frozen start and for held-out blocks.

    Iterates of a mixture are scored once more on their rounds and on held-out blocks, and kept.
    """
    passes, certified = len(settings.weight_decay) * len(settings.learning_rate), len(prepared.certified.ids)
    rounds = len(Rounds.of(settings, prepared).shares) if settings.iid_documents else 0  # refused before any work
    each = settings.block * (certified + (len(prepared.held_out.ids) * (1 + rounds) + certified * bool(rounds)) / 3)
    stages = {_stage(number): each for number in range(passes)}
    gradients = needs_of(settings, prepared, stages, vectors=7, kept=6 + rounds * passes)
    itemsize = Shape.of(prepared.loaded.model).itemsize
    return replace(gradients, disk=gradients.disk + itemsize * certified * settings.block * (passes + 1.0))


def _pass(
    settings: CertifySettings, prepared: Prepared, edges: Sequence[int], learner: Learner | None, states: Path,
    work: Work, kept: tuple[Rounds, Path] | None = None,
) -> Pass:  # fmt: skip
    """A pass to its end, or taken up where it was stopped; the model is left at the centre, without a learner too.

    With `kept` rounds, a stretch ends where one ends, and weights at its beginning are scored and kept in a folder.
    """
    blocks, model = prepared.certified, prepared.loaded.model
    steps = len(edges) - 1
    breaks = set(kept[0].edges) if kept else set()

    def stretch(start: int, _: Rows | None, enough: Enough) -> dict[str, Array]:
        row: dict[str, Array] = {}
        if kept and edges[start] in breaks:
            row = kept[0].score(edges[start], settings, prepared, kept[1])
        part = advance(
            model, learner, blocks.ids, blocks.labels, start=start, edges=edges, micro_tokens=settings.micro_tokens,
            enough=lambda step: enough(step) or edges[step] in breaks,
        )  # fmt: skip
        row |= {
            "stop": np.array(part.stop), "logs": part.logs, "clipped": np.array(part.clipped),
            "state": np.zeros(0, dtype=np.uint8),
        }  # fmt: skip
        if part.stop == steps:
            work.stage("losses on held-out blocks")
            row |= judge(settings, prepared.loaded, work, held_out=prepared.held_out)
            row["moved"] = np.array(learner.moved() if learner else 0.0)
        return row

    rows = stretches(work, states, steps, learner.state if learner else [], stretch)
    if learner:
        learner.reset()
    logs = np.concatenate([row["logs"] for row in rows]).astype(np.float64)
    row = dict(rows[-1]) | moments("certified", logs, blocks.counts, settings.alpha, outputs(model))
    clipped = sum(int(row["clipped"]) for row in rows) / steps
    scored = ScoredModel(row, settings.alpha)
    return Pass(logs, clipped, float(rows[-1]["moved"]), scored, [row for row in rows if "member" in row])


def _gain(one: Pass, start: Pass, smoothing: Smoothing, level: float, hypotheses: str) -> GainRecord:
    after, before = (smoothed_losses(scores.logs, smoothing.alpha, smoothing.vocabulary) for scores in (one, start))
    difference = after - before
    bound = gain_bound(float(difference.mean()), float((difference**2).mean()), len(difference), smoothing, level)
    return GainRecord(
        value=-bound.value, empirical=-bound.empirical, alpha=smoothing.alpha, choice=bound.choice, delta=level,
        about=f"risk of the frozen start less that of {_ITERATES}; {bound.about}",
        hypotheses=f"{hypotheses}; {bound.hypotheses}",
    )  # fmt: skip


def _segments(counts: Array, edges: Sequence[int], start: Pass, passes: Sequence[Pass]) -> list[SegmentRecord]:
    """Mean losses along the pass, in at most `SEGMENTS` parts of whole steps."""
    steps = len(edges) - 1
    ends = np.unique(np.linspace(0, steps, min(SEGMENTS, steps) + 1).round().astype(int))
    tokens = np.concatenate([[0], np.cumsum(counts)])[np.asarray(edges)[ends]]
    return [
        SegmentRecord(
            tokens=int(high), start=float(-start.logs[low:high].mean()),
            iterates=[float(-one.logs[low:high].mean()) for one in passes],
        )
        for low, high in pairwise(tokens) if high > low
    ]  # fmt: skip


def sentence(record: CertificateRecord) -> str:
    """The best pass in words, beside the frozen start."""
    best = best_bound(record)
    assert best is not None
    point, bound = best
    assert isinstance(point, PassPoint)
    gain, names = point.gain, beaten(record, bound)
    words = (
        f"With probability {1 - record.delta:g} the risk of {bound.predictor}, is at most "
        f"{upper(bound.value, places=3)} nats per token ({upper(bound.bits, places=3)} bits; λ = "
        f"{point.weight_decay:g}, η = {point.learning_rate:g}, {bound.status}): empirical {bound.empirical:.3f} and "
        f"{upper(bound.excess, places=3)} for chance over {record.tokens:,} tokens, without complexity. "
        + (f"It is below {' and below '.join(names)}. " if names else "It is vacuous: guessing does better. ")
    )
    apart = (
        f"{upper(record.prior_bound, places=3)}, {lower(point.below_start, places=3)} higher. " if point.below_start > 0
        else f"lower, {upper(record.prior_bound, places=3)}: by {upper(-point.below_start, places=3)}. "
    )  # fmt: skip
    words += f"The frozen start's certificate on the same tokens is {apart}"
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
    return f"{words} {mixture_sentence(record)}".strip()
