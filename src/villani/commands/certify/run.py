"""What `villani certify` does: noisy runs at every λ, their certificates, and what those compete with."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from villani.commands.certify.certified_text import (
    PRIOR_BATCH,
    CertifiedText,
    check_given,
    evaluate,
    kept,
    predicted,
    prepare,
    train_centre,
)
from villani.commands.certify.record import CertificateRecord
from villani.commands.certify.results import Evaluation, assemble
from villani.commands.finish import default_name, finish
from villani.commands.subject import command_words
from villani.dynamics.certificate import Plan
from villani.dynamics.chain import Moving, run_chain
from villani.errors import InputError, check_positive
from villani.inputs.models import LoadedModel
from villani.objective.evaluation import same_threads
from villani.statistics import Array
from villani.work.budget import LESS, Needs, Shape, announce
from villani.work.ledger import Ledger, write_settings
from villani.work.progress import Progress, Silent
from villani.work.records import Cost


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
        for field in ("steps", "chains"):
            if getattr(self, field) < 1:
                raise InputError(f"{field}={getattr(self, field)}: expected at least 1")
        check_given(self)
        check_positive(learning_rate=self.learning_rate)
        for name, values in (("alpha", self.alpha), ("weight_decay", self.weight_decay)):
            if not values or len(set(values)) < len(values):
                raise InputError(f"{name}={values}: expected different numbers, at least one")
        for decay in self.weight_decay:
            self.plan(decay)

    def command(self) -> str:
        """The command that does this again."""
        return command_words(self, self.name)


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
    show = progress or Silent()
    prepared = prepare(settings, data, show)
    loaded, text, keyed = prepared.loaded, prepared.text, prepared.determining
    directory = run or Path("runs") / default_name("certify", settings.model, keyed)
    needs, less = _needs(settings, loaded, text), f"lower --batch, or {LESS}"
    announce(show, needs, directory, what="this certificate", instead=less, device=settings.device)
    with Ledger(directory, keyed) as ledger:
        write_settings(directory, settings.model_dump())
        train_centre(ledger, loaded, settings, text, show)
        moving = Moving(loaded.model, settings.train, settings.scale)
        show.stage("evaluating the prior's centre")
        centre = kept(ledger, "centre", settings.device, lambda: evaluate(loaded, settings, text, show))
        runs: dict[float, list[dict[str, Array]]] = {}
        for number, decay in enumerate(settings.weight_decay):
            runs[decay] = []
            for chain in range(settings.chains):
                show.stage(f"λ = {decay:g} ({number + 1} of {len(settings.weight_decay)}), chain {chain + 1}")
                make = _Chain(loaded, moving, settings, text, decay, chain, show)
                runs[decay].append(kept(ledger, f"chain/{decay!r}/{chain}", settings.device, make))
        record = assemble(
            settings, loaded.record, *prepared.records, moving.size, Evaluation.of(centre, settings.alpha),
            {d: [Evaluation.of(r, settings.alpha) for r in found] for d, found in runs.items()},
            held_out_ids=predicted(text.held_out), provenance=prepared.provenance,
        )  # fmt: skip
        seconds, peak, count = ledger.spent()
        tokens = settings.batch * (settings.block - 1) * settings.steps * settings.chains * len(settings.weight_decay)
        cost = Cost(seconds=seconds, seconds_per_group=seconds / count, peak_memory_bytes=peak, tokens=tokens, probes=0)
        finish(directory, f"villani certify {settings.model}", [record], {0: cost})
    return directory, record.model_copy(update={"cost": cost})


def _needs(settings: CertifySettings, loaded: LoadedModel, text: CertifiedText) -> Needs:
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


@dataclass(frozen=True, eq=False)
class _Chain:
    """One chain, made when it is called."""

    loaded: LoadedModel
    moving: Moving
    settings: CertifySettings
    text: CertifiedText
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
        row = evaluate(self.loaded, settings, self.text, self.show)
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
