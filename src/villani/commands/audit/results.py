"""From an audit to its records; infinities are null, and tensors are named."""

import math
from typing import Any

from villani.commands.audit.record import (
    AuditDesign,
    AuditRecord,
    BoundedOrbitRecord,
    CoverageRecord,
    DifferentialRecord,
    OrbitRecord,
    RayRecord,
    ReplayRecord,
    RescueRecord,
    SkippedRecord,
    StepRecord,
    ThresholdRecord,
)
from villani.commands.audit.words import outcomes
from villani.commands.constants.run import constants_known
from villani.criteria.audit import Audit
from villani.criteria.coverage import Coverage
from villani.criteria.measured_orbits import MeasuredOrbit
from villani.criteria.orbits import Threshold
from villani.criteria.rays import Ray
from villani.criteria.rescue import rescues
from villani.criteria.skipped import Skipped
from villani.objective.origin import Origin, Tensors
from villani.work.records import CONFIDENCE, PsiRecord


def audit_record(result: Audit, weight_decay: float, temperature: float, space: Tensors, **fields: Any) -> AuditRecord:
    """The record; `fields` are what the audit itself does not know."""
    return AuditRecord.of(
        result,
        **result.outcomes,
        temperature=temperature,
        smoothness_evidence=result.smoothness,
        coverage_evidence=coverage_record(result.coverage, temperature),
        differential_evidence=differential_record(result, weight_decay, temperature, space),
        rescues=[RescueRecord(name=name, text=text) for name, text in rescues(result.differential).items()],
        **fields,
    )


def record(result: Audit, origin: Origin) -> AuditRecord:
    """That of a call in Python: without a witness to replay, and without C10, for which the model would be traced."""
    decay, s = result.coverage.weight_decay, result.differential.temperature
    return audit_record(
        result, decay, s, origin, model=origin.model, objective=origin.objective, text=origin.text,
        design=AuditDesign.of(origin, **origin.call, seed=origin.provenance.seed, confidence=CONFIDENCE),
        spectral_gap=None, constants=constants_known(origin, [decay], [s, 2.0]), witness=None,
        provenance=origin.provenance,
    )  # fmt: skip


def coverage_record(coverage: Coverage, temperature: float) -> CoverageRecord:
    """The evidence for or against (ii) and (iii)."""
    bound = coverage.log_integral_bound(temperature)
    return CoverageRecord.of(
        coverage, log_integral_bound=None if bound is None else _finite(bound),
        orbits=[BoundedOrbitRecord.of(orbit) for orbit in coverage.orbits],
    )  # fmt: skip


def differential_record(audit: Audit, weight_decay: float, temperature: float, space: Tensors) -> DifferentialRecord:
    """The evidence against (iv), and rays, which are none either way."""
    differential = audit.differential
    return DifferentialRecord.of(
        differential,
        refuted_above=_finite(differential.refuted_above),
        skipped=[skipped_record(skipped, space) for skipped in differential.skipped],
        orbits=[orbit_record(finding, space) for finding in differential.findings],
        rays=[ray_record(name, ray, weight_decay, temperature) for name, ray in audit.rays.items()],
    )


def skipped_record(skipped: Skipped, space: Tensors) -> SkippedRecord:
    """What the search for symmetries passed over."""
    return SkippedRecord.of(skipped, tensors=_names(skipped.tensors, space))


def threshold_record(threshold: Threshold) -> ThresholdRecord:
    """s* with what it is made of."""
    infinite = {name: _finite(getattr(threshold, name)) for name in ("value", "upper", "rounding")}
    return ThresholdRecord.of(threshold, **infinite)


def orbit_record(finding: MeasuredOrbit, space: Tensors) -> OrbitRecord:
    """One orbit with its s* and its walk."""
    return OrbitRecord.of(
        finding.orbit,
        confirmed=finding.confirmed,
        moved=_names(finding.moved, space),
        threshold=threshold_record(finding.threshold),
        guard=_finite(finding.guard),
        walk=[StepRecord.of(step) for step in finding.walk],
    )


def ray_record(name: str, ray: Ray, weight_decay: float, temperature: float) -> RayRecord:
    """Ψ along one ray with its fits."""
    series = ray.psi(weight_decay, temperature=temperature)
    point = {"weight_decay": series.weight_decay, "temperature": series.temperature}
    psi = [PsiRecord.of(estimate, interval=estimate.interval(CONFIDENCE), **point) for estimate in series.psi]
    return RayRecord.of(series, direction=name, psi=psi)


def _names(indices: Any, space: Tensors) -> list[str]:
    return [space.parameters[i].name for i in indices]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def rows(record: AuditRecord | ReplayRecord) -> list[dict[str, Any]]:
    """A criterion a row with its verdict; or what a replay says, a sentence a row."""
    if isinstance(record, ReplayRecord):
        return [{"sentence": sentence} for sentence in record.sentences]
    return [
        {"criterion": name, "verdict": outcome.verdict, "reason": outcome.reason}
        for name, outcome in outcomes(record).items()
    ]
