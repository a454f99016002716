"""What results in Python show, draw and save: their records, and with these the pages of the commands.

A result becomes the record of its command (`commands/NAME/results.py`: `record`), and a record becomes rows (`rows` of
the same file), a page and pictures (`commands/pages.py`). What has no record is told here.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from villani.commands.content import read_records, run_records
from villani.commands.pages import sections, subtitle
from villani.commands.registry import command_for
from villani.errors import InputError
from villani.estimate import Estimate
from villani.report import elements, figures
from villani.report.colours import sign_colour
from villani.report.numbers import format_bounded, format_interval, format_number, format_uncertain, readable
from villani.report.page import Section, render
from villani.report.plain import drawn
from villani.results import plain, restored
from villani.work import foreign
from villani.work.ledger import check_writable, write_atomically
from villani.work.records import CONFIDENCE, EstimateRecord, Record

FORMAT, VERSION = "villani result", 1  # of saved files
_HOMES = {  # results that are no records → where they are made, and where their records are
    "Estimate": ("villani.estimate", ""),
    "Measurement": ("villani.measurement.measurement", "villani.commands.measure.results"),
    "Audit": ("villani.criteria.audit", "villani.commands.audit.results"),
    "Spectrum": ("villani.measurement.spectrum", "villani.commands.spectrum.results"),
    "Eigenpairs": ("villani.measurement.spectrum", "villani.commands.spectrum.results"),
    "Constant": ("villani.theory.constants", ""),
    "Comparison": ("villani.theory.comparison", ""),
    "ModelConstants": ("villani.theory.comparison", "villani.commands.constants.results"),
}
_REMEDY = "save the result again"


def record_of(result: Any) -> Record | None:
    """The record of a result; None where there is none for its kind.

    Raises:
        InputError: it is no result, or does not know what it was made of.
    """
    if isinstance(result, Record):
        return result
    name = type(result).__name__
    if name not in _HOMES or type(result).__module__ != _HOMES[name][0]:
        raise InputError(f"a {name} is no result of villani: give what measure, audit, spectrum or a command returned")
    home = _HOMES[name][1]
    if not home:
        return None
    make = import_module(home).record
    if name == "ModelConstants":
        return make(result)  # type: ignore[no-any-return]
    if result.origin is None:
        raise InputError(f"this {name} was measured at a displaced θ: use its figures, or measure at the model's own θ")
    return make(result, result.origin)  # type: ignore[no-any-return]


def to_dict(result: Any) -> dict[str, Any]:
    """See `Shown.to_dict`."""
    if isinstance(result, Estimate):
        return _estimate(result)
    record = record_of(result)
    if record is not None:
        return record.model_dump(mode="json")
    constants = import_module("villani.commands.constants.results")
    each = [one.model_dump(mode="json") for one in constants.records_of(result)]
    return each[0] if type(result).__name__ == "Constant" else {"constants": each}


def _estimate(result: Estimate) -> dict[str, Any]:
    """As `EstimateRecord`, with parts if there are some; None for what is not finite."""
    low, high = result.interval(CONFIDENCE)
    own = {"value": _finite(result.value), "sem": _finite(result.sem), "n": int(result.n)}
    made = {**own, "interval": [_finite(low), _finite(high)], "status": result.status}
    return made | ({"parts": {name: _estimate(part) for name, part in result.parts.items()}} if result.parts else {})


def rows(result: Any) -> list[dict[str, Any]]:
    """Its figures, a row each."""
    if isinstance(result, Estimate):
        parts = {"value": result, **result.parts}
        each = {name: to_dict(one) for name, one in parts.items()}
        return [
            {
                "name": name, "value": one["value"], "sem": one["sem"], "low": one["interval"][0],
                "high": one["interval"][1], "n": one["n"], "status": one["status"],
            }
            for name, one in each.items()
        ]  # fmt: skip
    record = record_of(result)
    if record is None:
        constants = import_module("villani.commands.constants.results")
        listed: list[dict[str, Any]] = constants.plain_rows(constants.records_of(result))
        return listed
    own = getattr(_results(record), "rows", None)
    return own(record) if own else [{"name": name, "value": value} for name, value in _flat(record.model_dump())]


def to_dataframe(result: Any) -> Any:
    """See `Shown.to_dataframe`."""
    try:
        pandas = import_module("pandas")
    except ImportError:
        raise InputError(
            "to_dataframe needs pandas, which is not installed: pip install pandas, or use to_dict()"
        ) from None
    return pandas.DataFrame(rows(result))


def html_of(result: Any) -> str:
    """A headline and a table, for notebooks; every string is escaped."""
    if isinstance(result, Estimate):
        head = str(result)
    else:
        record = record_of(result)
        head = repr(result) if record is None or not hasattr(record, "kind") else headline(record)
    return f"<p><strong>{elements.html(head)}</strong></p>{elements.table([_cells(row) for row in rows(result)])}"


def headline(record: Any) -> str:
    """The sentence on top of its page."""
    page = command_for(record).page
    return readable(page.summary([record]).headline if hasattr(page, "summary") else page.headline(record))


def plot(result: Any, name: str | None = None) -> Any:
    """See `Shown.plot`."""
    made = _sections([result])
    pictures = {key: one[1] for section in made for key, one in section.pictures.items() if one and one[1]}
    if not pictures:
        raise InputError(f"this {type(result).__name__} has no picture: use to_dict() or its table")
    if name is not None and name not in pictures:
        raise InputError(f"no picture is called {name!r}: expected one of {', '.join(pictures)}")
    figure = pictures[name or next(iter(pictures))]
    return type(figure)(drawn(json.loads(figure.to_json())))


def report(result: Any, path: str | os.PathLike[str]) -> Path:
    """Write the page of a result, as the commands write theirs: one HTML file that needs no network.

        villani.report(villani.audit(objective, temperature=1e-3), "audit.html")

    Args:
        result: what `measure`, `audit`, `spectrum`, `eigenpairs`, `recommend`, `certify` or `converge` returned, an
            `Estimate` or constants of `villani.theory`; or a list of them, which then share the page.
        path: of the file; one that is there is replaced.

    Returns:
        the path.

    Raises:
        InputError: no result, or one that does not know what it was made of; the file cannot be written.
    """
    results = [*result] if isinstance(result, Sequence) and not isinstance(result, str) else [result]
    if not results:
        raise InputError("there is no result in the list: give at least one")
    made = _sections(results)
    records: list[Any] = [r for one in results if not isinstance(one, Estimate) and (r := record_of(one))]
    names = dict.fromkeys(command_for(r).name for r in records) or {"in Python": None}
    text = render(f"villani {', '.join(names)}", subtitle(records, version("villani")), made, records)
    return _write(Path(path), text)


def save(result: Any, path: str | os.PathLike[str]) -> None:
    """See `Shown.save`."""
    kind = "record" if isinstance(result, Record) and hasattr(result, "kind") else type(result).__name__
    if kind != "record" and kind not in _HOMES:
        raise InputError(f"a {kind} is a part of a result: save the result that it is of")
    content = plain(result)
    head = {"format": FORMAT, "version": VERSION, "villani": version("villani"), "kind": kind}
    text = json.dumps(head | {"checksum": _checksum(content), "content": content}, ensure_ascii=False, allow_nan=False)
    if len(text.encode()) > foreign.MOST_TEXT:
        raise InputError(
            f"{path}: more than {foreign.MOST_TEXT:,} bytes, which no villani reads; save to_dict() instead"
        )
    _write(Path(path), text + "\n")


def load(path: str | os.PathLike[str]) -> Any:
    """What `.save` wrote, to the last bit, or the record of a run.

        measurement.save("m.json"); villani.load("m.json") == measurement

    Args:
        path: of a saved file; or a run folder or its `records.json`, whose one record is returned, or a list of them.

    Returns:
        a result of the type that was saved; tensors are on the CPU.

    Raises:
        InputError: no such file; or it is damaged, changed by hand, or of a version that this villani does not read.
    """
    place = Path(path)
    place = place / "records.json" if place.is_dir() else place
    content = foreign.read_json(place, _REMEDY)
    if isinstance(content, dict) and "records" in content and "format" not in content:
        records = read_records(place).records
        return records[0] if len(records) == 1 else records
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{place}: not a result of villani; give a file that .save wrote, or a run folder")
    if content.get("version") != VERSION:
        shown = foreign.clipped(repr(content.get("version")))
        raise InputError(f"{place}: version {shown} of saved results, but this villani reads {VERSION}; {_REMEDY}")
    kind, saved = content.get("kind"), content.get("content")
    with foreign.reading(f"{place}: damaged", _REMEDY):
        if content.get("checksum") != _checksum(saved):
            raise ValueError("its content is not what its checksum is of")
        if kind == "record":
            whole = {"villani": "", "title": "", "records": [saved]}
            return run_records().model_validate(whole).records[0]
        if not isinstance(kind, str) or kind not in _HOMES:
            raise ValueError(f"no result is called {foreign.clipped(repr(kind))}")
        result = restored(getattr(import_module(_HOMES[kind][0]), kind), saved)
        hash(result), repr(result)  # of arrays that do not go together nothing can be told
    return result


def _sections(results: Sequence[Any]) -> list[Section]:
    """What the page of results says; those that have no record come last."""
    records, others = [], []
    for result in results:
        record = None if isinstance(result, Estimate) else record_of(result)
        if record is not None and not hasattr(record, "kind"):
            raise InputError(f"a {type(result).__name__} is a part of a result: give the result that it is of")
        others += [_section(result)] if record is None else []
        records += [] if record is None else [record]
    costs = {i: cost for i, record in enumerate(records) if (cost := getattr(record, "cost", None))}
    return [*sections(records, costs), *others]


def _section(result: Any) -> Section:
    """Of an estimate, or of constants without a model."""
    if not isinstance(result, Estimate):
        made: Section = import_module("villani.commands.constants.results").section(result)
        return made
    shown = {row["name"]: row for row in rows(result) if None not in row.values()}
    records = [
        EstimateRecord(value=r["value"], sem=r["sem"], n=r["n"], interval=(r["low"], r["high"]), status=r["status"])
        for r in shown.values()
    ]
    texts = [format_uncertain(one.value, one.sem) for one in records]
    picture = figures.rows(
        [one.value for one in records], [*shown], texts, {"size": 10, "color": [sign_colour(one) for one in records]},
        110 + 48 * len(records), {"title": "", "zeroline": True, "exponentformat": "power", "nticks": 6}, False,
        error_x=figures.interval_bars(records),
    )  # fmt: skip
    table = elements.table([_cells(row) for row in rows(result)])
    caption = "Bars are 95 % intervals; an exact number has none."
    return Section(str(result), {}, {"estimate": ("", picture, caption) if records else None}, table, [])


def _results(record: Any) -> Any:
    """The results.py of the command that a record belongs to, if it has one."""
    if not hasattr(record, "kind"):
        return None
    try:
        return import_module(f"{command_for(record).package}.results")
    except ModuleNotFoundError:
        return None


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    """A row as people read it: a value with its error, bounds outwards, a status in its colour."""
    made: dict[str, str] = {}
    for name, value in row.items():
        if name == "value" and "sem" in row:
            known = value is not None and row["sem"] is not None
            made["value ± error"] = format_uncertain(value, row["sem"]) if known else format_number(value)
        elif name == "value" and "bound" in row:
            made["value ± bound"] = format_bounded(value, row["bound"])
        elif name == "low":
            ends = (math.nan if row[end] is None else row[end] for end in ("low", "high"))
            made["95 % interval"] = format_interval(*ends)
        elif name not in ("sem", "bound", "high"):
            number = isinstance(value, float) or value is None
            text = format_number(value) if number else str(value)
            made[name] = elements.Status(text) if name in ("status", "verdict") else text
    return made


def _flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """Numbers and texts by their path."""
    if isinstance(value, Mapping):
        return [pair for key, one in value.items() for pair in _flat(one, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list | tuple):
        return [pair for index, one in enumerate(value) for pair in _flat(one, f"{name}.{index}")]
    return [(name, value)]


def _write(path: Path, text: str) -> Path:
    check_writable(path)
    try:
        write_atomically(path, text)
    except OSError as error:
        raise InputError(f"{path}: {foreign.reason(error)}; give another path") from None
    return path


def _checksum(content: Any) -> str:
    return sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
