"""`villani certify --iid-documents`: iterates of a pass, each scored on a round of whole documents that come next.

An iterate is kept in a file, and its scores in the ledger; the mixture is never run here: `dynamics.mixture.Mixture`
runs it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from torch import nn

from villani.commands.certify.certified_text import Prepared, smoothed_losses
from villani.commands.certify.record import BoundRecord, CertificateRecord, MixtureRecord
from villani.commands.certify.results import bound_record, no_complexity
from villani.commands.certify.settings import CertifySettings
from villani.commands.subject import outputs
from villani.dynamics.certificate import Moments, document_bound
from villani.dynamics.chain import label_probabilities
from villani.dynamics.mixture import MixtureContent, mix, write_member, write_mixture
from villani.errors import InputError
from villani.inputs.text import Blocks
from villani.outwards import upper
from villani.statistics import Array, Estimate, mean_per_token, serial_correlation
from villani.theory.constants import Smoothing
from villani.work.records import EstimateRecord
from villani.work.team import Rows

ALIKE = 4.0  # standard errors of a correlation of neighbours: by chance once in 30,000 texts
_PREDICTOR = "the mixture of {count} iterates, the mean of their probabilities"
_ORDER = "rounds of whole documents in an order drawn beforehand"


@dataclass(frozen=True, eq=False)
class Rounds:
    """Where the rounds of a pass begin.

    Attributes:
        edges: (K + 1,) the first certified block of each, and the end.
        shares: (K,) of the documents.
    """

    edges: list[int]
    shares: list[float]

    @classmethod
    def of(cls, settings: CertifySettings, prepared: Prepared) -> "Rounds":
        """K rounds of whole documents, alike in number.

        Raises:
            InputError: there are fewer documents than rounds, or two to hold out.
        """
        documents, count = prepared.documents[0], settings.iterates
        firsts = np.append(_firsts(documents), len(documents))
        n, others = len(firsts) - 1, len(_firsts(prepared.documents[1]))
        if n < max(count, 3) or others < 2:
            raise InputError(
                f"iid_documents: {n} certified and {others} held-out documents; {count} iterates need {max(count, 3)} "
                f"and 2 at least. Of the text, {prepared.certified.cut}"
            )
        places = np.linspace(0, n, count + 1).round().astype(int)
        return cls([int(firsts[place]) for place in places], [float(share) for share in np.diff(places) / n])

    def score(self, block: int, settings: CertifySettings, prepared: Prepared, folder: Path) -> dict[str, Array]:
        """Of the round that begins with a block, before it is trained on: a row's part, and the weights in a file."""
        number = self.edges.index(block)
        own, model = prepared.certified, prepared.loaded.model
        rows = slice(block, self.edges[number + 1])
        others = prepared.held_out
        parts = {"round": (own.ids[rows], own.labels[rows]), "others": (others.ids, others.labels)}
        row = {
            name: label_probabilities(model, *pair, micro_tokens=settings.micro_tokens)[0]
            for name, pair in parts.items()
        }  # fmt: skip
        return row | {"member": write_member(folder, number, model)}


def check_independent(prepared: Prepared, start: Array) -> Estimate:
    """The rank correlation of neighbours in the text by the frozen start's losses, ln p of the tokens in `start`.

    Raises:
        InputError: they resemble each other more than independent draws do.
    """
    documents, counts = prepared.documents[0], prepared.certified.counts
    means = document_means(-start, counts, documents)
    correlation = serial_correlation(means[np.argsort(documents[_firsts(documents)])])
    if correlation.value > ALIKE * correlation.sem:
        raise InputError(
            f"iid_documents: neighbouring documents resemble each other, by a rank correlation of "
            f"{correlation.value:.2f} ± {correlation.sem:.2f}, as independent draws do not. If they were only sorted, "
            "shuffle them first; if they follow one another, they have no such certificate"
        )
    return correlation


def mixture_record(
    settings: CertifySettings, prepared: Prepared, rounds: Rounds, rows: Sequence[Rows], start: Array,
    neighbours: Estimate, folder: Path, level: float,
) -> MixtureRecord:  # fmt: skip
    """The certificate of a pass's mixture, beside its loss on held-out documents; the mixture is left in its folder.

    Args:
        settings: of the certificate.
        prepared: texts.
        rounds: of the pass.
        rows: of `Rounds.score`, in their order.
        start: ln p of the certified tokens under the frozen start.
        neighbours: of `check_independent`.
        folder: of the members.
        level: δ at one λ, η and α.
    """
    documents, others = prepared.documents
    counts, other_counts = prepared.certified.counts, prepared.held_out.counts
    logs = np.concatenate([row["round"] for row in rows])
    predictor = _PREDICTOR.format(count=len(rows))
    size = outputs(prepared.loaded.model)
    smoothings = [Smoothing(size, alpha) for alpha in settings.alpha]

    def moments(losses: Array, smoothing: Smoothing) -> Moments:
        return Moments(smoothing, float(losses.mean()), float((losses**2).mean()))

    def certified(scores: Array, smoothing: Smoothing) -> Array:
        return document_means(smoothed_losses(scores, smoothing.alpha, size), counts, documents)

    n = len(_firsts(documents))
    bounds: list[BoundRecord] = []
    for smoothing in smoothings:
        bound = document_bound(moments(certified(logs, smoothing), smoothing), n, level)
        bounds.append(bound_record(bound, smoothing, no_complexity(_ORDER), predictor, tokens=n, documents=1))
    best = min(bounds, key=lambda bound: bound.value)
    share = settings.delta / len(settings.alpha)
    start_bound = min(document_bound(moments(certified(start, s), s), n, share).value for s in smoothings)
    held_out = {}
    for smoothing in smoothings:
        mixed = -mix([row["others"] for row in rows], rounds.shares, smoothing)
        held_out[smoothing.alpha] = document_means(mixed, other_counts, others)
    each = [smoothed_losses(row["others"], best.alpha, size) for row in rows]
    each_mean = [float(document_means(losses, other_counts, others).mean()) for losses in each]
    alone = share / settings.candidates
    write_mixture(folder, _content(settings, prepared.loaded.model, rounds, rows, best, n))
    return MixtureRecord(
        certificate=best, start_bound=start_bound, documents=n, shares=rounds.shares,
        neighbours=EstimateRecord.model_validate(neighbours), repeated=_repeated(prepared.certified, documents),
        held_out_documents=len(held_out[best.alpha]),
        held_out_loss=EstimateRecord.model_validate(_mean(held_out[best.alpha])),
        held_out_iterates=float(np.dot(rounds.shares, each_mean)),
        held_out_bound=min(
            document_bound(moments(held_out[s.alpha], s), len(held_out[s.alpha]), alone).value for s in smoothings
        ),
        folder=folder.name,
    )  # fmt: skip


def mixture_sentence(record: CertificateRecord) -> str:
    """The best mixture in words, or none where there is none."""
    points = record.prequential.points if record.prequential else []
    mixtures = [(point, point.mixture) for point in points if point.mixture is not None]
    if not mixtures:
        return ""
    point, mixture = min(mixtures, key=lambda pair: pair[1].certificate.value)
    bound, others = mixture.certificate, mixture.held_out_loss
    beats = bound.value < record.log_vocabulary
    return (
        f"If the documents are independent draws of one law, as you say they are, {bound.predictor}, has with "
        f"probability {1 - record.delta:g} a risk of at most {upper(bound.value, places=3)} nats per token on a new "
        f"one (λ = {point.weight_decay:g}, η = {point.learning_rate:g}, {bound.status}): empirical "
        f"{bound.empirical:.3f} and {upper(bound.excess, places=3)} for chance over {mixture.documents:,} documents. "
        + ("" if beats else "It is vacuous: guessing does better. ")
        + f"The frozen start's certificate on the same documents is {upper(mixture.start_bound, places=3)}. On "
        f"{mixture.held_out_documents:,} held-out documents the mixture's loss is {others.value:.3f}, and a bound from "
        f"these alone is {upper(mixture.held_out_bound, places=3)}."
    )


def _content(
    settings: CertifySettings, model: nn.Module, rounds: Rounds, rows: Sequence[Rows], best: BoundRecord, documents: int
) -> MixtureContent:
    return MixtureContent(
        alpha=best.alpha, vocabulary=outputs(model), dtype=settings.dtype, shares=rounds.shares,
        checksums=[row["member"].tobytes().hex() for row in rows],
        names=[name for name, _ in model.named_parameters()], certified=best.value, delta=settings.delta,
        documents=documents,
    )  # fmt: skip


def document_means(losses: Array, counts: Array, documents: Array) -> Array:
    """(n,) mean losses of documents, from those of tokens (m,), blocks' numbers of tokens and documents (M,)."""
    edges = np.concatenate([[0], np.cumsum(counts)]).astype(int)[np.append(_firsts(documents), len(counts))]
    return np.asarray(np.add.reduceat(losses, edges[:-1]) / np.diff(edges))


def _firsts(documents: Array) -> Array:
    """(n,) the first block of each document, whose blocks stand together."""
    return np.asarray(np.flatnonzero(np.diff(documents, prepend=documents[0] - 1)))


def _mean(values: Array) -> Estimate:
    return mean_per_token(values, np.ones(len(values)))


def _repeated(blocks: Blocks, documents: Array) -> int:
    """Documents whose tokens are those of one before."""
    edges = np.append(_firsts(documents), len(documents))
    contents = {blocks.ids[first:last].numpy().tobytes() for first, last in pairwise(edges)}
    return len(edges) - 1 - len(contents)
