"""How every command ends: a run directory with records, costs and a page."""

import hashlib
import json
import math
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from villani.errors import InputError
from villani.report.page import write_report
from villani.runs.content import RunRecords
from villani.runs.records import Cost
from villani.runs.store import Settings, write_records


def finish(directory: Path, title: str, records: list[Any], costs: dict[int, Cost]) -> None:
    """Write the records, what they cost, and the report.

    Raises:
        InputError: a figure is not finite: it is written nowhere, and what was measured stays in the ledger.
    """
    for index, record in enumerate(records):
        if (place := _not_finite(record, f"records.{index}")) is not None:
            raise InputError(
                f"{directory}: the figure {place} overflows: no record is written; ask for λ, s "
                "and the like of a more moderate size"
            )
    write_records(directory, RunRecords(villani=version("villani"), title=title, records=records), costs)
    write_report(directory)


def _not_finite(value: Any, place: str) -> str | None:
    """The first figure in a record that is infinite or NaN, by its name."""
    if isinstance(value, float):
        return None if math.isfinite(value) else place
    if isinstance(value, BaseModel):
        parts = [(name, getattr(value, name)) for name in type(value).model_fields]
    elif isinstance(value, dict):
        parts = [(str(key), one) for key, one in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(str(index), one) for index, one in enumerate(value)]
    else:
        return None
    return next((found for name, one in parts if (found := _not_finite(one, f"{place}.{name}"))), None)


def default_name(command: str, model: str, settings: Settings) -> str:
    """A directory name from what was asked: readable, and the same for the same settings."""
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", model).strip("-.")[-40:]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return f"{command}-{slug}-{digest}"
