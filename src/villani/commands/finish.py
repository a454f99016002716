"""How every command ends: a run directory with records, costs and a page."""

import hashlib
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from villani.commands.content import RunRecords
from villani.report.page import page_of
from villani.work.ledger import Settings, write_atomically, write_records
from villani.work.records import Cost


def finish(directory: Path, title: str, records: list[Any], costs: dict[int, Cost]) -> None:
    """Write the records, what they cost, and the report."""
    write_records(directory, RunRecords(villani=version("villani"), title=title, records=records), costs)
    write_atomically(directory / "report.html", page_of(directory))


def default_name(command: str, model: str, settings: Settings) -> str:
    """A directory name from what was asked: readable, and the same for the same settings."""
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", model).strip("-.")[-40:]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return f"{command}-{slug}-{digest}"
