"""`villani certify --kind path`: noisy runs at every λ, each a unit of work."""

from dataclasses import replace
from functools import partial

import numpy as np

from villani.commands.certify.certified_text import PRIOR_BATCH, Prepared, judge, predicted
from villani.commands.certify.path_results import assemble
from villani.commands.certify.record import CertificateRecord
from villani.commands.certify.results import ScoredModel
from villani.commands.certify.settings import CertifySettings
from villani.dynamics.chain import Moving, run_chain
from villani.work.budget import Needs, Shape
from villani.work.team import Rows
from villani.work.work import Work


def certify(settings: CertifySettings, prepared: Prepared, work: Work) -> tuple[CertificateRecord, int]:
    """Train J chains at every λ from the centre, where the model is, and certify them; the record, and tokens seen."""
    model = prepared.loaded.model.eval()
    moving = Moving(model, settings.train, settings.scale)
    texts = {"certified": prepared.certified, "held_out": prepared.held_out}
    work.stage("evaluating the prior's centre")
    centre = work.once("centre", partial(judge, settings, prepared.loaded, work, **texts))
    rows: dict[float, list[Rows]] = {}
    for number, decay in enumerate(settings.weight_decay):
        rows[decay] = []
        for index in range(settings.chains):
            work.stage(f"λ = {decay:g} ({number + 1} of {len(settings.weight_decay)}), chain {index + 1}")
            chain = partial(_chain, settings, prepared, moving, decay, index, work)
            rows[decay].append(work.once(f"chain/{decay!r}/{index}", chain))
    record = assemble(
        settings, prepared.loaded.record, prepared.records, moving.size, ScoredModel.of(centre, settings.alpha),
        {decay: [ScoredModel.of(row, settings.alpha) for row in chains] for decay, chains in rows.items()},
        held_out_ids=predicted(prepared.held_out), provenance=prepared.provenance,
    )  # fmt: skip
    return record, settings.batch * (settings.block - 1) * settings.steps * settings.chains * len(rows)


def needs(settings: CertifySettings, prepared: Prepared) -> Needs:
    """A gradient a step, and a pass over all blocks, a third of one, after every chain."""
    runs = settings.chains * len(settings.weight_decay)
    judged = len(prepared.certified.ids) + len(prepared.held_out.ids)
    blocks = runs * settings.steps * settings.batch + (runs + 1) * judged / 3
    blocks += settings.prior_steps * PRIOR_BATCH if prepared.prior is not None else 0
    gradients = Shape.of(prepared.loaded.model).work(
        blocks * settings.block, at_once=settings.at_once, block=settings.block, vectors=6,
        kept=len(settings.weight_decay) + int(prepared.prior is not None), device=settings.device,
    )  # fmt: skip
    return replace(gradients, memory=gradients.memory + 16.0 * settings.batch * settings.block)


def _chain(
    settings: CertifySettings, prepared: Prepared, moving: Moving, weight_decay: float, index: int, work: Work
) -> Rows:
    """One noisy run, and the losses of where it ends."""
    certified = prepared.certified
    chain = run_chain(
        moving, certified.ids, certified.labels, settings.plan(weight_decay), batch=settings.batch,
        seed=settings.seed, index=index, direction=settings.direction, progress=work.advance,
    )  # fmt: skip
    chain.account.check()
    row = judge(settings, prepared.loaded, work, certified=certified, held_out=prepared.held_out)
    row |= {
        "log_ratio": np.array(chain.account.log_ratio),
        "squares": np.array(chain.account.squares),
        "losses": chain.losses,
        "clipped": np.array(chain.clipped),
        "moved": np.array(float(chain.w.double().norm())),
    }
    if index == 0:
        row["w"] = chain.w.cpu().numpy()
    return row
