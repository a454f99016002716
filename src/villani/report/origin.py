"""Where a record comes from, and what it cost, as a page lists it."""

from villani.report.numbers import format_count, format_number
from villani.work.budget import size
from villani.work.records import Cost, ObjectiveRecord, Provenance, TextRecord


def decay_words(objective: ObjectiveRecord) -> str:
    """Which parameters decay."""
    return f"{objective.decay}, {objective.decayed_parameters:,} of {objective.parameters:,} parameters"


def text_words(text: TextRecord) -> str:
    """Which text it was."""
    return f"{text.spec}, {format_count(text.documents, 'document')}, tokens {text.token_checksum[:12]}…"


def cost_words(cost: Cost | None) -> str:
    """What it took, on a page and in a terminal."""
    if cost is None:
        return "not recorded"
    words = f"{format_number(cost.seconds, 3)} s, {size(cost.peak_memory_bytes)} at the peak"
    if cost.predicted_seconds and cost.pilot_seconds is not None:
        took = cost.seconds - cost.pilot_seconds
        words += f"; predicted {cost.predicted_seconds:.3g} s, took {took:.3g} s, pilot {cost.pilot_seconds:.3g} s"
    return words


def origin_rows(origin: Provenance, cost: Cost | None) -> dict[str, str]:
    """What determines the bits of a record, and what it cost, for a list of facts."""
    return {
        "parameters": origin.parameter_checksum,
        "command": origin.command,
        "versions": ", ".join(f"{name} {version}" for name, version in origin.versions.items()),
        "device": f"{origin.device}, {origin.threads} threads",
        "cost": cost_words(cost),
    }
