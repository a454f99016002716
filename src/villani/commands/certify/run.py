"""What `villani certify` does: texts, the centre of a prior, training of either kind, and certificates."""

from villani.commands.certify import path, prequential
from villani.commands.certify.certified_text import prepare, to_centre
from villani.commands.certify.settings import CertifySettings
from villani.commands.running import Outcome
from villani.objective.evaluation import same_threads
from villani.work.budget import LESS
from villani.work.work import Work

_KINDS = {"path": path, "prequential": prequential}


@same_threads()
def run(settings: CertifySettings, work: Work) -> Outcome:
    """Train and certify; every finished chain, and every stretch of a pass, is kept."""
    kind = _KINDS[settings.kind]
    prepared = prepare(settings, work)
    work.open(
        settings.name, settings.model, prepared.determining, settings.model_dump(),
        needs=kind.needs(settings, prepared), what="this certificate", instead=f"lower --batch, or {LESS}",
        device=settings.device,
    )  # fmt: skip
    to_centre(settings, prepared, work)
    record, tokens = kind.certify(settings, prepared, work)
    return Outcome([record], {0: work.cost(tokens)})
