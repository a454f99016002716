"""What `villani certify` does: noisy runs at every λ, their certificates, and what those compete with."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from villani.bounds import check_bounds
from villani.dynamics.certificate import Plan
from villani.dynamics.chain import Moving, label_probabilities, run_chain
from villani.dynamics.training import train
from villani.errors import InputError, check_positive
from villani.landscape.corpora import Corpus, load_corpus
from villani.landscape.evaluation import same_threads
from villani.landscape.models import LoadedModel, load_model
from villani.landscape.objective import Objective
from villani.landscape.text import Blocks, cut_corpus, part_of, text_record
from villani.landscape.tokenizers import Tokenizer, load_tokenizer
from villani.measurement import peak_memory
from villani.runs.budget import LESS, Needs, Shape, announce
from villani.runs.certificates import CertificateRecord
from villani.runs.distributed import alone
from villani.runs.records import Cost
from villani.runs.store import Ledger, Settings, write_settings
from villani.statistics import Array
from villani.studies.certificate_records import Evaluation, assemble
from villani.studies.constants import outputs
from villani.studies.finish import default_name, finish
from villani.studies.progress import Progress, Silent
from villani.studies.subject import check_options, command_words, provenance_of, vocabulary
from villani.theory.constants import Smoothing

PRIOR_BATCH, PRIOR_RATE = 8, 2e-3
HELD_OUT = 0.1  # of the blocks, at the end, where no other text is given


class CertifySettings(BaseModel):
    """What `villani certify` was asked; see its help for each field."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str] = "certify"

    model: str
    text: str = "builtin"
    held_out: str | None = None
    tokenizer: str | None = None
    block: int = 128
    blocks: int | None = None
    prior: Literal["init", "text", "given"] = "init"
    prior_share: float = 0.5
    prior_steps: int = 500
    train: str = "all"
    scale: Literal["unit", "relative"] = "unit"
    direction: Literal["sgd", "momentum", "adam"] = "sgd"
    start: Literal["prior", "centre"] = "prior"
    weight_decay: list[float] = [1.0]
    temperature: float = 1e-4
    learning_rate: float = 0.1
    steps: int = 200
    batch: int = 8
    clip: float | None = 1.0
    chains: int = 1
    delta: float = 0.05
    candidates: int = 1
    alpha: list[float] = [0.01, 0.1]
    seed: int = 0
    special_tokens: Literal["auto", "none", "bos"] = "auto"
    device: str = "cpu"
    threads: int | None = None
    micro_tokens: int = 4096
    allow_unused: str | None = None

    def plan(self, weight_decay: float) -> Plan:
        """The plan of the runs at one λ."""
        rates = np.full(self.steps, self.learning_rate)
        return Plan(rates, weight_decay, self.temperature, self.clip, self.start)

    def check(self) -> None:
        """Refuse what cannot be certified, before anything is loaded.

        Raises:
            InputError: it is one of these.
        """
        for field, least in (
            ("block", 2), ("steps", 1), ("batch", 1), ("chains", 1), ("seed", 0), ("micro_tokens", 1), ("threads", 1),
            ("blocks", 1), ("prior_steps", 1), ("candidates", 1),
        ):  # fmt: skip
            value = getattr(self, field)
            if value is not None and value < least:
                raise InputError(f"{field}={value}: expected at least {least}")
        for field in ("delta", "prior_share"):
            if not 0 < getattr(self, field) < 1:
                raise InputError(f"{field}={getattr(self, field):g}: expected a number between 0 and 1")
        check_positive(learning_rate=self.learning_rate)
        for name, values in (("alpha", self.alpha), ("weight_decay", self.weight_decay)):
            if not values or len(set(values)) < len(values):
                raise InputError(f"{name}={values}: expected different numbers, at least one")
        for alpha in self.alpha:
            Smoothing(2, alpha)
        for decay in self.weight_decay:
            self.plan(decay)
        if self.prior != "given" and not self.model.startswith(("config:", "builtin:")):
            raise InputError(
                f"prior={self.prior}: the weights of {self.model!r} may have seen the text; give random weights "
                "(config:NAME), or --prior given if they were trained on other data"
            )

    def command(self) -> str:
        """The command that does this again."""
        return command_words(self, self.name)


@dataclass(frozen=True, eq=False)
class _Text:
    """Token blocks with their record: certified, held out, and what the prior may be trained on."""

    certified: Blocks
    held_out: Blocks
    prior: Blocks | None
    corpus: Corpus
    held_corpus: Corpus
    tokenizer: Tokenizer


@same_threads()
def certify(
    settings: CertifySettings, run: Path | None = None, data: Path | None = None, progress: Progress | None = None
) -> tuple[Path, CertificateRecord]:
    """Train J chains at every λ and certify them; every finished chain is kept.

    Args:
        settings: what to certify; all of it is fixed before the certified tokens are looked at.
        run: directory; made from the settings when None. The same settings resume it.
        data: folder of text and tokenizer files; the environment variable VILLANI_DATA by default.
        progress: told where the work is.

    Returns:
        the run directory and its record.

    Raises:
        InputError: anything about the input that cannot be certified; finished chains are kept.
    """
    alone("villani certify")
    check_bounds(settings)
    settings.check()
    show = progress or Silent()
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
    Moving(loaded.model, settings.train)  # refuses a pattern before any work
    records = [
        text_record(corpus, text.tokenizer, blocks, blocks.ids, blocks.labels)
        for corpus, blocks in ((text.corpus, text.certified), (text.held_corpus, text.held_out))
    ]
    checksums = [record.token_checksum for record in records]
    if text.prior is not None:
        checksums.append(
            hashlib.sha256(text.prior.ids.numpy().tobytes() + text.prior.labels.numpy().tobytes()).hexdigest()
        )
    keyed = _determining(settings, checksums, provenance.model_dump())
    directory = run or Path("runs") / default_name("certify", settings.model, keyed)
    needs, less = _needs(settings, loaded, text), f"lower --batch, or {LESS}"
    announce(show, needs, directory, what="this certificate", instead=less, device=settings.device)
    with Ledger(directory, keyed) as ledger:
        write_settings(directory, settings.model_dump())
        _centre(ledger, loaded, settings, text, show)
        moving = Moving(loaded.model, settings.train, settings.scale)
        show.stage("evaluating the prior's centre")
        centre = _kept(ledger, "centre", settings.device, lambda: _evaluate(loaded, settings, text, show))
        runs: dict[float, list[dict[str, Array]]] = {}
        for number, decay in enumerate(settings.weight_decay):
            runs[decay] = []
            for chain in range(settings.chains):
                show.stage(f"λ = {decay:g} ({number + 1} of {len(settings.weight_decay)}), chain {chain + 1}")
                make = _Chain(loaded, moving, settings, text, decay, chain, show)
                runs[decay].append(_kept(ledger, f"chain/{decay!r}/{chain}", settings.device, make))
        record = assemble(
            settings, loaded.record, records[0], records[1], moving.size, Evaluation.of(centre, settings.alpha),
            {d: [Evaluation.of(r, settings.alpha) for r in found] for d, found in runs.items()},
            held_out_ids=_predicted(text.held_out), provenance=provenance,
        )  # fmt: skip
        seconds, peak, count = ledger.spent()
        tokens = settings.batch * (settings.block - 1) * settings.steps * settings.chains * len(settings.weight_decay)
        cost = Cost(seconds=seconds, seconds_per_group=seconds / count, peak_memory_bytes=peak, tokens=tokens, probes=0)
        finish(directory, f"villani certify {settings.model}", [record], {0: cost})
    return directory, record.model_copy(update={"cost": cost})


def _needs(settings: CertifySettings, loaded: LoadedModel, text: _Text) -> Needs:
    """A gradient a step, and a pass over all blocks, a third of one, after every chain."""
    runs = settings.chains * len(settings.weight_decay)
    judged = len(text.certified.ids) + len(text.held_out.ids)
    blocks = runs * settings.steps * settings.batch + (runs + 1) * judged / 3
    blocks += settings.prior_steps * PRIOR_BATCH if text.prior is not None else 0
    at_once = max(settings.block, min(settings.micro_tokens, settings.batch * settings.block))
    needs = Shape.of(loaded.model).work(
        blocks * settings.block, at_once=at_once,
        block=settings.block, vectors=5, kept=len(settings.weight_decay) + int(text.prior is not None),
        device=settings.device,
    )  # fmt: skip
    return replace(needs, memory=needs.memory + 16.0 * settings.batch * settings.block)


def _determining(settings: CertifySettings, checksums: list[str], provenance: dict[str, object]) -> Settings:
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
    settings: CertifySettings, loaded: LoadedModel, corpus: Corpus, held_corpus: Corpus | None, data: Path | None
) -> _Text:
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
    return _Text(certified, held_out, prior, corpus, held_corpus or corpus, tokenizer)


def _predicted(blocks: Blocks) -> Array:
    """(m,) the predicted tokens' ids."""
    targets = blocks.labels[:, 1:]
    return np.asarray(targets[targets >= 0].numpy())


def _centre(ledger: Ledger, loaded: LoadedModel, settings: CertifySettings, text: _Text, show: Progress) -> None:
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


def _kept(ledger: Ledger, key: str, device: str, make: Callable[[], dict[str, Array]]) -> dict[str, Array]:
    """A unit of work from the ledger, done and put there if it is not."""
    row = ledger.get(key)
    if row is None:
        start = time.perf_counter()
        row = make()
        peak = peak_memory(torch.device(device))
        ledger.put(key, row, seconds=time.perf_counter() - start, peak_memory_bytes=peak)
    return row


def _evaluate(loaded: LoadedModel, settings: CertifySettings, text: _Text, show: Progress) -> dict[str, Array]:
    """Moments of the losses at the model's present weights, certified and held out."""
    row: dict[str, Array] = {}
    size = outputs(loaded.model)
    for name, blocks in (("certified", text.certified), ("held_out", text.held_out)):
        logs, counts = label_probabilities(
            loaded.model, blocks.ids, blocks.labels, micro_tokens=settings.micro_tokens, progress=show.advance
        )
        moments = []
        for alpha in settings.alpha:
            losses = -np.log((1 - alpha) * np.exp(logs) + alpha / size)
            moments.append((losses.mean(), (losses**2).mean()))
        row[f"{name}_moments"] = np.array(moments)
        keep = counts > 0
        starts = np.concatenate([[0], np.cumsum(counts[keep])[:-1]]).astype(int)
        row[f"{name}_sums"] = np.add.reduceat(-logs, starts)
        row[f"{name}_counts"] = counts[keep]
    row["vocabulary"] = np.array(float(size))
    return row


@dataclass(frozen=True, eq=False)
class _Chain:
    """One chain, made when it is called."""

    loaded: LoadedModel
    moving: Moving
    settings: CertifySettings
    text: _Text
    weight_decay: float
    index: int
    show: Progress

    def __call__(self) -> dict[str, Array]:
        settings, blocks = self.settings, self.text.certified
        outcome = run_chain(
            self.moving, blocks.ids, blocks.labels, settings.plan(self.weight_decay), batch=settings.batch,
            seed=settings.seed, index=self.index, direction=settings.direction, progress=self.show.advance,
        )  # fmt: skip
        outcome.account.check()
        row = _evaluate(self.loaded, settings, self.text, self.show)
        row |= {
            "log_ratio": np.array(outcome.account.log_ratio),
            "squares": np.array(outcome.account.squares),
            "losses": outcome.losses,
            "clipped": np.array(outcome.clipped),
            "moved": np.array(float(outcome.w.double().norm())),
        }
        if self.index == 0:
            row["w"] = outcome.w.cpu().numpy()
        return row
