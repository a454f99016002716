"""E1, E2, E5 and pathologies of `villani study paper`: what is measured at one trained model."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from villani.commands.audit.record import RayRecord
from villani.commands.audit.results import orbit_record, ray_record
from villani.commands.measure.results import psi_record
from villani.commands.paper.parts import EstimatorsPart, LandscapePart, PathologiesPart, SpectraPart, Ways
from villani.commands.paper.record import (
    CriteriaRecord,
    EstimatorPoint,
    EstimatorsRecord,
    LandscapePoint,
    PathologyPoint,
    SpectrumPoint,
)
from villani.commands.paper.settings import PaperOptions, PaperSettings
from villani.commands.recommend.cells import SweepCell, load_cell
from villani.commands.recommend.sweep_text import SweepText
from villani.commands.spectrum.record import EigenvalueRecord
from villani.commands.spectrum.run import spectrum_of
from villani.commands.spectrum.settings import SpectrumSettings
from villani.commands.subject import Subject, as_groups, provenance_of
from villani.criteria.coverage import audit_coverage
from villani.criteria.differential import audit_differential
from villani.criteria.rays import directions, kinds, walk
from villani.criteria.smoothness import audit_smoothness
from villani.curvature.operators import Curvature
from villani.curvature.ways import Blocks as BlockKind
from villani.curvature.ways import TraceMethod
from villani.inputs.text import choose_groups
from villani.measurement.measure import measure
from villani.objective.objective import Objective
from villani.objective.pathologies import measure_pathologies
from villani.statistics import Estimate, exact, over_seeds
from villani.streams import Purpose, word
from villani.work.memory import forget_peak, give_back, peak_memory, resident
from villani.work.records import CONFIDENCE, EstimateRecord, PsiRecord
from villani.work.team import Rows, rank
from villani.work.work import Work

_RANDOM = 2  # directions called random
_REFERENCE = 1 << 20  # index of its probes: beyond those of any repeat
_WAYS: dict[Ways, tuple[TraceMethod, BlockKind]] = {
    "hutchinson": ("hutchinson", "whole"), "gauss-newton": ("gauss-newton", "whole"), "taylor": ("taylor", "whole"),
    "taylor-layer": ("taylor", "layer"), "taylor-tensor": ("taylor", "tensor"),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Study:
    """What every part of a study takes: settings, the text of its sweep, and the work that keeps what is finished."""

    settings: PaperSettings
    text: SweepText
    work: Work

    def subject(self, cell: SweepCell, groups: int, sequences: int, *, finite: bool = False) -> Subject:
        """A trained model on groups of the text that it was trained on: the same groups for every model."""
        sweep = self.settings.sweep
        loaded = load_cell(sweep, cell, self.work)
        ids, labels = choose_groups(self.text.train, groups, sequences, sweep.seed, disjoint=finite)
        objective = Objective(
            loaded.model, as_groups(ids, labels), cell.weight_decay, sweep.decay, finite=finite,
            micro_tokens=max(512, sweep.block),
        )  # fmt: skip
        return Subject(loaded, self.text.records[0], objective, provenance_of(objective, PaperOptions.name, sweep.seed))


def criteria(study: Study, cell: SweepCell, decay: float) -> list[CriteriaRecord]:
    """(i) to (iii) at λ = `decay`, of what was decayed in training and of what Hugging Face's Trainer decays."""
    sweep = study.settings.sweep
    there = study.subject(cell, 1, 1).objective
    smooth = audit_smoothness(there)  # whatever decays
    return [
        CriteriaRecord.of(
            audit_coverage(Objective(there.model, there.groups, decay, mask), seed=sweep.seed), decay=mask,
            smoothness=smooth,
        )
        for mask in dict.fromkeys((sweep.decay, "hf"))
    ]  # fmt: skip


def landscape_point(study: Study, part: LandscapePart, cell: SweepCell) -> LandscapePoint:
    """E1: Ψ_s at θ and along rays from one set of groups, and along orbits from another."""
    seed, decay, temperatures = study.settings.sweep.seed, cell.weight_decay, study.settings.temperature
    objective = study.subject(cell, part.groups, part.sequences).objective
    norm = float(objective.parameters.norms_squared().sum()) ** 0.5
    wanted = kinds(directions(objective, seed, random=_RANDOM), part.rays)
    radii = sorted({0.0, *part.radii})
    rays: list[RayRecord] = []
    psi: list[PsiRecord] = []
    work = study.work.unkept().scope(f"landscape of {decay!r}/{cell.seed}")
    work.stage("walking along rays")
    for index, (name, direction) in enumerate(wanted.items()):
        ray = walk(
            objective, direction(), [norm * r for r in radii], groups=range(min(part.ray_groups, part.groups)),
            seed=seed, work=work.part(index, len(wanted)), name=name,
        )  # fmt: skip
        rays += [ray_record(name, ray, decay, s) for s in temperatures]
        if not psi:  # the same groups and probes at the same θ on every ray
            psi = [psi_record(ray.measurements[radii.index(0.0)], decay, s) for s in temperatures]
    found = audit_differential(
        objective, max(temperatures), seed=seed, confirmed=part.confirmed, search=part.search, work=work
    )
    worst = found.findings[0] if found.findings and found.findings[0].confirmed else None
    above = found.refuted_above
    return LandscapePoint(
        weight_decay=decay, seed=cell.seed, norm=norm, psi=psi, rays=rays,
        refuted_above=above if np.isfinite(above) else None, level=worst.threshold.level if worst else CONFIDENCE,
        orbit=orbit_record(worst, objective.parameters) if worst else None,
    )  # fmt: skip


def spectrum_point(study: Study, part: SpectraPart, cell: SweepCell) -> SpectrumPoint:
    """E2: the ends and the density of ∇²L; at the first training seed λ₁(∇²F) from products of its own too."""
    sweep, work = study.settings.sweep, study.work
    first_seed = cell.seed == sweep.seed
    folder = _vectors(study, cell)
    place = f"{folder}-{rank()}" if rank() else folder  # vectors go with the ledger of products that each process has
    subject = study.subject(cell, part.groups, part.sequences)
    device = subject.objective.device
    asked = SpectrumSettings(
        model=sweep.model, text=sweep.text, decay=sweep.decay, weight_decay=cell.weight_decay, block=sweep.block,
        seed=sweep.seed, micro_tokens=subject.objective.micro_tokens, memory=spectrum_limit(part, device),
        **part.model_dump(exclude={"seeds", "memory"}),
    )  # fmt: skip
    products = work.scope(f"products/{folder}")
    directory = work.folder("spectra") / place
    if rank():
        shutil.rmtree(directory, ignore_errors=True)  # its ledger ended with the process
    inner = directory / "objective"  # each of the two forgets its vectors when it has its values
    inner.mkdir(parents=True, exist_ok=True)
    spectrum = spectrum_of(subject, asked, products.scope("loss"), directory, strict=False)
    again = None
    if first_seed and cell.weight_decay > 0:
        only = asked.model_copy(
            update={
                "matrix": "objective", "density_probes": 0, "top": 1, "bottom": 0,
                "memory": spectrum_limit(part, device),
            }
        )  # fmt: skip
        again = spectrum_of(subject, only, products.scope("objective"), inner, strict=False).eigenvalues[0]
    shutil.rmtree(directory, ignore_errors=True)
    first = spectrum.eigenvalues[0]
    last = next((e for e in spectrum.eigenvalues if e.rank == -1), None)
    density = spectrum.density
    return SpectrumPoint(
        weight_decay=cell.weight_decay, seed=cell.seed, largest=_bounded(first),
        smallest=_bounded(last) if last else None, objective_largest=_bounded(again) if again else None,
        density=density if first_seed else None,
        **{name: getattr(density, name, None) for name in ("trace", "effective_rank", "negative_share")},
    )  # fmt: skip


def forget_vectors(study: Study, cells: Sequence[SweepCell]) -> None:
    """Remove what killed processes left of spectra that are done; others go on from theirs, in this grid or another."""
    kept = study.work.folder("spectra")
    for name in (_vectors(study, cell) for cell in cells):
        for path in (kept / name, *kept.glob(f"{name}-*")):
            shutil.rmtree(path, ignore_errors=True)
    if kept.exists() and not any(kept.iterdir()):
        kept.rmdir()


def _vectors(study: Study, cell: SweepCell) -> str:
    return f"{study.settings.digest('spectra')}-{cell.weight_decay!r}-{cell.seed}"


def spectrum_limit(part: SpectraPart, device: torch.device) -> float:
    """GiB of the process that a spectrum keeps vectors in: its own, whatever the parts of a study before it have taken.

    Products may take more: what was worked out for hours is not lost for that.
    """
    give_back()
    forget_peak(device)
    earlier = peak_memory(device) - resident()  # where the system does not forget
    return part.memory + max(earlier, 0) / 2**30


def pathology_point(study: Study, part: PathologiesPart, cell: SweepCell) -> PathologyPoint:
    """Pathologies on the first held-out blocks, which are the same for every model."""
    model = load_cell(study.settings.sweep, cell, study.work).model
    ids, labels = study.text.held_out.ids[: part.blocks], study.text.held_out.labels[: part.blocks]
    pathologies = measure_pathologies(model, ids, labels)
    own = {"optimizer": cell.optimizer, "weight_decay": cell.weight_decay, "seed": cell.seed}
    return PathologyPoint.of(pathologies, **own, superposition=pathologies.superposition.value)


def reference_trace(study: Study, part: EstimatorsPart, cell: SweepCell) -> Rows:
    """Tr ∇²L of the groups of E5: entry by entry where d is small, else from many probes of another seed."""
    subject = study.subject(cell, part.groups, part.sequences, finite=True)
    space = subject.objective.parameters
    if space.size > part.exact:
        seed = word(study.settings.sweep.seed, Purpose.PROBE, _REFERENCE)
        found = measure(subject.objective, part.reference_probes, seed, trace="gauss-newton").hessian_trace
        return _estimate_row(found)
    operator = Curvature(subject.objective, "hessian", list(range(part.groups)), None, 0.0, None)
    total = 0.0
    for index in range(space.size):
        unit = torch.zeros(space.size, dtype=space.dtype, device=subject.objective.device)
        unit[index] = 1.0
        total += float(operator(unit)[index])
    return {"value": np.array(total), "sem": np.array(0.0)}


def estimator_row(study: Study, part: EstimatorsPart, cell: SweepCell, way: Ways, repeat: int) -> Rows:
    """One estimate of tr ∇²L by one way, with probes of its own and the standard error that it reports."""
    subject = study.subject(cell, part.groups, part.sequences, finite=True)
    trace, blocks = _WAYS[way]
    seed = word(study.settings.sweep.seed, Purpose.PROBE, repeat)
    found = measure(subject.objective, part.probes, seed, trace=trace, blocks=blocks, shares=0).hessian_trace
    return _estimate_row(found)


def _estimate_row(found: Estimate) -> Rows:
    """With the degrees of freedom of the probes: the groups are all there is."""
    assert found.degrees_of_freedom is not None
    row = {"value": found.value, "sem": found.sem, "freedom": found.degrees_of_freedom}
    return {name: np.array(value) for name, value in row.items()}


def estimators_record(
    part: EstimatorsPart, cell: SweepCell, reference: Rows, rows: dict[Ways, list[Rows]], size: int
) -> EstimatorsRecord:
    """E5 from its rows."""
    truth, error = float(reference["value"]), float(reference["sem"])
    known = (
        exact(truth) if error == 0 else Estimate(truth, error, part.groups, "statistical", float(reference["freedom"]))
    )
    return EstimatorsRecord.of(
        cell, groups=part.groups, probes=part.probes, reference=known,
        reference_way="every diagonal entry" if size <= part.exact else
        f"gauss-newton, {part.reference_probes} probes a group",
        points=[estimator_point(way, one, truth, error) for way, one in rows.items()],
    )  # fmt: skip


def estimator_point(way: Ways, rows: Sequence[Rows], truth: float, error: float) -> EstimatorPoint:
    """How one way did over its repeats, beside a reference with an error of its own."""
    values, sems = (np.array([float(row[name]) for row in rows]) for name in ("value", "sem"))
    covered = 0
    for row, value, sem in zip(rows, values, sems, strict=True):
        wide = Estimate(value, float(np.hypot(sem, error)), 2, "statistical", float(row["freedom"]))
        low, high = wide.interval(CONFIDENCE)
        covered += low <= truth <= high
    squares = ((values - truth) / truth) ** 2
    root = float(squares.mean() ** 0.5)
    spread = float(squares.std(ddof=1) / len(squares) ** 0.5 / (2 * root)) if root else 0.0  # delta method
    return EstimatorPoint.of(
        way=way, repeats=len(rows), relative_error=Estimate(root, spread, len(rows), "statistical"),
        relative_sem=float(sems.mean() / abs(truth)), covered=covered, mean=over_seeds(values),
    )  # fmt: skip


def _bounded(pair: EigenvalueRecord) -> EstimateRecord:
    """An eigenvalue of these groups within its residual bound; the bound is no standard error of data."""
    interval = (pair.value - pair.bound, pair.value + pair.bound)
    return EstimateRecord(value=pair.value, sem=0.0, n=1, interval=interval, status="estimated")
