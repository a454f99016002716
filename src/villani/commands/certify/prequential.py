"""What `villani certify --kind prequential` does: one pass over the text at every λ and η, scored before trained on.

A stretch of steps is a unit of work, as in `chains`: the tokens' ln p in the ledger, weights and the optimiser's memory
in a file of their own whose checksum is in the row. Where a stretch ends depends on the clock, what is in it does not.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from villani.commands.certify.certified_text import (
    PRIOR_BATCH,
    Prepared,
    check_given,
    judge,
    predicted,
    prepare,
    train_centre,
)
from villani.commands.certify.prequential_results import Pass, assemble
from villani.commands.certify.record import CertificateRecord
from villani.commands.constants.run import outputs
from villani.commands.converge import chains
from villani.commands.converge.chains import checksum, read_state, write_state
from villani.commands.finish import default_name, finish
from villani.commands.subject import command_words
from villani.dynamics.chain import matching
from villani.dynamics.prequential import Learner, Rule, advance, steps_of
from villani.errors import InputError
from villani.objective.evaluation import same_threads
from villani.objective.objective import IGNORED
from villani.statistics import Array
from villani.work.budget import LESS, Needs, Shape, announce
from villani.work.ledger import Ledger, ScopedLedger, write_settings
from villani.work.memory import peak_memory
from villani.work.progress import Progress, Silent
from villani.work.records import Cost


class PrequentialSettings(BaseModel):
    """What `villani certify --kind prequential` was asked; see its help for each field."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str] = "certify"

    model: str
    kind: Literal["prequential"]
    text: str = "builtin"
    held_out: str | None = None
    tokenizer: str | None = None
    block: int = 128
    blocks: int | None = None
    prior: Literal["init", "text", "given"] = "init"
    prior_share: float = 0.5
    prior_steps: int = 500
    train: str = "all"
    direction: Literal["sgd", "momentum", "adam"] = "sgd"
    towards: Literal["centre", "zero"] = "centre"
    weight_decay: list[float] = [0.01]
    learning_rate: list[float]
    warm_up: int = 0
    batch: int = 8
    clip: float | None = 1.0
    delta: float = 0.05
    candidates: int = 1
    alpha: list[float] = [0.01, 0.1]
    seed: int = 0
    special_tokens: Literal["auto", "none", "bos"] = "auto"
    device: str = "cpu"
    threads: int | None = None
    micro_tokens: int = 4096
    allow_unused: str | None = None

    def rules(self) -> list[Rule]:
        """How the passes move, one at every λ and η."""
        return [
            Rule(rate, decay, self.direction, self.towards, self.clip, self.warm_up)
            for decay in self.weight_decay
            for rate in self.learning_rate
        ]

    def check(self) -> None:
        """Refuse what cannot be certified, before anything is loaded.

        Raises:
            InputError: it is one of these.
        """
        check_given(self)
        for name in ("alpha", "weight_decay", "learning_rate"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InputError(f"{name}={values}: expected different numbers, at least one")
        self.rules()

    def command(self) -> str:
        """The command that does this again."""
        return command_words(self, self.name)


@same_threads()
def certify_prequential(
    settings: PrequentialSettings, run: Path | None = None, data: Path | None = None, progress: Progress | None = None
) -> tuple[Path, CertificateRecord]:
    """Pass over the certified text once at every λ and η, and certify the iterates; finished stretches are kept.

    Args:
        settings: what to certify; all of it is fixed before the certified tokens are looked at.
        run: directory; made from the settings when None. The same settings resume it.
        data: folder of text and tokenizer files; the environment variable VILLANI_DATA by default.
        progress: told where the work is.

    Returns:
        the run directory and its record.

    Raises:
        InputError: anything about the input that cannot be certified; finished stretches are kept.
    """
    show = progress or Silent()
    prepared = prepare(settings, data, show)
    loaded, text = prepared.loaded, prepared.text
    directory = run or Path("runs") / default_name("certify", settings.model, prepared.determining)
    needs, less = _needs(settings, prepared), f"lower --batch, or {LESS}"
    announce(show, needs, directory, what="this certificate", instead=less, device=settings.device)
    with Ledger(directory, prepared.determining) as ledger:
        write_settings(directory, settings.model_dump())
        train_centre(ledger, loaded, settings, text, show)
        loaded.model.eval()
        tensors: list[torch.Tensor] = [p for _, p in matching(loaded.model, settings.train)]
        show.stage("scoring the frozen start")
        start = _pass(ledger.scoped("start"), directory / "states" / "start", prepared, settings, None, show)
        passes: list[tuple[Rule, Pass]] = []
        rules = settings.rules()
        for number, rule in enumerate(rules):
            show.stage(
                f"λ = {rule.weight_decay:g}, η = {rule.rate:g} ({number + 1} of {len(rules)}): one pass over the text"
            )
            states, scope = directory / "states" / f"pass-{number}", ledger.scoped(f"pass/{number}")
            passes.append((rule, _pass(scope, states, prepared, settings, Learner(rule, tensors), show)))
        record = assemble(
            settings, loaded.record, prepared.records, sum(t.numel() for t in tensors), outputs(loaded.model),
            _counts(prepared), start, passes, held_out_ids=predicted(text.held_out), provenance=prepared.provenance,
        )  # fmt: skip
        seconds, peak, count = ledger.spent()
        tokens = int(_counts(prepared).sum()) * len(rules)
        cost = Cost(seconds=seconds, seconds_per_group=seconds / count, peak_memory_bytes=peak, tokens=tokens, probes=0)
        finish(directory, f"villani certify {settings.model}", [record], {0: cost})
    return directory, record.model_copy(update={"cost": cost})


def _counts(prepared: Prepared) -> Array:
    """(M,) predicted tokens of every certified block."""
    return np.asarray((prepared.text.certified.labels[:, 1:] != IGNORED).sum(dim=1).numpy())


def _needs(settings: PrequentialSettings, prepared: Prepared) -> Needs:
    """A gradient over every block at every λ and η; a third of one for the frozen start and for held-out blocks."""
    text, passes = prepared.text, len(settings.weight_decay) * len(settings.learning_rate)
    certified, held_out = len(text.certified.ids), len(text.held_out.ids)
    blocks = certified * (passes + 1 / 3) + (passes + 1) * held_out / 3
    blocks += settings.prior_steps * PRIOR_BATCH if text.prior is not None else 0
    at_once = max(settings.block, min(settings.micro_tokens, settings.batch * settings.block))
    needs = Shape.of(prepared.loaded.model).work(
        blocks * settings.block, at_once=at_once, block=settings.block, vectors=6,
        kept=6 + int(text.prior is not None), device=settings.device,
    )  # fmt: skip
    return replace(needs, disk=needs.disk + 4.0 * certified * settings.block * (passes + 1))


def _pass(
    ledger: ScopedLedger, states: Path, prepared: Prepared, settings: PrequentialSettings, learner: Learner | None,
    show: Progress,
) -> Pass:  # fmt: skip
    """A pass to its end, or taken up where it was stopped; the model is left at the centre, without a learner too."""
    blocks, model = prepared.text.certified, prepared.loaded.model
    steps = steps_of(len(blocks.ids), settings.batch)
    rows: list[Mapping[str, Array]] = []
    done = 0
    while done < steps and (row := ledger.get(str(done))) is not None:
        rows.append(row)
        done = int(row["stop"])
    if learner and 0 < done < steps:
        read_state(_at(states, done), learner.state, rows[-1]["state"])
    while done < steps:
        began = time.perf_counter()
        stretch = advance(
            model, learner, blocks.ids, blocks.labels, start=done, batch=settings.batch,
            micro_tokens=settings.micro_tokens, enough=_patience(began, steps, show),
        )  # fmt: skip
        unit: dict[str, Array] = {
            "stop": np.array(stretch.stop), "logs": stretch.logs, "clipped": np.array(stretch.clipped),
            "state": np.zeros(0, dtype=np.uint8),
        }  # fmt: skip
        if stretch.stop == steps:
            unit |= judge(prepared.loaded, settings, prepared.text.held_out, "held_out", show)
            unit["moved"] = np.array(learner.moved() if learner else 0.0)
        elif learner:
            write_state(_at(states, stretch.stop), learner.state)
            unit["state"] = checksum(_at(states, stretch.stop))
        peak = peak_memory(next(model.parameters()).device)
        ledger.put(str(done), unit, seconds=time.perf_counter() - began, peak_memory_bytes=peak)
        _at(states, done).unlink(missing_ok=True)
        rows.append(unit)
        done = stretch.stop
    for left in states.parent.glob(f"{states.name}-*.safetensors"):  # of a kill between file and row
        left.unlink()
    if learner:
        learner.reset()
    logs = np.concatenate([row["logs"] for row in rows]).astype(np.float64)
    return Pass(logs, sum(int(row["clipped"]) for row in rows) / steps, float(rows[-1]["moved"]), rows[-1])


def _patience(began: float, steps: int, show: Progress) -> Callable[[int], bool]:
    def enough(step: int) -> bool:
        show.advance(step, steps)
        return time.perf_counter() - began > chains.PATIENCE

    return enough


def _at(states: Path, step: int) -> Path:
    return states.with_name(f"{states.name}-{step}.safetensors")
