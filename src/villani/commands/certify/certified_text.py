"""What every certificate begins with: texts cut into parts, the centre of the prior, and losses of a model on them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from villani.commands.certify.settings import CertifySettings
from villani.commands.subject import (
    begin,
    determining,
    load,
    load_blocks,
    load_text,
    load_tokenizer_of,
    outputs,
    provenance_of,
    timed_forward,
)
from villani.dynamics.chain import label_probabilities, matching
from villani.dynamics.training import train
from villani.errors import InputError
from villani.inputs.models import LoadedModel
from villani.inputs.text import Blocks, check_context, part_of, text_record
from villani.objective.objective import Objective
from villani.statistics import Array
from villani.streams import Purpose, stream
from villani.work.budget import Needs, Shape
from villani.work.records import Provenance, TextRecord
from villani.work.team import Rows
from villani.work.work import Work

PRIOR_BATCH, PRIOR_RATE = 8, 2e-3
CENTRE, START = "the prior's centre", "losses at the start"  # stages
HELD_OUT = 0.1  # of the blocks, at the end, where no other text is given


@dataclass(frozen=True, eq=False)
class Prepared:
    """All that is known before the first step, and what determines the rows of a ledger.

    Attributes:
        loaded: the model.
        certified: blocks in the text's order; with `iid_documents`, whole documents in an order drawn beforehand.
        held_out: blocks.
        documents: (M,) the document of each certified block, by its number in the text, and of each held-out one.
        prior: blocks before the certified ones, that the centre is trained on; None where it is not.
        records: of the certified text and of the held-out one.
        provenance: what determines the bits.
        determining: what determines the rows.
        forward: tokens and seconds of a forward pass, see `timed_forward`.
    """

    loaded: LoadedModel
    certified: Blocks
    held_out: Blocks
    documents: tuple[Array, Array]
    prior: Blocks | None
    records: tuple[TextRecord, TextRecord]
    provenance: Provenance
    determining: dict[str, Any]
    forward: tuple[int, float]


def prepare(settings: CertifySettings, work: Work) -> Prepared:
    """Load the model and cut the texts, each once.

    Raises:
        InputError: anything about the input that cannot be certified.
    """
    begin(settings)
    corpus = load_text(settings.text, work)
    held_corpus = load_text(settings.held_out, work) if settings.held_out else corpus
    loaded = load(settings, work, train=True)
    (certified, own), (held_out, others), prior = _cut(settings, loaded, work)
    tokenizer = load_tokenizer_of(settings, work, loaded)
    objective = Objective(loaded.model, certified.ids[:1][None])
    provenance = provenance_of(objective, settings.command(), settings.seed)
    matching(loaded.model, settings.train)  # refuses a pattern before any work
    records = (
        text_record(corpus, tokenizer, certified, certified.ids, certified.labels),
        text_record(held_corpus, tokenizer, held_out, held_out.ids, held_out.labels),
    )
    checksums = [record.token_checksum for record in records]
    if prior is not None:
        checksums.append(hashlib.sha256(prior.ids.numpy().tobytes() + prior.labels.numpy().tobytes()).hexdigest())
    keyed = determining(settings, records[0], provenance) | {"checksums": checksums}
    return Prepared(
        loaded, certified, held_out, (own, others), prior, records, provenance, keyed, timed_forward(objective)
    )


def _cut(
    settings: CertifySettings, loaded: LoadedModel, work: Work
) -> tuple[tuple[Blocks, Array], tuple[Blocks, Array], Blocks | None]:
    """Certified, held-out and prior's blocks, two with their documents; the prior's part is the past of all certified.

    The text is shared out by blocks, or by whole documents.
    """
    check_context(settings.block, loaded.record.context)
    whole, documents = load_blocks(settings.text, settings, work, loaded)
    unit, edges, order = "block", np.arange(len(whole.ids) + 1), ", in order, are certified"
    if settings.iid_documents:
        whole, documents = _shuffled(settings, whole, documents)
        unit, order = "document", " in an order drawn from the seed are certified"
        edges = np.append(np.unique(documents, return_index=True)[1], len(documents))
        edges.sort()
    end = len(edges) - 1
    if settings.held_out:
        held_out, others = load_blocks(settings.held_out, settings, work, loaded)
    else:
        end -= max(1, round(HELD_OUT * end))
        held_out = part_of(whole, documents, edges[end], len(whole.ids), f"the last tenth of the {unit}s is held out")
        others = documents[edges[end] :]
    begin = round(settings.prior_share * end) if settings.prior == "text" else 0
    stop = min(end, begin + settings.blocks) if settings.blocks else end
    if stop <= begin or end < 1 or (settings.prior == "text" and begin < 1):
        size = f"of {settings.block} tokens" if unit == "block" else "with boundaries that are known"
        raise InputError(f"text has {len(edges) - 1} {unit}s {size}: too few to share out")
    prior = part_of(whole, documents, 0, edges[begin], "the prior's part") if begin else None
    words = f"{unit}s {begin} to {stop - 1} of the text{order}"
    certified = part_of(whole, documents, edges[begin], edges[stop], words)
    return (certified, documents[edges[begin] : edges[stop]]), (held_out, others), prior


def _shuffled(settings: CertifySettings, blocks: Blocks, documents: Array) -> tuple[Blocks, Array]:
    """Whole documents in an order that the seed alone determines: sorted ones were no independent draws in order."""
    numbers = np.unique(documents)
    drawn = stream(settings.seed, Purpose.DOCUMENTS).permutation(numbers)
    places = np.empty(int(numbers.max()) + 1, dtype=np.int64)
    places[drawn] = np.arange(len(drawn))
    order = np.argsort(places[documents], kind="stable")
    rows = torch.from_numpy(order)
    return replace(blocks, ids=blocks.ids[rows], labels=blocks.labels[rows]), documents[order]


def to_centre(settings: CertifySettings, prepared: Prepared, work: Work) -> None:
    """Put the model at the centre of the prior; whoever loads it next has it at its own weights, see `load`."""
    if prepared.prior is None or not settings.prior_steps:
        return
    model, blocks = prepared.loaded.model, prepared.prior
    tensors = list(model.parameters())

    def centre() -> Rows:
        train(
            model, blocks.ids.to(tensors[0].device), blocks.labels.to(tensors[0].device), steps=settings.prior_steps,
            batch=PRIOR_BATCH, learning_rate=PRIOR_RATE, seed=settings.seed, work=work,
        )  # fmt: skip
        return {"weights": torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).cpu().numpy()}

    work.stage("training the prior's centre on its own part of the text", CENTRE)
    row = work.once("prior", centre)
    parts = torch.from_numpy(row["weights"]).split([tensor.numel() for tensor in tensors])
    with torch.no_grad():
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def opening(settings: CertifySettings, prepared: Prepared) -> dict[str, float]:
    """Stages before the first step, by the tokens that gradients are taken over; a loss is a third of one."""
    trained = settings.prior_steps * PRIOR_BATCH if prepared.prior is not None else 0
    judged = len(prepared.certified.ids) + len(prepared.held_out.ids)
    return {CENTRE: float(trained * settings.block), START: judged * settings.block / 3}


def needs_of(
    settings: CertifySettings, prepared: Prepared, stages: dict[str, float], *, vectors: float, kept: int
) -> Needs:
    """What these stages take by their tokens, after those of `opening`; see `Shape.work`."""
    return Shape.of(prepared.loaded.model, prepared.forward).work(
        opening(settings, prepared) | stages, at_once=settings.at_once, block=settings.block, vectors=vectors,
        kept=kept + int(prepared.prior is not None), device=settings.device,
    )  # fmt: skip


def judge(settings: CertifySettings, loaded: LoadedModel, work: Work, **texts: Blocks) -> dict[str, Array]:
    """Moments of the losses at the model's present weights, on texts by the names of theirs in a row."""
    row: dict[str, Array] = {}
    for index, (name, blocks) in enumerate(texts.items()):
        logs, counts = label_probabilities(
            loaded.model, blocks.ids, blocks.labels, micro_tokens=settings.micro_tokens,
            work=work.part(index, len(texts)),
        )  # fmt: skip
        row |= moments(name, logs, counts, settings.alpha, outputs(loaded.model))
    return row


def moments(name: str, logs: Array, counts: Array, alphas: Sequence[float], vocabulary: int) -> dict[str, Array]:
    """What the ledger keeps of ln p of the predicted tokens (m,), of which each block has some (M,)."""
    smoothed = [smoothed_losses(logs, alpha, vocabulary) for alpha in alphas]
    keep = counts > 0
    starts = np.concatenate([[0], np.cumsum(counts[keep])[:-1]]).astype(int)
    return {
        f"{name}_moments": np.array([(losses.mean(), (losses**2).mean()) for losses in smoothed]),
        f"{name}_sums": np.add.reduceat(-logs, starts),
        f"{name}_counts": counts[keep],
        "vocabulary": np.array(float(vocabulary)),
    }


def smoothed_losses(logs: Array, alpha: float, vocabulary: int) -> Array:
    """−ln((1 − α)p + α/V) from ln p."""
    return np.asarray(-np.log((1 - alpha) * np.exp(logs) + alpha / vocabulary))
