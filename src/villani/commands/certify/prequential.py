"""`villani certify --kind prequential`: one pass over the text at every λ and η, scored before it is trained on.

A stretch of steps is a unit of work, see `work.stretches`: the tokens' ln p in the ledger, weights and the optimiser's
memory in a file.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from villani.commands.certify.certified_text import PRIOR_BATCH, Prepared, judge, predicted
from villani.commands.certify.prequential_results import Pass, assemble
from villani.commands.certify.record import CertificateRecord
from villani.commands.certify.settings import CertifySettings
from villani.commands.subject import outputs
from villani.dynamics.chain import matching
from villani.dynamics.prequential import Learner, UpdateRule, advance, steps_of
from villani.statistics import Array
from villani.work.budget import Needs, Shape
from villani.work.stretches import Enough, stretches
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
        prepared.certified.counts, start, passes, held_out_ids=predicted(prepared.held_out),
        provenance=prepared.provenance,
    )  # fmt: skip
    return record, int(prepared.certified.counts.sum()) * len(rules)


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

    def stretch(start: int, _: Rows | None, enough: Enough) -> dict[str, Array]:
        part = advance(
            model, learner, blocks.ids, blocks.labels, start=start, batch=settings.batch,
            micro_tokens=settings.micro_tokens, enough=enough,
        )  # fmt: skip
        row = {
            "stop": np.array(part.stop), "logs": part.logs, "clipped": np.array(part.clipped),
            "state": np.zeros(0, dtype=np.uint8),
        }  # fmt: skip
        if part.stop == steps:
            row |= judge(settings, prepared.loaded, work, held_out=prepared.held_out)
            row["moved"] = np.array(learner.moved() if learner else 0.0)
        return row

    rows = stretches(work, states, steps, learner.state if learner else [], stretch)
    if learner:
        learner.reset()
    logs = np.concatenate([row["logs"] for row in rows]).astype(np.float64)
    return Pass(logs, sum(int(row["clipped"]) for row in rows) / steps, float(rows[-1]["moved"]), rows[-1])
