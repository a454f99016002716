"""What `villani audit` does: the four criteria on a model and a text, and a witness of what is refuted; or a replay."""

from villani.commands.audit.needs import VECTORS, audit_needs
from villani.commands.audit.record import AuditDesign, AuditRecord, ThresholdRecord
from villani.commands.audit.replay import replay
from villani.commands.audit.results import audit_record
from villani.commands.audit.settings import AuditSettings
from villani.commands.audit.witness import NAME, Claim, Witness, text_checksum
from villani.commands.constants.run import constants_beside, read_head, spectral_gap
from villani.commands.running import Outcome
from villani.commands.subject import Subject, determining, load_subject, outputs, streaming
from villani.criteria.audit import Audit, audit
from villani.objective.evaluation import same_threads
from villani.work.budget import LESS
from villani.work.records import CONFIDENCE
from villani.work.work import Work


@same_threads()
def run(settings: AuditSettings, work: Work) -> Outcome:
    """Audit, and keep every finished unit of work; or evaluate a witness again."""
    if settings.replay is not None:
        return Outcome([replay(settings, work)])
    subject = load_subject(
        settings, work, settings.weight_decay, streamed=streaming(settings, 1.0 + VECTORS, settings.device, work)
    )
    objective = subject.objective
    settings.check_design(objective.parameters.size)
    work.open(
        "audit", settings.about,
        determining(
            settings, subject.text, subject.provenance, {"temperature"},  # it enters no measurement
            objective.streamed,
        )
        | {"decay": objective.parameters.mask},
        settings.model_dump(), needs=audit_needs(settings, subject), what="this audit", instead=LESS,
        device=settings.device, most=settings.memory,
    )  # fmt: skip
    result = audit(
        objective, settings.temperature, seed=subject.provenance.seed, probes=settings.probes,
        confirmed=settings.confirmed, search=settings.search, rays=settings.rays, ray_groups=settings.ray_groups,
        work=work,
    )  # fmt: skip
    witness = _witness(result, settings, subject)
    if witness:
        witness.write(work.folder() / NAME)
    tokens = sum(batch.tokens for batch in objective.groups)
    cost = work.cost(tokens, settings.groups * settings.probes, shares=settings.groups)
    return Outcome([_record(result, settings, subject, NAME if witness else None)], {0: cost})


def _record(result: Audit, settings: AuditSettings, subject: Subject, witness: str | None) -> AuditRecord:
    decay, s = settings.weight_decay, settings.temperature
    head = read_head(subject.objective) if decay > 0 else "λ = 0, so that there is no Gibbs law"
    facts = subject.facts
    return audit_record(
        result, decay, s, subject.objective.parameters, **facts, witness=witness,
        design=AuditDesign.of(settings, confidence=CONFIDENCE), spectral_gap=spectral_gap(head, decay, s),
        constants=constants_beside(facts["objective"], outputs(subject.loaded.model), [decay], [s, 2.0], head),
    )  # fmt: skip


def _witness(result: Audit, settings: AuditSettings, subject: Subject) -> Witness | None:
    """What anyone can evaluate again: the worst orbit, and the first flat direction or the slab."""
    space = subject.objective.parameters
    refuted = result.differential.outcome.verdict == "refuted"
    worst = result.differential.findings[0] if refuted else None
    flat = result.coverage.flat[0] if result.coverage.flat else None
    slab = result.coverage.slab
    if not (worst or flat or slab):
        return None
    claim = Claim(
        settings=settings.model_dump(mode="json"),
        parameter_checksum=subject.provenance.parameter_checksum,
        orbit=worst.orbit.name if worst else None,
        threshold=ThresholdRecord.model_validate(worst.threshold) if worst else None,
        scales=tuple(step.scale for step in worst.walk if step.scale > 1) if worst else (),
        flat=flat.kind if flat else None,
        slab=slab.tensors if slab else (),
        text_checksum=text_checksum(subject.text),
    )
    names = [p.name for p in space.parameters]
    return Witness(
        claim,
        orbit={names[i]: e for i, e in worst.orbit.exponents.items()} if worst else {},
        moved={names[i]: value for i, value in worst.moved.items()} if worst else {},
        flat={flat.tensor: flat.direction} if flat else {},
    )
