"""What `villani compare` does: read run folders, hold the others against the first, and measure nothing."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from villani.commands.audit.record import AuditRecord
from villani.commands.compare.measurements import compare_measurements, measured_run
from villani.commands.compare.record import ComparedRun, ComparisonRecord, Kind, PairRecord
from villani.commands.compare.settings import CompareSettings
from villani.commands.compare.spectra import audited, compare_spectra
from villani.commands.compare.unlike import clean
from villani.commands.content import read_records
from villani.commands.measure.record import MeasurementRecord
from villani.commands.running import Outcome, versions
from villani.commands.spectrum.record import SpectrumRecord
from villani.errors import InputError
from villani.inputs.folders import local_path
from villani.work import foreign
from villani.work.records import CONFIDENCE
from villani.work.work import Work

_REMEDY = "give the folder of a finished run of villani measure, spectrum or audit"
_KINDS: dict[Kind, type[Any]] = {"measurement": MeasurementRecord, "spectrum": SpectrumRecord, "audit": AuditRecord}


def run(settings: CompareSettings, work: Work) -> Outcome:
    """Compare, from what the runs have left; the same runs give the same bytes.

    Raises:
        InputError: a folder that is no run, runs of different commands, or files that contradict each other.
    """
    folders = [local_path(name, "run") for name in settings.runs]
    kinds, records, checksums = zip(*map(_read, folders), strict=True)
    for index, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise InputError(
                f"{settings.runs[index]} is a run of {_command(kind)} and {settings.runs[0]} of {_command(kinds[0])}: "
                "compare runs of one command"
            )
    names = settings.labels
    record = _compared(kinds[0], settings, folders, names, records, checksums)
    digest = hashlib.sha256(record.model_dump_json().encode()).hexdigest()  # of what ledgers say, too
    work.open(
        "compare", settings.about, {"runs": settings.runs, "checksums": [*checksums], "comparison": digest},
        settings.model_dump(),
    )  # fmt: skip
    return Outcome([record])


def _command(kind: str) -> str:
    return "measure" if kind == "measurement" else kind


def _read(folder: Path) -> tuple[Kind, Any, str]:
    """What a run is of, its record, and the checksum of its records.json.

    Raises:
        InputError: no run, or one of a command that cannot be compared.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run folder; {_REMEDY}")
    path = folder / "records.json"
    content = read_records(path, _REMEDY)
    checksum = hashlib.sha256(foreign.read_content(path, foreign.MOST_TEXT, _REMEDY)).hexdigest()
    for kind, own in _KINDS.items():
        for record in content.records:
            if isinstance(record, own) and getattr(record, "displacement", None) is None:
                return kind, record, checksum
    kinds = ", ".join(dict.fromkeys(record.kind for record in content.records)) or "nothing"
    raise InputError(f"{folder}: a run of {kinds}, which cannot be compared; {_REMEDY}")


def _compared(
    kind: Kind, settings: CompareSettings, folders: Sequence[Path], names: Sequence[str], records: Sequence[Any],
    checksums: Sequence[str],
) -> ComparisonRecord:  # fmt: skip
    pairs: list[PairRecord] = []
    count = 0
    if kind == "measurement":
        triples = zip(folders, names, records, strict=True)
        pairs, count = compare_measurements([measured_run(folder, name, record) for folder, name, record in triples])
    runs = [
        ComparedRun(
            name=name, run=given, records_checksum=checksum, command=clean(record.provenance.command),
            model=record.model, objective=record.objective, text=record.text, groups=record.design.groups,
            sequences=record.design.sequences, block=record.design.block, seed=record.design.seed,
            parameter_checksum=record.provenance.parameter_checksum,
        )
        for name, given, checksum, record in zip(names, settings.runs, checksums, records, strict=True)
    ]  # fmt: skip
    return ComparisonRecord(
        compared=kind, command=settings.command(), versions=versions("villani", "numpy", "scipy"), runs=runs,
        confidence=CONFIDENCE, comparisons=count, pairs=pairs,
        spectra=compare_spectra(names, records) if kind == "spectrum" else [],
        audits=[audited(name, record) for name, record in zip(names, records, strict=True)] if kind == "audit" else [],
    )  # fmt: skip
