"""From a measurement to its record, that of the command or of a call in Python."""

import math
from collections.abc import Sequence
from typing import Any

from villani.commands.constants.run import constants_beside
from villani.commands.measure.record import DesignRecord, LayerRecord, MeasurementRecord, TensorRecord, TrainingRecord
from villani.commands.measure.settings import MeasureSettings
from villani.measurement.measurement import Measurement
from villani.objective.origin import Origin
from villani.work.records import CONFIDENCE, EstimateRecord, PsiRecord

STATISTICS = (
    "loss", "gradient_norm_squared", "naive_gradient_norm_squared", "gradient_dot_parameters", "hessian_trace",
    "gauss_newton_trace",
)  # fmt: skip
TEMPERATURE: float = MeasureSettings.model_fields["temperature"].default[0]  # s, which no measurement has


def measurement_record(
    measurement: Measurement, weight_decay: Sequence[float], temperature: Sequence[float], **fields: Any
) -> MeasurementRecord:
    """The record with Ψ at every λ and s; `fields` are what the measurement itself does not know."""
    return MeasurementRecord.of(
        measurement,
        covariance=measurement.joint.covariance.tolist(),
        degrees_of_freedom=measurement.joint.degrees_of_freedom,
        tensors=[TensorRecord.of(t, shape=list(t.shape), parameters=math.prod(t.shape)) for t in measurement.tensors],
        layers=[LayerRecord.of(layer) for layer in measurement.layers],
        psi=[psi_record(measurement, decay, s) for decay in weight_decay for s in temperature],
        cost=None,
        **fields,
    )


def record(result: Measurement, origin: Origin) -> MeasurementRecord:
    """That of a call in Python, with Ψ at the objective's λ and the command's s."""
    decay = result.weight_decay
    return measurement_record(
        result, [decay], [TEMPERATURE], **origin.facts,
        design=DesignRecord.of(
            origin, **origin.call, seed=origin.provenance.seed, confidence=CONFIDENCE, sketch=result.sketch
        ),
        constants=constants_beside(origin.objective, origin.outputs, [decay], [TEMPERATURE]),
    )  # fmt: skip


def psi_record(measurement: Measurement, weight_decay: float, temperature: float) -> PsiRecord:
    """Ψ_s at one λ and s as it stands in JSON."""
    psi = measurement.psi(weight_decay, temperature=temperature)
    interval = psi.interval(CONFIDENCE)
    return PsiRecord.of(psi, interval=interval, weight_decay=weight_decay, temperature=temperature)


def rows(record: MeasurementRecord | TrainingRecord) -> list[dict[str, Any]]:
    """A statistic a row, then Ψ at every λ and s with its parts; or the loss at every step of a training run."""
    if isinstance(record, TrainingRecord):
        return [{"step": step, "loss": loss} for step, loss in zip(record.steps, record.loss, strict=True)]
    made = [row for name in STATISTICS if (estimate := getattr(record, name)) for row in estimate_rows(name, estimate)]
    for psi in record.psi:
        where = f"at λ = {psi.weight_decay:g}, s = {psi.temperature:g}"
        made += estimate_rows(f"psi {where}", psi)
        for name in type(psi.parts).model_fields:
            made += estimate_rows(f"psi.{name} {where}", getattr(psi.parts, name))
    return made


def estimate_rows(name: str, estimate: EstimateRecord) -> list[dict[str, Any]]:
    """One row: what it is, its value, error, interval, groups and status."""
    low, high = estimate.interval
    return [
        {
            "name": name, "value": estimate.value, "sem": estimate.sem, "low": low, "high": high, "n": estimate.n,
            "status": estimate.status,
        }
    ]  # fmt: skip
