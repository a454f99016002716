"""The page of a run, from its records: each command tells of its own kinds, in the order in which they stand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from villani.commands.content import read_records
from villani.commands.next_steps import STEPS
from villani.commands.registry import command_for
from villani.errors import InputError
from villani.report.page import Section, render
from villani.report.plain import guarded
from villani.work import foreign
from villani.work.ledger import write_atomically
from villani.work.records import Cost


def write_report(run: Path) -> Path:
    """Write `run/report.html` from `run/records.json` and, if there is one, `run/cost.json`; returns its path.

    Raises:
        InputError: in one line, if the folder or the records are missing, not JSON, of another schema version, or such
            that no page can be made of them.
    """
    if not run.is_dir():
        raise InputError(f"{run}: no such run directory; give the folder that a villani command wrote.")
    with foreign.reading(f"{run / 'records.json'}: no page can be made of it", "run the measurement again"):
        page = page_of(run)
    write_atomically(run / "report.html", page)
    return run / "report.html"


def page_of(run: Path) -> str:
    """The page of a run as `write_report` writes it, where records are villani's own and a fault in them is a bug."""
    records = read_records(run / "records.json")
    return page(records, read_costs(run / "cost.json", len(records.records)))


def page(records: Any, costs: Mapping[int, Cost]) -> str:
    """The page of the content of a `records.json`; `costs[i]` belongs to `records.records[i]`."""
    made = sections(records.records, costs)
    return render(records.title, subtitle(records.records, records.villani), made, records.records)


def subtitle(records: Sequence[Any], version: str) -> str:
    """The models of records, and the villani that made them."""
    models = [model for record in records if (model := getattr(record, "model", None))]
    return " · ".join([*dict.fromkeys(f"{m.spec} ({m.architecture})" for m in models), f"villani {version}"])


def sections(records: Sequence[Any], costs: Mapping[int, Cost]) -> list[Section]:
    """What the commands say of records: one section a command that tells of all of its records, or one a record."""
    belonging: dict[str, list[Any]] = {}
    for i, record in enumerate(records):
        if "cost" in type(record).model_fields:
            record = record.model_copy(update={"cost": costs.get(i)})
        belonging.setdefault(command_for(record).name, []).append(record)
    made: list[Section] = []
    for name, own in belonging.items():
        page, first = command_for(own[0]).page, len(made)
        if hasattr(page, "summary"):
            made.append(page.summary(own))
        for one in () if hasattr(page, "summary") else own:
            figures, limits = page.pictures(guarded(one)), [*page.limits(one)]
            made.append(Section(page.headline(one), page.findings(one), figures, page.tables(one), limits))
        made[first:] = [replace(section, steps=STEPS.get(name, ())) for section in made[first:]]
    return made


def read_costs(path: Path, count: int) -> dict[int, Cost]:
    """What so many records cost; nothing where there is no such file."""
    if not path.exists():
        return {}
    remedy = "delete it to go without"
    content = foreign.read_json(path, remedy)
    with foreign.reading(f"{path}: not a table of costs", remedy):
        costs = TypeAdapter(dict[int, Cost]).validate_python(content)
    if stray := [index for index in costs if not 0 <= index < count]:
        raise InputError(
            f"{path}: a cost for record {stray[0]}, but there are {count} records; delete it to go without."
        )
    return costs
