"""What an audit found, as records: tensors are named, and Ψ on rays is that at one λ and s."""

from collections.abc import Iterable

from villani.commands.audit.record import OrbitRecord, RayRecord, SkippedRecord, finite
from villani.commands.measure.run import psi_record
from villani.criteria.measured_orbits import MeasuredOrbit
from villani.criteria.rays import Ray
from villani.criteria.skipped import Skipped
from villani.objective.parameters import ParameterSpace


def skipped_record(skipped: Skipped, space: ParameterSpace) -> SkippedRecord:
    """What the search for symmetries passed over."""
    return SkippedRecord.of(skipped, tensors=_names(skipped.tensors, space))


def orbit_record(found: MeasuredOrbit, space: ParameterSpace) -> OrbitRecord:
    """One orbit with its s* and its walk."""
    return OrbitRecord.of(
        found.orbit, confirmed=found.confirmed, moved=_names(found.moved, space), threshold=found.threshold,
        guard=finite(found.guard), walk=found.walk,
    )  # fmt: skip


def ray_record(name: str, ray: Ray, weight_decay: float, temperature: float) -> RayRecord:
    """Ψ along one ray with its fits."""
    psi = [psi_record(measurement, weight_decay, temperature) for measurement in ray.measurements]
    return RayRecord.of(ray.psi(weight_decay, temperature=temperature), direction=name, psi=psi)


def _names(indices: Iterable[int], space: ParameterSpace) -> list[str]:
    return [space.parameters[i].name for i in indices]
