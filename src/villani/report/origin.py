"""Where a record comes from, and what it cost, as a page lists it."""

from villani.report.numbers import format_count
from villani.work.records import Cost, ObjectiveRecord, Provenance, TextRecord


def decay_words(objective: ObjectiveRecord) -> str:
    """Which parameters decay."""
    return f"{objective.decay}, {objective.decayed_parameters:,} of {objective.parameters:,} parameters"


def text_words(text: TextRecord) -> str:
    """Which text it was."""
    return f"{text.spec}, {format_count(text.documents, 'document')}, tokens {text.token_checksum[:12]}…"


def origin_rows(origin: Provenance, cost: Cost | None) -> dict[str, str]:
    """What determines the bits of a record, and what it cost, for a list of facts."""
    rows = {
        "parameters": origin.parameter_checksum,
        "command": origin.command,
        "versions": ", ".join(f"{name} {version}" for name, version in origin.versions.items()),
        "device": f"{origin.device}, {origin.threads} threads",
    }
    if cost:
        rows["cost"] = f"{cost.seconds:.0f} s, {cost.peak_memory_bytes / 2**30:.2f} GiB at most"
    return rows
