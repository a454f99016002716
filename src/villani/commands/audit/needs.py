"""What an audit and a replay are going to take, told before they begin."""

from villani.commands.audit.claims import scale_checks
from villani.commands.audit.settings import AuditSettings
from villani.commands.audit.witness import Claim
from villani.commands.subject import Subject
from villani.criteria.audit import replay_stages, stages
from villani.criteria.differential import FURTHEST, SCALES
from villani.criteria.part_gradients import kept_bytes
from villani.work.budget import Needs

VECTORS = 3  # arrays of the size of θ, beside it: a gradient, and on a ray θ again and a direction


def audit_needs(settings: AuditSettings, subject: Subject) -> Needs:
    """Of all stages; every kind of ray counts as one, `random` as two."""
    space = subject.objective.parameters
    undecayed = settings.weight_decay == 0 or space.decayed_size < space.size
    each = stages(
        groups=settings.groups, finite=settings.finite, probes=settings.probes, confirmed=settings.confirmed,
        search=settings.search, rays=len(settings.rays) + ("random" in settings.rays), ray_groups=settings.ray_groups,
        undecayed=undecayed,
    )  # fmt: skip
    return _needs(settings, subject, each, settings.groups // (3 if settings.search else 2))


def replay_needs(settings: AuditSettings, subject: Subject, claim: Claim) -> Needs:
    """Of proving a claim and walking along its orbit again, where every group measures."""
    _, scales = scale_checks(claim.scales, SCALES, FURTHEST)
    each = replay_stages(
        groups=settings.groups, probes=settings.probes, scales=len(scales), orbit=claim.orbit is not None,
        flat=claim.flat is not None, slab=bool(claim.slab),
    )  # fmt: skip
    return _needs(settings, subject, each, settings.groups)


def _needs(settings: AuditSettings, subject: Subject, each: dict[str, float | None], at_once: int) -> Needs:
    """Of stages in gradients of a group; gradients of `at_once` groups lie on disk at the same time."""
    space, group = subject.objective.parameters, settings.sequences * settings.block
    tokens = {name: size and size * group for name, size in each.items()}
    kept = kept_bytes(subject.objective, at_once) / (space.size * space.dtype.itemsize)
    return subject.needs(settings, tokens, vectors=VECTORS, kept=kept)
