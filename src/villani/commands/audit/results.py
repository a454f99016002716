"""From an audit to its records."""

import math

from villani.commands.audit.record import (
    BoundedOrbitRecord,
    CoverageRecord,
    DifferentialRecord,
    FitRecord,
    FlatRecord,
    NormalisationRecord,
    OperationRecord,
    OrbitRecord,
    OutcomeRecord,
    RayRecord,
    SkippedRecord,
    SlabRecord,
    SmoothnessRecord,
    StepRecord,
    ThresholdRecord,
)
from villani.commands.measure.run import estimate_record, psi_record
from villani.criteria.audit import Audit
from villani.criteria.coverage import Coverage, OrbitWitness, Slab
from villani.criteria.flat import FlatDirection
from villani.criteria.measured_orbits import MeasuredOrbit
from villani.criteria.orbits import Threshold
from villani.criteria.parabola import QuadraticFit
from villani.criteria.rays import Ray
from villani.criteria.skipped import Skipped
from villani.criteria.smoothness import Smoothness
from villani.criteria.verdicts import Outcome
from villani.criteria.walks import Step
from villani.objective.parameters import ParameterSpace


def outcome_record(outcome: Outcome) -> OutcomeRecord:
    """A verdict."""
    return OutcomeRecord(verdict=outcome.verdict, reason=outcome.reason)


def smoothness_record(found: Smoothness) -> SmoothnessRecord:
    """The evidence for or against (i)."""
    return SmoothnessRecord(
        operations=found.operations,
        findings=[
            OperationRecord(operation=f.operation, kind=f.kind, place=f.place, consequence=f.consequence)
            for f in found.findings
        ],
        normalisations=[
            NormalisationRecord(
                operation=n.operation,
                place=n.place,
                eps=n.eps,
                jacobian_bound=n.jacobian_bound,
                laplacian_bound=n.laplacian_bound,
            )
            for n in found.normalisations
        ],
    )


def coverage_record(found: Coverage, temperature: float) -> CoverageRecord:
    """The evidence for or against (ii) and (iii)."""
    bound = found.log_integral_bound(temperature)
    return CoverageRecord(
        lower_bound=found.lower_bound,
        log_integral_bound=bound if bound is not None and math.isfinite(bound) else None,
        flat=[flat_record(f) for f in found.flat],
        slab=slab_record(found.slab) if found.slab else None,
        orbits=[_bounded_orbit(w) for w in found.orbits],
    )


def flat_record(found: FlatDirection) -> FlatRecord:
    """A flat direction."""
    return FlatRecord(
        tensor=found.tensor,
        coordinates=found.coordinates,
        kind=found.kind,
        deleted_by=list(found.deleted_by),
        steps=list(found.steps),
        changes=list(found.changes),
        tolerance=list(found.tolerance),
    )


def slab_record(found: Slab) -> SlabRecord:
    """Tensors along which L is bounded."""
    return SlabRecord(
        tensors=list(found.tensors),
        coordinates=found.coordinates,
        bound=found.bound,
        radius=found.radius,
        steps=list(found.steps),
        losses=list(found.losses),
    )


def _bounded_orbit(found: OrbitWitness) -> BoundedOrbitRecord:
    return BoundedOrbitRecord(
        name=found.name,
        scales=list(found.scales),
        changes=list(found.changes),
        decayed_norms_squared=list(found.decayed_norms_squared),
        norms_squared=list(found.norms_squared),
    )


def differential_record(
    found: Audit, weight_decay: float, temperature: float, space: ParameterSpace
) -> DifferentialRecord:
    """The evidence against (iv), and rays, which are none either way."""
    return DifferentialRecord(
        refuted_above=_finite(found.differential.refuted_above),
        symmetries=found.differential.symmetries,
        skipped=[skipped_record(s, space) for s in found.differential.skipped],
        orbits=[orbit_record(finding, space) for finding in found.differential.findings],
        rays=[ray_record(name, ray, weight_decay, temperature) for name, ray in found.rays.items()],
    )


def skipped_record(found: Skipped, space: ParameterSpace) -> SkippedRecord:
    """What the search for symmetries passed over."""
    return SkippedRecord(
        operation=found.operation,
        reason=found.reason,
        count=found.count,
        place=found.place,
        tensors=[space.parameters[i].name for i in found.tensors],
    )


def threshold_record(found: Threshold) -> ThresholdRecord:
    """s* with what it is made of."""
    return ThresholdRecord(
        value=_finite(found.value),
        upper=_finite(found.upper),
        level=found.level,
        norm_squared=found.norm_squared,
        gradient_norm_squared=estimate_record(found.gradient_norm_squared),
        laplacian=estimate_record(found.laplacian),
        rounding=_finite(found.rounding),
        directions=found.directions,
    )


def step_record(step: Step) -> StepRecord:
    """One point of an orbit."""
    return StepRecord(
        scale=step.scale,
        loss_change=step.loss_change,
        predicted=estimate_record(step.predicted),
        measured=estimate_record(step.measured),
    )


def orbit_record(finding: MeasuredOrbit, space: ParameterSpace) -> OrbitRecord:
    """One orbit with its s* and its walk."""
    orbit = finding.orbit
    return OrbitRecord(
        name=orbit.name,
        theorem="C" if orbit.theorem == "C" else "D",
        up=orbit.up,
        down=orbit.down,
        confirmed=finding.confirmed,
        moved=[space.parameters[i].name for i in finding.moved],
        threshold=threshold_record(finding.threshold),
        guard=_finite(finding.guard),
        walk=[step_record(step) for step in finding.walk],
    )


def ray_record(name: str, ray: Ray, weight_decay: float, temperature: float) -> RayRecord:
    """Ψ along one ray with its fits."""
    series = ray.psi(weight_decay, temperature=temperature)
    return RayRecord(
        direction=name,
        radii=list(ray.radii),
        psi=[psi_record(m, weight_decay, temperature) for m in ray.measurements],
        data=[estimate_record(e) for e in series.data],
        fit=_fit_record(series.fit),
        data_fit=_fit_record(series.data_fit),
        exact_quadratic=series.exact_quadratic,
    )


def _fit_record(fit: QuadraticFit) -> FitRecord:
    return FitRecord(
        quadratic=estimate_record(fit.quadratic),
        linear=estimate_record(fit.linear),
        constant=estimate_record(fit.constant),
        chi_squared=fit.chi_squared,
        degrees_of_freedom=fit.degrees_of_freedom,
        p_value=fit.p_value,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
