"""From constants that were computed in Python to the record of the command, or to a page without one."""

from collections.abc import Sequence
from typing import Any

from villani.commands.constants.record import ModelConstantsRecord, ModelPointRecord
from villani.commands.exact.ladder import LEGEND, PREPRINT, constant_rows, ladder
from villani.commands.exact.record import ConstantRecord
from villani.report import elements
from villani.report.page import Section
from villani.theory.comparison import Comparison, ModelConstants
from villani.theory.constants import Constant
from villani.work.records import ModelRecord


def record(result: ModelConstants) -> ModelConstantsRecord:
    """That of a call in Python, at one λ and s."""
    point = ModelPointRecord.of(result, constants=result.comparison.constants)
    return ModelConstantsRecord(
        model=ModelRecord(
            spec="figures given in Python", architecture="no model", description="d and V, without a model",
            dtype="none", context=None,
        ),
        parameters=result.dimension, vocabulary=result.smoothing.vocabulary, alpha=result.smoothing.alpha,
        smoothing_cost=result.smoothing.cost, time=result.time, points=[point],
    )  # fmt: skip


def records_of(result: Comparison | Constant) -> list[ConstantRecord]:
    """Each constant as records have it."""
    constants = result.constants if isinstance(result, Comparison) else (result,)
    return [ConstantRecord.model_validate(constant) for constant in constants]


def section(result: Comparison | Constant) -> Section:
    """A page of constants of which no model is known."""
    constants = records_of(result)
    picture = ("Bounds on the constants", ladder(constants), f"{LEGEND}. The axis is logarithmic.")
    return Section(
        headline=str(result) if isinstance(result, Constant) else f"{len(constants)} bounds on constants of one law.",
        findings={}, pictures={"truth": picture if constants else None},
        tables=elements.table(constant_rows(constants)), limits=[PREPRINT],
    )  # fmt: skip


def rows(record: ModelConstantsRecord) -> list[dict[str, Any]]:
    """A constant a row, at every λ and s."""
    return [
        {"weight_decay": point.weight_decay, "temperature": point.temperature, **row}
        for point in record.points
        for row in plain_rows(point.constants)
    ]


def plain_rows(constants: Sequence[ConstantRecord]) -> list[dict[str, Any]]:
    """A constant a row."""
    return [constant.model_dump(mode="json") for constant in constants]
