"""`villani certify --kind prequential`: one pass over the text at every λ and η, scored before it is trained on.

A stretch of steps is a unit of work, as in `chains`: the tokens' ln p in the ledger, weights and the optimiser's memory
in a file of their own whose checksum is in the row. Where a stretch ends depends on the clock, what is in it does not.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from villani.commands.certify.certified_text import PRIOR_BATCH, Prepared, judge, predicted
from villani.commands.certify.prequential_results import Pass, assemble
from villani.commands.certify.record import CertificateRecord
from villani.commands.certify.settings import CertifySettings
from villani.commands.converge import chains
from villani.commands.converge.chains import checksum, read_state, write_state
from villani.commands.subject import outputs
from villani.dynamics.chain import matching
from villani.dynamics.prequential import Learner, UpdateRule, advance, steps_of
from villani.work.budget import Needs, Shape
from villani.work.team import Rows
from villani.work.work import Work


def certify(settings: CertifySettings, prepared: Prepared, work: Work) -> tuple[CertificateRecord, int]:
    """Pass over the text once at every λ and η from the centre, where the model is; the record, and tokens seen."""
    model, states = prepared.loaded.model.eval(), work.folder("states")
    tensors: list[torch.Tensor] = [p for _, p in matching(model, settings.train)]
    work.stage("scoring the frozen start")
    start = _pass(settings, prepared, None, states / "start", work.scope("start"))
    passes: list[tuple[UpdateRule, Pass]] = []
    rules = settings.rules()
    for number, rule in enumerate(rules):
        words = f"λ = {rule.weight_decay:g}, η = {rule.rate:g} ({number + 1} of {len(rules)})"
        work.stage(f"{words}: one pass over the text")
        learner = Learner(rule, tensors)
        passes.append(
            (rule, _pass(settings, prepared, learner, states / f"pass-{number}", work.scope(f"pass/{number}")))
        )
    record = assemble(
        settings, prepared.loaded.record, prepared.records, sum(t.numel() for t in tensors), outputs(model),
        prepared.counts, start, passes, held_out_ids=predicted(prepared.held_out), provenance=prepared.provenance,
    )  # fmt: skip
    return record, int(prepared.counts.sum()) * len(rules)


def needs(settings: CertifySettings, prepared: Prepared) -> Needs:
    """A gradient over every block at every λ and η; a third of one for the frozen start and for held-out blocks."""
    passes = len(settings.weight_decay) * len(settings.learning_rate)
    certified, held_out = len(prepared.certified.ids), len(prepared.held_out.ids)
    blocks = certified * (passes + 1 / 3) + (passes + 1) * held_out / 3
    blocks += settings.prior_steps * PRIOR_BATCH if prepared.prior is not None else 0
    shape = Shape.of(prepared.loaded.model)
    gradients = shape.work(
        blocks * settings.block, at_once=settings.at_once, block=settings.block, vectors=7,
        kept=6 + int(prepared.prior is not None), device=settings.device,
    )  # fmt: skip
    return replace(gradients, disk=gradients.disk + shape.itemsize * certified * settings.block * (passes + 1.0))


def _pass(settings: CertifySettings, prepared: Prepared, learner: Learner | None, states: Path, work: Work) -> Pass:
    """A pass to its end, or taken up where it was stopped; the model is left at the centre, without a learner too."""
    blocks, model = prepared.certified, prepared.loaded.model
    steps = steps_of(len(blocks.ids), settings.batch)
    rows: list[Rows] = []
    done = reached = 0  # steps that rows are of, and that the learner is at

    def stretch() -> Rows:
        nonlocal reached
        if learner and reached < done:
            read_state(_at(states, done), learner.state, rows[-1]["state"])
        part = advance(
            model, learner, blocks.ids, blocks.labels, start=done, batch=settings.batch,
            micro_tokens=settings.micro_tokens, enough=_patience(steps, work),
        )  # fmt: skip
        reached = part.stop
        row = {
            "stop": np.array(part.stop), "logs": part.logs, "clipped": np.array(part.clipped),
            "state": np.zeros(0, dtype=np.uint8),
        }  # fmt: skip
        if part.stop == steps:
            row |= judge(settings, prepared.loaded, work, held_out=prepared.held_out)
            row["moved"] = np.array(learner.moved() if learner else 0.0)
        elif learner:
            write_state(_at(states, part.stop), learner.state)
            row["state"] = checksum(_at(states, part.stop))
        return row

    while done < steps:
        rows.append(work.once(str(done), stretch))
        _at(states, done).unlink(missing_ok=True)
        done = int(rows[-1]["stop"])
    for left in states.parent.glob(f"{states.name}-*.safetensors"):  # of a kill between file and row
        left.unlink()
    if learner:
        learner.reset()
    logs = np.concatenate([row["logs"] for row in rows]).astype(np.float64)
    return Pass(logs, sum(int(row["clipped"]) for row in rows) / steps, float(rows[-1]["moved"]), rows[-1])


def _patience(steps: int, work: Work) -> Callable[[int], bool]:
    began = time.perf_counter()

    def enough(step: int) -> bool:
        work.advance(step, steps)
        return time.perf_counter() - began > chains.PATIENCE

    return enough


def _at(states: Path, step: int) -> Path:
    return states.with_name(f"{states.name}-{step}.safetensors")
