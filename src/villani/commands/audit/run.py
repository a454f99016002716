"""What `villani audit` does: the four criteria on a model and a text, and a witness of what is refuted; or a replay."""

from villani.commands.audit.record import AuditDesign, AuditRecord, ThresholdRecord
from villani.commands.audit.replay import replay
from villani.commands.audit.results import audit_record
from villani.commands.audit.settings import AuditSettings
from villani.commands.audit.witness import NAME, Claim, Witness, text_checksum
from villani.commands.constants.run import constants_beside, read_head, spectral_gap
from villani.commands.running import Outcome
from villani.commands.subject import (
    Subject,
    determining,
    load_subject,
    objective_record,
    streamed_needs,
    streaming,
)
from villani.criteria.audit import Audit, audit, stages
from villani.criteria.part_gradients import kept_bytes
from villani.objective.evaluation import same_threads
from villani.work.budget import LESS, Needs
from villani.work.records import CONFIDENCE
from villani.work.work import Work

_VECTORS = 3  # arrays of the size of θ, beside it: a gradient, and on a ray θ again and a direction


@same_threads()
def run(settings: AuditSettings, work: Work) -> Outcome:
    """Audit, and keep every finished unit of work; or evaluate a witness again."""
    if settings.replay is not None:
        return Outcome([replay(settings, work)])
    subject = load_subject(
        settings, work, settings.weight_decay, streamed=streaming(settings, 1.0 + _VECTORS, settings.device)
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
        settings.model_dump(), needs=_needs(settings, subject), what="this audit", instead=LESS,
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


def _needs(settings: AuditSettings, subject: Subject) -> Needs:
    """Of all stages; every kind of ray counts as one, `random` as two."""
    space, group = subject.objective.parameters, settings.sequences * settings.block
    undecayed = settings.weight_decay == 0 or space.decayed_size < space.size
    each = stages(
        groups=settings.groups, finite=settings.finite, probes=settings.probes, confirmed=settings.confirmed,
        search=settings.search, rays=len(settings.rays) + ("random" in settings.rays), ray_groups=settings.ray_groups,
        undecayed=undecayed,
    )  # fmt: skip
    tokens = {name: size and size * group for name, size in each.items()}
    share = settings.groups // (3 if settings.search else 2)  # whose gradients lie on disk at the same time
    kept = kept_bytes(subject.objective, share) / (space.size * space.dtype.itemsize)
    return streamed_needs(subject.loaded, settings, tokens) or subject.shape.work(
        tokens, at_once=settings.at_once, block=settings.block, vectors=_VECTORS, kept=kept, device=settings.device
    )


def _record(result: Audit, settings: AuditSettings, subject: Subject, witness: str | None) -> AuditRecord:
    space = subject.objective.parameters
    decay, s = settings.weight_decay, settings.temperature
    head = read_head(subject.objective) if decay > 0 else "λ = 0, so that there is no Gibbs law"
    return audit_record(
        result,
        decay,
        s,
        space,
        model=subject.loaded.record,
        objective=objective_record(subject.objective),
        text=subject.text,
        design=AuditDesign.of(settings, confidence=CONFIDENCE),
        spectral_gap=spectral_gap(head, decay, s),
        constants=constants_beside(subject.loaded.model, space, [decay], [s, 2.0], head),
        witness=witness,
        provenance=subject.provenance,
    )


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
