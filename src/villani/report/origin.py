"""Where a record comes from, and what it cost, as a page lists it."""

from villani.work.records import Cost, Provenance


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
