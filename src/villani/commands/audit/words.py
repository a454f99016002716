"""Words that the page and the pictures of an audit share."""

from collections.abc import Sequence

from villani.commands.audit.record import AuditRecord, OrbitRecord, OutcomeRecord, StepRecord, ThresholdRecord
from villani.outwards import upper
from villani.report.numbers import format_number, format_uncertain

CRITERIA = {
    "smoothness": "(i) F is smooth",
    "growth": "(ii) F grows at least quadratically",
    "tails": "(iii) exp(−2F/s) has Gaussian tails",
    "differential_growth": "(iv) Ψ_s → ∞ for every s > 0",
}


def outcomes(record: AuditRecord) -> dict[str, OutcomeRecord]:
    """The verdict of every criterion, under its name."""
    verdicts = (record.smoothness, record.growth, record.tails, record.differential_growth)
    return dict(zip(CRITERIA.values(), verdicts, strict=True))


def threshold_words(threshold: ThresholdRecord) -> str:
    """s*, with its bound where there is one."""
    value = "none seen" if threshold.value is None else format_number(threshold.value, 3)
    if threshold.upper is None:
        return f"{value} (no bound)"
    return f"{value} (up to rounding)" if threshold.level == 1 else f"{value} (< {upper(threshold.upper, 3)})"


def worst_orbit(record: AuditRecord) -> OrbitRecord:
    """The orbit with the smallest s*."""
    return record.differential_evidence.orbits[0]


def worst_walk(record: AuditRecord) -> Sequence[StepRecord]:
    """Along that orbit; empty where there is none, or it was not walked."""
    orbits = record.differential_evidence.orbits
    return orbits[0].walk if orbits else ()


def step_words(step: StepRecord) -> str:
    """Ψ as it was measured at one point of an orbit."""
    return format_uncertain(step.measured.value, step.measured.sem)
