"""The tables of the page of an audit, and of a replay, as HTML, and words that they share with the rest of it."""

import math
from collections.abc import Sequence

from villani.commands.audit.record import (
    AuditRecord,
    OrbitRecord,
    OutcomeRecord,
    ReplayRecord,
    SkippedRecord,
    SlabRecord,
    StepRecord,
    ThresholdRecord,
)
from villani.commands.constants import page as theory
from villani.outwards import upper
from villani.report.elements import Folded, Row, Status, facts, muted, note, sections, table
from villani.report.estimates import Columns, rows_of, uncertain
from villani.report.numbers import format_number
from villani.report.origin import decay_words, origin_rows, text_words
from villani.work.records import Record

CRITERIA = {
    "smoothness": "(i) F is smooth",
    "growth": "(ii) F grows at least quadratically",
    "tails": "(iii) exp(−2F/s) has Gaussian tails",
    "differential_growth": "(iv) Ψ_s → ∞ for every s > 0",
}
_LISTED = 40  # rows of a table
_NAMED = 4  # tensors in a cell
_ORBITS: Columns = {
    "orbit": "name", "theorem": "theorem", "evidence": lambda o: _seen(o, _evidence(o)),
    "s* (bound)": lambda o: _seen(o, threshold_words(o.threshold)), "‖∇_B L‖²": "threshold.gradient_norm_squared",
    "Δ_B L": "threshold.laplacian", "λ²‖mA‖²": lambda o: format_number(o.threshold.norm_squared, 4),
    "directions of noise": lambda o: format_number(o.threshold.directions, 2),
    "θ": lambda o: ", ".join(o.moved) or "the given θ",
}  # fmt: skip
_ORBIT_NOTE = (
    "s* = (λ²‖mA‖² + ‖∇_B L‖²)/Δ_B L with A what grows and B what shrinks; with theorem D no λ helps. A moved θ is "
    "what a search led to: (iv) speaks of every θ. Of gradient noise in fewer than 20 directions, (tr Σ)²/tr Σ², the "
    "bound is one that holds for any number of them, and wider."
)
_SKIPPED: Columns = {
    "operation": "operation", "times": lambda one: str(one.count), "why": "reason", "first at": "place",
    "may hide symmetries of": lambda one: _some(one.tensors, _NAMED) or "what reaches it",
}  # fmt: skip
_SKIPPED_NOTE = (
    "The search took these to pass no rescaling. A symmetry that it missed there moves at least one of the tensors "
    "named, so that the number of symmetries and the smallest s* are of those found, not of all."
)
_STEPS: Columns = {
    "R": lambda step: f"{step.scale:g}",
    "change of the loss": lambda step: f"{step.loss_change:.1g}" if step.loss_change else "the same bits",
    "Ψ predicted": "predicted", "Ψ measured": "measured", "interval": "measured.interval",
}  # fmt: skip
_RAYS: Columns = {
    "direction": "direction", "r² coefficient of Ψ": "fit.quadratic",
    "of it exact, λ²‖mu‖²/s": lambda ray: format_number(ray.exact_quadratic, 4), "of the data": "data_fit.quadratic",
    "lack of fit, p": lambda ray: format_number(ray.fit.p_value, 2), "Ψ at the end": lambda ray: uncertain(ray.psi[-1]),
}  # fmt: skip
_RAY_NOTE = "A small p says that Ψ is no parabola there; a large one proves nothing."
_FLAT: Columns = {
    "tensor": "tensor", "direction": "kind", "entries": "coordinates", "moved by": lambda flat: _run(flat.steps),
    "change of the loss": lambda flat: ", ".join(f"{change:.1g}" for change in flat.changes),
    "deleted by": lambda flat: "; ".join(flat.deleted_by) or "the loss never uses it",
}  # fmt: skip
_UNBOUNDED: Columns = {
    "orbit": "name", "largest change of the loss": lambda orbit: f"{max(orbit.changes):.1g}",
    "decayed norm²": lambda orbit: _run(orbit.decayed_norms_squared), "norm²": lambda orbit: _run(orbit.norms_squared),
}  # fmt: skip
_OPERATIONS: Columns = {"operation": "operation", "kind": "kind", "where": "place", "what follows": "consequence"}
_NORMALISATIONS: Columns = {
    "operation": "operation", "ε": "eps", "Jacobian up to": lambda norm: upper(norm.jacobian_bound, 3),
    "second derivatives up to": lambda norm: upper(norm.laplacian_bound, 3), "where": "place",
}  # fmt: skip


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
        "The flat direction": _table([record.flat] if record.flat else [], _FLAT),
        "Where the loss is bounded": _slab(record.slab),
    }


def _audited(record: AuditRecord) -> dict[str, str]:
    """What was decided; then criterion (iv), criteria (ii) and (iii), and criterion (i)."""
    differential, coverage = record.differential_evidence, record.coverage_evidence
    smoothness, walk, orbits = record.smoothness_evidence, worst_walk(record), differential.orbits
    at_least = " at least" if differential.skipped else ""
    more = f"{len(orbits) - _LISTED} more are in the record. " if len(orbits) > _LISTED else ""
    along = facts({"orbit": worst_orbit(record).name}) + table(walk_rows(walk)) if walk else ""
    again = note(f"To evaluate it again: villani audit --replay RUN/{record.witness}") if record.witness else ""
    return {
        "The four criteria": facts({name: Status(one.verdict) for name, one in outcomes(record).items()}),
        f"Orbits, from {differential.symmetries} symmetries{at_least}": _table(orbits, _ORBITS, more + _ORBIT_NOTE),
        "Where symmetries may be missed": skipped_table(differential.skipped or []),
        "Along the orbit with the smallest s*": along + again if along else "",
        "Along rays": _table(differential.rays, _RAYS, _RAY_NOTE),
        "Flat directions": _table(coverage.flat, _FLAT),
        "Where the loss is bounded": _slab(coverage.slab),
        "Orbits to infinity with bounded decay": _table(coverage.orbits, _UNBOUNDED),
        "Operations that are not smooth": _table(smoothness.findings, _OPERATIONS),
        "Normalisations": _table(smoothness.normalisations, _NORMALISATIONS),
        Folded("What theory offers"): theory.model_table(record.constants) if record.constants else "",
        "How it was audited": _how(record),
    }


def _table(records: Sequence[Record], columns: Columns, text: str = "") -> str:
    """The first records as a table, with a note below; none without records."""
    return table(rows_of(records[:_LISTED], columns)) + (note(text) if text and records else "")


def skipped_table(skipped: Sequence[SkippedRecord]) -> str:
    """Where the search for symmetries may have missed some."""
    return _table(skipped, _SKIPPED, _SKIPPED_NOTE)


def walk_rows(walk: Sequence[StepRecord]) -> list[Row]:
    """Ψ along an orbit, on the page and in the terminal."""
    return rows_of(walk, _STEPS)


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


def outcomes(record: AuditRecord) -> dict[str, OutcomeRecord]:
    """The verdict of every criterion, under its name."""
    return {name: getattr(record, key) for key, name in CRITERIA.items()}


def threshold_words(threshold: ThresholdRecord) -> str:
    """s*, with its bound where there is one."""
    value = "none seen" if threshold.value is None else format_number(threshold.value, 3)
    if threshold.upper is None:
        return f"{value} (no bound)"
    return f"{value} (up to rounding)" if threshold.level == 1 else f"{value} (< {upper(threshold.upper, 3)})"


def _evidence(orbit: OrbitRecord) -> str:
    return "fresh groups" if bounded(orbit) else "none: no bound" if orbit.confirmed else "none: screened"


def _seen(orbit: OrbitRecord, text: str) -> str:
    """As evidence looks, or as what is none."""
    return text if bounded(orbit) else muted(text)


def bounded(orbit: OrbitRecord) -> bool:
    """Whether the orbit is evidence: with a bound on s*, from groups that had no part in choosing it."""
    return orbit.confirmed and orbit.threshold.upper is not None


def failing_orbit(record: AuditRecord) -> OrbitRecord | None:
    """The orbit on which (iv) is refuted, where it is, but not at the s of the audit."""
    above = record.differential_evidence.refuted_above
    if record.differential_growth.verdict != "refuted" or above is None or record.temperature > above:
        return None
    shown = [orbit for orbit in record.differential_evidence.orbits if bounded(orbit)]
    return min(shown, key=lambda orbit: orbit.threshold.upper or math.inf, default=None)


def worst_orbit(record: AuditRecord) -> OrbitRecord:
    """The orbit with the smallest s*."""
    return record.differential_evidence.orbits[0]


def worst_walk(record: AuditRecord) -> Sequence[StepRecord]:
    """Along that orbit; empty where there is none, or it was not walked."""
    orbits = record.differential_evidence.orbits
    return orbits[0].walk if orbits else ()
