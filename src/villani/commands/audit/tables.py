"""The tables of the page of an audit, and of a replay, as HTML."""

from collections.abc import Sequence

from villani.commands.audit.record import (
    AuditRecord,
    FlatRecord,
    OrbitRecord,
    ReplayRecord,
    SkippedRecord,
    SlabRecord,
    StepRecord,
)
from villani.commands.audit.words import outcomes, step_words, threshold_words, worst_orbit, worst_walk
from villani.commands.constants import page as theory
from villani.outwards import upper
from villani.report.elements import Row, Status, facts, note, sections, table
from villani.report.estimates import interval, uncertain
from villani.report.numbers import format_number
from villani.report.origin import decay_words, origin_rows, text_words

_LISTED = 40  # rows of a table
_NAMED = 4  # tensors in a cell
_ORBIT_NOTE = (
    "s* = (λ²‖mA‖² + ‖∇_B L‖²)/Δ_B L with A what grows and B what shrinks; with theorem D no λ helps. A moved θ is "
    "what a search led to: (iv) speaks of every θ. Of gradient noise in fewer than 20 directions, (tr Σ)²/tr Σ², the "
    "bound is one that holds for any number of them, and wider."
)
_SKIPPED_NOTE = (
    "The search took these to pass no rescaling. A symmetry that it missed there moves at least one of the tensors "
    "named, so that the number of symmetries and the smallest s* are of those found, not of all."
)
_RAY_NOTE = "A small p says that Ψ is no parabola there; a large one proves nothing."


def tables(record: AuditRecord | ReplayRecord) -> str:
    """Sections of tables, as HTML."""
    return sections(_replayed(record) if isinstance(record, ReplayRecord) else _audited(record))


def _replayed(record: ReplayRecord) -> dict[str, str]:
    compared = {
        "orbit": record.orbit or "none",
        "claimed": threshold_words(record.claimed) if record.claimed else "no orbit",
        "found": threshold_words(record.found) if record.found else "no orbit",
        "λ, s": f"{format_number(record.weight_decay)}, {format_number(record.temperature)}",
        "seed": str(record.seed), "witness": record.witness_checksum, "model": record.model.spec,
        "text": record.text.spec,
    }  # fmt: skip
    return {
        "What was claimed, and what came out": facts(compared),
        "Along the orbit": table(walk_rows(record.walk)),
        "The flat direction": _flat_table([record.flat] if record.flat else []),
        "Where the loss is bounded": _slab(record.slab),
    }


def _audited(record: AuditRecord) -> dict[str, str]:
    """What was decided; then criterion (iv), criteria (ii) and (iii), and criterion (i)."""
    differential, coverage = record.differential_evidence, record.coverage_evidence
    smoothness, walk = record.smoothness_evidence, worst_walk(record)
    at_least = " at least" if differential.skipped else ""
    along = facts({"orbit": worst_orbit(record).name}) + table(walk_rows(walk)) if walk else ""
    again = note(f"To evaluate it again: villani audit --replay RUN/{record.witness}") if record.witness else ""
    rays: list[Row] = [
        {
            "direction": ray.direction, "r² coefficient of Ψ": uncertain(ray.fit.quadratic),
            "of it exact, λ²‖mu‖²/s": format_number(ray.exact_quadratic, 4),
            "of the data": uncertain(ray.data_fit.quadratic), "lack of fit, p": format_number(ray.fit.p_value, 2),
            "Ψ at the end": uncertain(ray.psi[-1]),
        }
        for ray in differential.rays
    ]  # fmt: skip
    orbits: list[Row] = [
        {
            "orbit": orbit.name, "largest change of the loss": f"{max(orbit.changes):.1g}",
            "decayed norm²": _run(orbit.decayed_norms_squared), "norm²": _run(orbit.norms_squared),
        }
        for orbit in coverage.orbits
    ]  # fmt: skip
    operations: list[Row] = [
        {"operation": f.operation, "kind": f.kind, "where": f.place, "what follows": f.consequence}
        for f in smoothness.findings
    ]
    normalisations: list[Row] = [
        {
            "operation": n.operation, "ε": format_number(n.eps), "Jacobian up to": upper(n.jacobian_bound, 3),
            "second derivatives up to": upper(n.laplacian_bound, 3), "where": n.place,
        }
        for n in smoothness.normalisations
    ]  # fmt: skip
    return {
        "The four criteria": facts({name: Status(one.verdict) for name, one in outcomes(record).items()}),
        f"Orbits, from {differential.symmetries} symmetries{at_least}": _orbit_table(differential.orbits),
        "Where symmetries may be missed": skipped_table(differential.skipped or []),
        "Along the orbit with the smallest s*": along + again if along else "",
        "Along rays": _noted(rays, _RAY_NOTE),
        "Flat directions": _flat_table(coverage.flat),
        "Where the loss is bounded": _slab(coverage.slab),
        "Orbits to infinity with bounded decay": table(orbits[:_LISTED]),
        "Operations that are not smooth": table(operations[:_LISTED]),
        "Normalisations": table(normalisations[:_LISTED]),
        "What theory offers": theory.model_table(record.constants) if record.constants else "",
        "How it was audited": _how(record),
    }


def _noted(rows: Sequence[Row], text: str) -> str:
    """A table with a note below, if there are any rows."""
    return table(rows[:_LISTED]) + note(text) if rows else ""


def _orbit_table(orbits: Sequence[OrbitRecord]) -> str:
    rows: list[Row] = [
        {
            "orbit": orbit.name, "theorem": orbit.theorem,
            "measured on": "fresh groups" if orbit.confirmed else "screened",
            "s* (bound)": threshold_words(orbit.threshold),
            "‖∇_B L‖²": uncertain(orbit.threshold.gradient_norm_squared), "Δ_B L": uncertain(orbit.threshold.laplacian),
            "λ²‖mA‖²": format_number(orbit.threshold.norm_squared, 4),
            "directions of noise": format_number(orbit.threshold.directions, 2),
            "θ": ", ".join(orbit.moved) or "the given θ",
        }
        for orbit in orbits
    ]  # fmt: skip
    more = f"{len(orbits) - _LISTED} more are in the record. " if len(orbits) > _LISTED else ""
    return _noted(rows, f"{more}{_ORBIT_NOTE}")


def skipped_table(skipped: Sequence[SkippedRecord]) -> str:
    """Where the search for symmetries may have missed some."""
    rows: list[Row] = [
        {
            "operation": one.operation, "times": str(one.count), "why": one.reason, "first at": one.place,
            "may hide symmetries of": _some(one.tensors, _NAMED) or "what reaches it",
        }
        for one in skipped
    ]  # fmt: skip
    return _noted(rows, _SKIPPED_NOTE)


def walk_rows(walk: Sequence[StepRecord]) -> list[Row]:
    """Ψ along an orbit, on the page and in the terminal."""
    return [
        {
            "R": f"{step.scale:g}",
            "change of the loss": f"{step.loss_change:.1g}" if step.loss_change else "the same bits",
            "Ψ predicted": uncertain(step.predicted), "Ψ measured": step_words(step),
            "interval": interval(step.measured),
        }
        for step in walk
    ]  # fmt: skip


def _flat_table(flat: Sequence[FlatRecord]) -> str:
    rows: list[Row] = [
        {
            "tensor": f.tensor, "direction": f.kind, "entries": f"{f.coordinates:,}", "moved by": _run(f.steps),
            "change of the loss": ", ".join(f"{change:.1g}" for change in f.changes),
            "deleted by": "; ".join(f.deleted_by) or "the loss never uses it",
        }
        for f in flat
    ]  # fmt: skip
    return table(rows[:_LISTED])


def _slab(slab: SlabRecord | None) -> str:
    if slab is None:
        return ""
    return facts(
        {
            "tensors": _some(slab.tensors, 3), "coordinates": f"{slab.coordinates:,}",
            "bound on L": f"{upper(slab.bound, 3)} nats per token, all other parameters within {slab.radius:g}",
            "L when moved": f"by {_run(slab.steps)}: {', '.join(f'{loss:.3g}' for loss in slab.losses)}",
        }
    )  # fmt: skip


def _how(record: AuditRecord) -> str:
    design = record.design
    rows = {
        "model": f"{record.model.spec}: {record.model.description}",
        "decay": decay_words(record.objective),
        "text": text_words(record.text),
        "groups": f"{design.groups} of {design.sequences} × {design.block} tokens: a third each to choose orbits, to "
        f"lead the search ({design.search} rounds), and to confirm; rays on {design.ray_groups}",
        "probes": f"{design.probes} a group",
    }
    return facts(rows | origin_rows(record.provenance, record.cost))


def _some(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _run(values: Sequence[float]) -> str:
    return ", ".join(format_number(value, 3) for value in values)
