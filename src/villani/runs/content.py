"""The content of `records.json`: records of every kind."""

from typing import Annotated, Literal

from pydantic import Field

from villani.runs.audits import AuditRecord, ReplayRecord
from villani.runs.certificates import CertificateRecord
from villani.runs.convergences import ConvergenceRecord
from villani.runs.papers import PaperRecord
from villani.runs.recommendations import RecommendationRecord
from villani.runs.records import (
    ExactRecord,
    MeasurementRecord,
    ModelConstantsRecord,
    Record,
    ReferenceRecord,
    TrainingRecord,
)
from villani.runs.spectra import SpectrumRecord

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
