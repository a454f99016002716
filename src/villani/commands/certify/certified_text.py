"""What every certificate begins with: texts cut into parts, the centre of the prior, and losses of a model on them."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from villani.bounds import check_bounds
from villani.commands.constants.run import outputs
from villani.commands.subject import check_options, provenance_of, vocabulary
from villani.dynamics.chain import label_probabilities, matching
from villani.dynamics.training import train
from villani.errors import InputError
from villani.inputs.corpora import Corpus, load_corpus
from villani.inputs.models import LoadedModel, load_model
from villani.inputs.text import Blocks, cut_corpus, part_of, text_record
from villani.inputs.tokenizers import Tokenizer, load_tokenizer
from villani.objective.objective import Objective
from villani.statistics import Array
from villani.theory.constants import Smoothing
from villani.work.ledger import Ledger, Settings
from villani.work.memory import peak_memory
from villani.work.progress import Progress
from villani.work.records import Provenance, TextRecord
from villani.work.team import alone

if TYPE_CHECKING:
    from villani.commands.certify.prequential import PrequentialSettings
    from villani.commands.certify.run import CertifySettings

Asked: TypeAlias = "CertifySettings | PrequentialSettings"
PRIOR_BATCH, PRIOR_RATE = 8, 2e-3
HELD_OUT = 0.1  # of the blocks, at the end, where no other text is given


@dataclass(frozen=True, eq=False)
class CertifiedText:
    """Token blocks with their record: certified, held out, and what the prior may be trained on."""

    certified: Blocks
    held_out: Blocks
    prior: Blocks | None
    corpus: Corpus
    held_corpus: Corpus
    tokenizer: Tokenizer


@dataclass(frozen=True, eq=False)
class Prepared:
    """All that is known before the first step, and what determines the rows of a ledger."""

    loaded: LoadedModel
    text: CertifiedText
    provenance: Provenance
    records: tuple[TextRecord, TextRecord]  # of the certified text and the held-out one
    determining: Settings


def prepare(settings: Asked, data: Path | None, show: Progress) -> Prepared:
    """Check the settings, load the model and cut the texts.

    Raises:
        InputError: anything about the input that cannot be certified.
    """
    alone("villani certify")
    check_bounds(settings)
    settings.check()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    check_options("all", settings.device)
    show.stage(f"reading {settings.text}")
    corpus = load_corpus(settings.text, data=data)
    held_corpus = load_corpus(settings.held_out, data=data) if settings.held_out else None
    show.stage(f"loading {settings.model}")
    loaded = load_model(settings.model, device=settings.device, allow_unused=settings.allow_unused)
    show.stage(f"cutting {settings.text} into tokens")
    text = _cut(settings, loaded, corpus, held_corpus, data)
    provenance = provenance_of(Objective(loaded.model, text.certified.ids[:1][None]), settings.command(), settings.seed)
    matching(loaded.model, settings.train)  # refuses a pattern before any work
    certified, held_out = (
        text_record(corpus, text.tokenizer, blocks, blocks.ids, blocks.labels)
        for corpus, blocks in ((text.corpus, text.certified), (text.held_corpus, text.held_out))
    )
    checksums = [certified.token_checksum, held_out.token_checksum]
    if text.prior is not None:
        checksums.append(
            hashlib.sha256(text.prior.ids.numpy().tobytes() + text.prior.labels.numpy().tobytes()).hexdigest()
        )
    keyed = _determining(settings, checksums, provenance.model_dump())
    return Prepared(loaded, text, provenance, (certified, held_out), keyed)


def check_given(settings: Asked) -> None:
    """Refuse numbers that neither kind of certificate can use, and a centre that may have seen the text.

    Raises:
        InputError: it is one of these.
    """
    for field, least in (
        ("block", 2), ("batch", 1), ("seed", 0), ("micro_tokens", 1), ("threads", 1), ("blocks", 1),
        ("prior_steps", 1), ("candidates", 1),
    ):  # fmt: skip
        value = getattr(settings, field)
        if value is not None and value < least:
            raise InputError(f"{field}={value}: expected at least {least}")
    for field in ("delta", "prior_share"):
        if not 0 < getattr(settings, field) < 1:
            raise InputError(f"{field}={getattr(settings, field):g}: expected a number between 0 and 1")
    for alpha in settings.alpha:
        Smoothing(2, alpha)
    if settings.prior != "given" and not settings.model.startswith(("config:", "builtin:")):
        raise InputError(
            f"prior={settings.prior}: the weights of {settings.model!r} may have seen the text; give random weights "
            "(config:NAME), or --prior given if they were trained on other data"
        )


def _determining(settings: Asked, checksums: list[str], provenance: dict[str, object]) -> Settings:
    versions = provenance["versions"]
    assert isinstance(versions, dict)
    return {
        **settings.model_dump(mode="json", exclude={"threads", "allow_unused"}),
        "parameter_checksum": provenance["parameter_checksum"],
        "checksums": checksums,  # of the certified tokens, the held-out ones, and the prior's
        "device": provenance["device"],
        "threads": provenance["threads"],
        **versions,
    }


def _cut(
    settings: Asked, loaded: LoadedModel, corpus: Corpus, held_corpus: Corpus | None, data: Path | None
) -> CertifiedText:
    """Cut the text: the prior's part comes first, then the certified one, so that it is the past of all of it."""
    if loaded.record.context is not None and settings.block > loaded.record.context:
        raise InputError(f"block={settings.block}: the model accepts at most {loaded.record.context} tokens")
    tokenizer = load_tokenizer(
        settings.tokenizer or loaded.tokenizer, data=data, special_tokens=settings.special_tokens
    )
    whole, documents = cut_corpus(corpus, tokenizer, settings.block, vocabulary(loaded.model))
    end = len(whole.ids)
    if held_corpus:
        held_out, _ = cut_corpus(held_corpus, tokenizer, settings.block, vocabulary(loaded.model))
    else:
        end -= max(1, round(HELD_OUT * end))
        held_out = part_of(whole, documents, end, len(whole.ids), "the last tenth of the blocks is held out")
    begin = round(settings.prior_share * end) if settings.prior == "text" else 0
    stop = min(end, begin + settings.blocks) if settings.blocks else end
    if stop <= begin or end < 1 or (settings.prior == "text" and begin < 1):
        raise InputError(f"text has {len(whole.ids)} blocks of {settings.block} tokens: too few to share out")
    prior = part_of(whole, documents, 0, begin, "the prior's part") if begin else None
    words = f"blocks {begin} to {stop - 1} of the text, in order, are certified"
    certified = part_of(whole, documents, begin, stop, words)
    return CertifiedText(certified, held_out, prior, corpus, held_corpus or corpus, tokenizer)


def predicted(blocks: Blocks) -> Array:
    """(m,) the predicted tokens' ids."""
    targets = blocks.labels[:, 1:]
    return np.asarray(targets[targets >= 0].numpy())


def train_centre(ledger: Ledger, loaded: LoadedModel, settings: Asked, text: CertifiedText, show: Progress) -> None:
    """Train the prior's centre on its own part of the text, once."""
    if text.prior is None:
        return
    tensors = list(loaded.model.parameters())
    row = ledger.get("prior")
    if row is None:
        start = time.perf_counter()
        show.stage("training the prior's centre on its own part of the text")
        train(
            loaded.model, text.prior.ids.to(tensors[0].device), text.prior.labels.to(tensors[0].device),
            steps=settings.prior_steps, batch=PRIOR_BATCH, learning_rate=PRIOR_RATE, seed=settings.seed,
            progress=show.advance,
        )  # fmt: skip
        loaded.model.eval()
        weights = torch.cat([p.detach().reshape(-1) for p in tensors]).cpu().numpy()
        peak = peak_memory(tensors[0].device)
        ledger.put("prior", {"weights": weights}, seconds=time.perf_counter() - start, peak_memory_bytes=peak)
        return
    parts = torch.from_numpy(row["weights"]).split([p.numel() for p in tensors])
    with torch.no_grad():
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def kept(ledger: Ledger, key: str, device: str, make: Callable[[], dict[str, Array]]) -> dict[str, Array]:
    """A unit of work from the ledger, done and put there if it is not."""
    row = ledger.get(key)
    if row is None:
        start = time.perf_counter()
        row = make()
        peak = peak_memory(torch.device(device))
        ledger.put(key, row, seconds=time.perf_counter() - start, peak_memory_bytes=peak)
    return row


def evaluate(loaded: LoadedModel, settings: Asked, text: CertifiedText, show: Progress) -> dict[str, Array]:
    """Moments of the losses at the model's present weights, certified and held out."""
    row: dict[str, Array] = {}
    for name, blocks in (("certified", text.certified), ("held_out", text.held_out)):
        row |= judge(loaded, settings, blocks, name, show)
    return row


def judge(loaded: LoadedModel, settings: Asked, blocks: Blocks, name: str, show: Progress) -> dict[str, Array]:
    """As `evaluate`, of one text."""
    logs, counts = label_probabilities(
        loaded.model, blocks.ids, blocks.labels, micro_tokens=settings.micro_tokens, progress=show.advance
    )
    return moments(name, logs, counts, settings.alpha, outputs(loaded.model))


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
