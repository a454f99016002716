"""`villani converge`: Langevin chains at several λ and s on a model or a potential, and what their curves prove."""

import shutil

from villani.commands.converge.record import ConvergenceRecord, DynamicsRecord
from villani.commands.converge.results import chains_record
from villani.commands.converge.settings import ConvergeSettings
from villani.commands.running import Outcome
from villani.objective.evaluation import same_threads
from villani.work.records import CONFIDENCE
from villani.work.work import Work


@same_threads()
def run(settings: ConvergeSettings, work: Work) -> Outcome:
    """Run the chains, and keep every stretch of them; the same settings resume a run.

    A chain that diverges is no error: it is in the record.
    """
    settings = settings.filled()
    if settings.potential is None:
        from villani.commands.converge.models import on_model as walk
    else:
        from villani.commands.converge.potentials import on_potential as walk  # which loads no library of models
    ensembles, about, tokens = walk(settings, work)
    design = DynamicsRecord.of(settings, blocks=about.pop("blocks"), confidence=CONFIDENCE)
    record = ConvergenceRecord.of(design=design, points=[chains_record(one) for one in ensembles], **about)
    shutil.rmtree(work.folder("state"), ignore_errors=True)
    steps = sum(one.kernel.steps * len(one.chains) for one in ensembles)
    observing = sum(chain.observing for one in ensembles for chain in one.chains)
    cost = work.cost(tokens * steps, shares=steps, observing_seconds=observing)  # `seconds_per_group` is per step
    return Outcome([record], {0: cost})
