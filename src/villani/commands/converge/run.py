"""`villani converge`: Langevin chains at several λ and s on a model or a potential, and what their curves prove."""

from villani.commands.converge.settings import ConvergeSettings
from villani.commands.running import Outcome
from villani.work.work import Work


def run(settings: ConvergeSettings, work: Work) -> Outcome:
    """Run the chains, and keep every stretch of them; the same settings resume a run.

    A chain that diverges is no error: it is in the record.
    """
    settings = settings.filled()
    if settings.potential is None:
        from villani.commands.converge.models import on_model

        return on_model(settings, work)
    from villani.commands.converge.potentials import on_potential  # which loads no library of models

    return on_potential(settings, work)
