"""From an audit to its records; infinities are null, and tensors are named."""

from collections.abc import Iterable
from typing import Any

from villani.commands.audit.record import (
    AuditDesign,
    AuditRecord,
    CoverageRecord,
    DifferentialRecord,
    OrbitRecord,
    RayRecord,
    ReplayRecord,
    RescueRecord,
    SkippedRecord,
    finite,
)
from villani.commands.audit.tables import outcomes
from villani.commands.constants.run import constants_beside
from villani.commands.measure.results import psi_record
from villani.criteria.audit import Audit
from villani.criteria.measured_orbits import MeasuredOrbit
from villani.criteria.rays import Ray
from villani.criteria.rescue import rescues
from villani.criteria.skipped import Skipped
from villani.objective.origin import Origin, Tensors
from villani.work.records import CONFIDENCE


def audit_record(result: Audit, weight_decay: float, temperature: float, space: Tensors, **fields: Any) -> AuditRecord:
    """The record; `fields` are what the audit itself does not know."""
    coverage, differential, s = result.coverage, result.differential, temperature
    return AuditRecord.of(
        result,
        **result.outcomes,
        temperature=s,
        smoothness_evidence=result.smoothness,
        coverage_evidence=CoverageRecord.of(coverage, log_integral_bound=finite(coverage.log_integral_bound(s))),
        differential_evidence=DifferentialRecord.of(
            differential,
            refuted_above=finite(differential.refuted_above),
            skipped=[skipped_record(skipped, space) for skipped in differential.skipped],
            orbits=[orbit_record(finding, space) for finding in differential.findings],
            rays=[ray_record(name, ray, weight_decay, s) for name, ray in result.rays.items()],
            rays_left_out=dict(result.notes),
        ),
        rescues=[RescueRecord(name=name, text=text) for name, text in rescues(differential).items()],
        **fields,
    )


def record(result: Audit, origin: Origin) -> AuditRecord:
    """That of a call in Python: without a witness to replay, and without C10, for which the model would be traced."""
    decay, s = result.coverage.weight_decay, result.differential.temperature
    return audit_record(
        result, decay, s, origin, **origin.facts, spectral_gap=None, witness=None,
        design=AuditDesign.of(origin, **origin.call, seed=origin.provenance.seed, confidence=CONFIDENCE),
        constants=constants_beside(origin.objective, origin.outputs, [decay], [s, 2.0]),
    )  # fmt: skip


def skipped_record(skipped: Skipped, space: Tensors) -> SkippedRecord:
    """What the search for symmetries passed over."""
    return SkippedRecord.of(skipped, tensors=_names(skipped.tensors, space))


def orbit_record(measured: MeasuredOrbit, space: Tensors) -> OrbitRecord:
    """One orbit with its s* and its walk."""
    return OrbitRecord.of(
        measured.orbit, confirmed=measured.confirmed, moved=_names(measured.moved, space), threshold=measured.threshold,
        guard=finite(measured.guard), walk=measured.walk,
    )  # fmt: skip


def ray_record(name: str, ray: Ray, weight_decay: float, temperature: float) -> RayRecord:
    """Ψ along one ray with its fits."""
    psi = [psi_record(measurement, weight_decay, temperature) for measurement in ray.measurements]
    return RayRecord.of(ray.psi(weight_decay, temperature=temperature), direction=name, psi=psi)


def rows(record: AuditRecord | ReplayRecord) -> list[dict[str, Any]]:
    """A criterion a row with its verdict; or what a replay says, a sentence a row."""
    if isinstance(record, ReplayRecord):
        return [{"sentence": sentence} for sentence in record.sentences]
    return [
        {"criterion": name, "verdict": outcome.verdict, "reason": outcome.reason}
        for name, outcome in outcomes(record).items()
    ]


def _names(indices: Iterable[int], space: Tensors) -> list[str]:
    return [space.parameters[i].name for i in indices]
