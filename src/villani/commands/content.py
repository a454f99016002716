"""The content of `records.json`: records of every kind."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from villani.commands.audit.record import AuditRecord, ReplayRecord
from villani.commands.certify.record import CertificateRecord
from villani.commands.converge.record import ConvergenceRecord
from villani.commands.paper.record import PaperRecord
from villani.commands.recommend.record import RecommendationRecord
from villani.commands.spectrum.record import SpectrumRecord
from villani.errors import InputError
from villani.work import foreign
from villani.work.records import (
    ExactRecord,
    MeasurementRecord,
    ModelConstantsRecord,
    Record,
    ReferenceRecord,
    TrainingRecord,
)

AnyRecord = Annotated[
    MeasurementRecord
    | TrainingRecord
    | ExactRecord
    | ReferenceRecord
    | ModelConstantsRecord
    | AuditRecord
    | ReplayRecord
    | SpectrumRecord
    | ConvergenceRecord
    | CertificateRecord
    | RecommendationRecord
    | PaperRecord,
    Field(discriminator="kind"),
]


class RunRecords(Record):
    """The content of `records.json`."""

    schema_version: Literal[1] = 1
    villani: str = Field(description="version of villani that wrote the file")
    title: str
    records: list[AnyRecord]


_SCHEMA_VERSION = RunRecords.model_fields["schema_version"].default


def read_records(path: Path, remedy: str = "run the measurement again") -> RunRecords:
    """The records of a run, whoever wrote them.

    Raises:
        InputError: no such file, not JSON, of another schema version, or not records; `remedy` ends the line.
    """
    content = foreign.read_json(path, remedy)
    version = content.get("schema_version", _SCHEMA_VERSION) if isinstance(content, dict) else None
    if isinstance(content, dict) and version != _SCHEMA_VERSION:
        raise InputError(
            f"{path}: schema version {foreign.clipped(repr(version))}, but this villani reads {_SCHEMA_VERSION}; "
            "use the version that wrote it."
        )
    return foreign.validated(RunRecords, content, f"{path}: not a villani record", remedy)
