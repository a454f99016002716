"""The tables of the page of an audit, and of a replay, as HTML."""

from collections.abc import Iterator, Sequence

from villani.commands.audit.record import (
    AuditRecord,
    CoverageRecord,
    FlatRecord,
    OrbitRecord,
    RayRecord,
    ReplayRecord,
    SkippedRecord,
    SlabRecord,
    SmoothnessRecord,
    StepRecord,
)
from villani.commands.audit.words import outcomes, step_words, threshold_words, worst_orbit, worst_walk
from villani.commands.constants import page as theory
from villani.outwards import UNAVAILABLE, upper
from villani.report.elements import badge, facts, note, section, table
from villani.report.numbers import format_count, format_interval, format_number, format_uncertain
from villani.report.origin import origin_rows

_LISTED = 40  # rows of a table
_NAMED = 4  # tensors in a cell


def tables(record: AuditRecord | ReplayRecord) -> str:
    """Sections of tables, as HTML."""
    if isinstance(record, ReplayRecord):
        sections = [section("What was claimed, and what came out", _compared(record))]
        if record.walk:
            sections.append(section("Along the orbit", _walk_table(record.walk)))
        if record.flat:
            sections.append(section("The flat direction", _flat_table([record.flat])))
        if record.slab:
            sections.append(section("Where the loss is bounded", _slab(record.slab)))
        return "".join(sections)
    verdicts = {name: badge(outcome.verdict) for name, outcome in outcomes(record).items()}
    sections = [
        section("The four criteria", facts(verdicts)), *_differential(record), *_coverage(record.coverage_evidence),
        *_smoothness(record.smoothness_evidence),
    ]  # fmt: skip
    if record.constants:
        sections.append(section("What theory offers", theory.model_table(record.constants)))
    sections.append(section("How it was audited", _how(record)))
    return "".join(sections)


def _differential(record: AuditRecord) -> Iterator[str]:
    """Criterion (iv): orbits, what may be missed, and rays."""
    evidence = record.differential_evidence
    if evidence.orbits:
        count = f"{evidence.symmetries}{' symmetries at least' if evidence.skipped else ' symmetries'}"
        yield section(f"Orbits, from {count}", _orbit_table(evidence.orbits))
    if evidence.skipped:
        yield section("Where symmetries may be missed", skipped_table(evidence.skipped))
    if walk := worst_walk(record):
        body = facts({"orbit": worst_orbit(record).name}) + _walk_table(walk)
        if record.witness:
            body += note(f"To evaluate it again: villani audit --replay RUN/{record.witness}")
        yield section("Along the orbit with the smallest s*", body)
    if evidence.rays:
        yield section("Along rays", _ray_table(evidence.rays))


def _coverage(evidence: CoverageRecord) -> Iterator[str]:
    """Criteria (ii) and (iii)."""
    if evidence.flat:
        yield section("Flat directions", _flat_table(evidence.flat))
    if evidence.slab:
        yield section("Where the loss is bounded", _slab(evidence.slab))
    if evidence.orbits:
        header = ["orbit", "largest change of the loss", "decayed norm²", "norm²"]
        rows = [
            [o.name, f"{max(o.changes):.1g}", _run(o.decayed_norms_squared), _run(o.norms_squared)]
            for o in evidence.orbits[:_LISTED]
        ]
        yield section("Orbits to infinity with bounded decay", table(header, rows))


def _smoothness(evidence: SmoothnessRecord) -> Iterator[str]:
    """Criterion (i)."""
    if evidence.findings:
        rows = [[f.operation, f.kind, f.place, f.consequence] for f in evidence.findings[:_LISTED]]
        yield section("Operations that are not smooth", table(["operation", "kind", "where", "what follows"], rows))
    if evidence.normalisations:
        rows = [
            [n.operation, format_number(n.eps), upper(n.jacobian_bound, 3), upper(n.laplacian_bound, 3), n.place]
            for n in evidence.normalisations[:_LISTED]
        ]
        header = ["operation", "ε", "Jacobian up to", "second derivatives up to", "where"]
        yield section("Normalisations", table(header, rows))


def _orbit_table(orbits: Sequence[OrbitRecord]) -> str:
    rows = [
        [
            orbit.name, orbit.theorem, "fresh groups" if orbit.confirmed else "screened",
            threshold_words(orbit.threshold),
            format_uncertain(orbit.threshold.gradient_norm_squared.value, orbit.threshold.gradient_norm_squared.sem),
            format_uncertain(orbit.threshold.laplacian.value, orbit.threshold.laplacian.sem),
            format_number(orbit.threshold.norm_squared, 4),
            UNAVAILABLE if orbit.threshold.directions is None else format_number(orbit.threshold.directions, 2),
            ", ".join(orbit.moved) or "the given θ",
        ]
        for orbit in orbits[:_LISTED]
    ]  # fmt: skip
    header = [
        "orbit",
        "theorem",
        "measured on",
        "s* (bound)",
        "‖∇_B L‖²",
        "Δ_B L",
        "λ²‖mA‖²",
        "directions of noise",
        "θ",
    ]
    more = f"{len(orbits) - _LISTED} more are in the record. " if len(orbits) > _LISTED else ""
    text = "s* = (λ²‖mA‖² + ‖∇_B L‖²)/Δ_B L with A what grows and B what shrinks; with theorem D no λ helps. A moved θ "
    text += "is what a search led to: (iv) speaks of every θ. Of gradient noise in fewer than 20 directions, "
    text += "(tr Σ)²/tr Σ², the bound is one that holds for any number of them, and wider."
    return table(header, rows) + note(f"{more}{text}")


def skipped_table(skipped: Sequence[SkippedRecord]) -> str:
    """Where the search for symmetries may have missed some."""
    rows = [
        [s.operation, str(s.count), s.reason, s.place, _some(s.tensors) or "what reaches it"] for s in skipped[:_LISTED]
    ]
    text = "The search took these to pass no rescaling. A symmetry that it missed there moves at least one of the "
    text += "tensors named, so that the number of symmetries and the smallest s* are of those found, not of all."
    return table(["operation", "times", "why", "first at", "may hide symmetries of"], rows) + note(text)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _walk_table(walk: Sequence[StepRecord]) -> str:
    rows = [
        [
            f"{step.scale:g}", "the same bits" if step.loss_change == 0 else f"{step.loss_change:.1g}",
            format_uncertain(step.predicted.value, step.predicted.sem), step_words(step),
            format_interval(*step.measured.interval),
        ]
        for step in walk
    ]  # fmt: skip
    return table(["R", "change of the loss", "Ψ predicted", "Ψ measured", "interval"], rows)


def _ray_table(rays: Sequence[RayRecord]) -> str:
    rows = [
        [
            ray.direction, format_uncertain(ray.fit.quadratic.value, ray.fit.quadratic.sem),
            format_number(ray.exact_quadratic, 4),
            format_uncertain(ray.data_fit.quadratic.value, ray.data_fit.quadratic.sem),
            format_number(ray.fit.p_value, 2), format_uncertain(ray.psi[-1].value, ray.psi[-1].sem),
        ]
        for ray in rays
    ]  # fmt: skip
    header = [
        "direction",
        "r² coefficient of Ψ",
        "of it exact, λ²‖mu‖²/s",
        "of the data",
        "lack of fit, p",
        "Ψ at the end",
    ]
    return table(header, rows) + note("A small p says that Ψ is no parabola there; a large one proves nothing.")


def _flat_table(flat: Sequence[FlatRecord]) -> str:
    rows = [
        [
            f.tensor, f.kind, f"{f.coordinates:,}", _run(f.steps), ", ".join(f"{c:.1g}" for c in f.changes),
            "; ".join(f.deleted_by) or "the loss never uses it",
        ]
        for f in flat[:_LISTED]
    ]  # fmt: skip
    header = ["tensor", "direction", "entries", "moved by", "change of the loss", "deleted by"]
    return table(header, rows)


def _slab(slab: SlabRecord) -> str:
    names = ", ".join(slab.tensors[:3]) + (f" and {len(slab.tensors) - 3} more" if len(slab.tensors) > 3 else "")
    return facts(
        {
            "tensors": names,
            "coordinates": f"{slab.coordinates:,}",
            "bound on L": f"{upper(slab.bound, 3)} nats per token, all other parameters within {slab.radius:g}",
            "L when moved": f"by {_run(slab.steps)}: {', '.join(f'{loss:.3g}' for loss in slab.losses)}",
        }
    )


def _compared(record: ReplayRecord) -> str:
    rows = {
        "orbit": record.orbit or "none",
        "claimed": threshold_words(record.claimed) if record.claimed else "no orbit",
        "found": threshold_words(record.found) if record.found else "no orbit",
        "λ, s": f"{format_number(record.weight_decay)}, {format_number(record.temperature)}",
        "seed": str(record.seed),
        "witness": record.witness_checksum,
        "model": record.model.spec,
        "text": record.text.spec,
    }
    return facts(rows)


def _how(record: AuditRecord) -> str:
    design = record.design
    rows = {
        "model": f"{record.model.spec}: {record.model.description}",
        "decay": f"{record.objective.decay}, {record.objective.decayed_parameters:,} of "
        f"{record.objective.parameters:,} parameters",
        "text": f"{record.text.spec}, {format_count(record.text.documents, 'document')}, tokens "
        f"{record.text.token_checksum[:12]}…",
        "groups": f"{design.groups} of {design.sequences} × {design.block} tokens: a third each to choose orbits, to "
        f"lead the search ({design.search} rounds), and to confirm; rays on {design.ray_groups}",
        "probes": f"{design.probes} a group",
    }
    return facts(rows | origin_rows(record.provenance, record.cost))


def _run(values: Sequence[float]) -> str:
    return ", ".join(format_number(value, 3) for value in values)
