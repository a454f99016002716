"""E1, E2, E5 and pathologies of `villani study paper`: what is measured at one trained model."""

import shutil
from collections.abc import Sequence

import numpy as np
import torch

from villani.commands.audit.record import OutcomeRecord, RayRecord
from villani.commands.audit.results import orbit_record, ray_record
from villani.commands.measure.run import psi_record
from villani.commands.paper.record import (
    CriteriaRecord,
    EstimatorPoint,
    EstimatorsRecord,
    LandscapePoint,
    PathologyPoint,
    SpectrumPoint,
)
from villani.commands.paper.settings import EstimatorsPart, PaperOptions, PaperSettings, Ways
from villani.commands.recommend.sweep import SweepCell, SweepText, load_cell
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
from villani.work.records import CONFIDENCE, EstimateRecord, PsiRecord
from villani.work.team import Rows
from villani.work.work import Work

_RANDOM = 2  # directions called random
_REFERENCE = 1 << 20  # index of its probes: beyond those of any repeat
_WAYS: dict[Ways, tuple[TraceMethod, BlockKind]] = {
    "hutchinson": ("hutchinson", "whole"), "gauss-newton": ("gauss-newton", "whole"), "taylor": ("taylor", "whole"),
    "taylor-layer": ("taylor", "layer"), "taylor-tensor": ("taylor", "tensor"),
}  # fmt: skip


def subject_at(
    settings: PaperSettings,
    cell: SweepCell,
    text: SweepText,
    work: Work,
    groups: int,
    sequences: int,
    *,
    finite: bool = False,
) -> Subject:
    """A trained model on groups of the text that it was trained on: the same groups for every model."""
    loaded = load_cell(settings.sweep, cell, work)
    ids, labels = choose_groups(text.train, groups, sequences, settings.sweep.seed, disjoint=finite)
    objective = Objective(
        loaded.model, as_groups(ids, labels), cell.weight_decay, settings.sweep.decay, finite=finite,
        micro_tokens=max(512, settings.sweep.block),
    )  # fmt: skip
    return Subject(loaded, text.records[0], objective, provenance_of(objective, PaperOptions.name, settings.sweep.seed))


def criteria(settings: PaperSettings, cell: SweepCell, text: SweepText, work: Work) -> list[CriteriaRecord]:
    """(i) to (iii) with the decay that was trained with, and with the one that Hugging Face's Trainer uses."""
    decay = cell.weight_decay or max(settings.sweep.weight_decay)
    there = subject_at(settings, cell, text, work, 1, 1).objective
    smooth = audit_smoothness(there)  # whatever decays
    found = []
    for mask in dict.fromkeys((settings.sweep.decay, "hf")):
        coverage = audit_coverage(Objective(there.model, there.groups, decay, mask), seed=settings.sweep.seed)
        found.append(
            CriteriaRecord(
                decay=mask, smoothness=OutcomeRecord.of(smooth), growth=OutcomeRecord.of(coverage.growth),
                tails=OutcomeRecord.of(coverage.tails),
            )
        )  # fmt: skip
    return found


def landscape_point(settings: PaperSettings, cell: SweepCell, text: SweepText, work: Work) -> LandscapePoint:
    """E1: Ψ_s at θ and along rays from one set of groups, and along orbits from another."""
    part = settings.landscape
    assert part is not None
    seed, decay = settings.sweep.seed, cell.weight_decay
    objective = subject_at(settings, cell, text, work, part.groups, part.sequences).objective
    norm = float(objective.parameters.norms_squared().sum()) ** 0.5
    wanted = kinds(directions(objective, seed, random=_RANDOM), part.rays)
    radii = sorted({0.0, *part.radii})
    rays: list[RayRecord] = []
    psi: list[PsiRecord] = []
    for name, direction in wanted.items():
        ray = walk(
            objective, direction(), [norm * r for r in radii], groups=range(min(part.ray_groups, part.groups)),
            seed=seed,
        )  # fmt: skip
        rays += [ray_record(name, ray, decay, s) for s in settings.temperature]
        if not psi:  # the same groups and probes at the same θ on every ray
            psi = [psi_record(ray.measurements[radii.index(0.0)], decay, s) for s in settings.temperature]
    found = audit_differential(
        objective, max(settings.temperature), seed=seed, confirmed=part.confirmed, search=part.search
    )
    worst = found.findings[0] if found.findings and found.findings[0].confirmed else None
    above = found.refuted_above
    return LandscapePoint(
        weight_decay=decay, seed=cell.seed, norm=norm, psi=psi, rays=rays,
        refuted_above=above if np.isfinite(above) else None, level=worst.threshold.level if worst else CONFIDENCE,
        orbit=orbit_record(worst, objective.parameters) if worst else None,
    )  # fmt: skip


def spectrum_point(
    settings: PaperSettings, cell: SweepCell, text: SweepText, work: Work, folder: str, *, both: bool
) -> SpectrumPoint:
    """E2: the ends and the density of ∇²L; with `both`, λ₁(∇²F) from products of its own too."""
    part = settings.spectra
    assert part is not None
    subject = subject_at(settings, cell, text, work, part.groups, part.sequences)
    asked = SpectrumSettings(
        model=settings.sweep.model, text=settings.sweep.text, decay=settings.sweep.decay,
        weight_decay=cell.weight_decay, block=settings.sweep.block, seed=settings.sweep.seed,
        micro_tokens=subject.objective.micro_tokens, **part.model_dump(),
    )  # fmt: skip
    products = work.scope(f"products/{folder}")
    directory = work.folder("spectra") / folder
    directory.mkdir(parents=True, exist_ok=True)
    spectrum = spectrum_of(subject, asked, products.scope("loss"), directory)
    again = None
    if both:
        only = asked.model_copy(update={"matrix": "objective", "density_probes": 0, "top": 1, "bottom": 0})
        again = spectrum_of(subject, only, products.scope("objective"), directory).eigenvalues[0]
    shutil.rmtree(directory, ignore_errors=True)
    first = spectrum.eigenvalues[0]
    last = next((e for e in spectrum.eigenvalues if e.rank == -1), None)
    density = spectrum.density
    return SpectrumPoint(
        weight_decay=cell.weight_decay, seed=cell.seed, largest=_bounded(first),
        smallest=_bounded(last) if last else None, objective_largest=_bounded(again) if again else None,
        density=density if cell.seed == settings.sweep.seed else None,
        **{name: getattr(density, name, None) for name in ("trace", "effective_rank", "negative_share")},
    )  # fmt: skip


def pathology_point(settings: PaperSettings, cell: SweepCell, text: SweepText, work: Work) -> PathologyPoint:
    """Pathologies on the first held-out blocks, which are the same for every model."""
    part = settings.pathologies
    assert part is not None
    model = load_cell(settings.sweep, cell, work).model
    ids, labels = text.held_out.ids[: part.blocks], text.held_out.labels[: part.blocks]
    pathologies = measure_pathologies(model, ids, labels)
    return PathologyPoint.of(
        pathologies, optimizer=cell.optimizer, weight_decay=cell.weight_decay, seed=cell.seed,
        superposition=pathologies.superposition.value,
    )  # fmt: skip


def reference_trace(settings: PaperSettings, cell: SweepCell, text: SweepText, work: Work) -> Rows:
    """Tr ∇²L of the groups of E5: entry by entry where d is small, else from many probes of another seed."""
    part = _estimators(settings)
    subject = subject_at(settings, cell, text, work, part.groups, part.sequences, finite=True)
    space = subject.objective.parameters
    if space.size > part.exact:
        seed = word(settings.sweep.seed, Purpose.PROBE, _REFERENCE)
        found = measure(subject.objective, part.reference_probes, seed, trace="gauss-newton").hessian_trace
        return _estimate_row(found)
    operator = Curvature(subject.objective, "hessian", list(range(part.groups)), None, 0.0, None)
    total = 0.0
    for index in range(space.size):
        unit = torch.zeros(space.size, dtype=space.dtype, device=subject.objective.device)
        unit[index] = 1.0
        total += float(operator(unit)[index])
    return {"value": np.array(total), "sem": np.array(0.0)}


def estimator_row(
    settings: PaperSettings, cell: SweepCell, text: SweepText, work: Work, way: Ways, repeat: int
) -> Rows:
    """One estimate of tr ∇²L by one way, with probes of its own and the standard error that it reports."""
    part = _estimators(settings)
    subject = subject_at(settings, cell, text, work, part.groups, part.sequences, finite=True)
    trace, blocks = _WAYS[way]
    seed = word(settings.sweep.seed, Purpose.PROBE, repeat)
    found = measure(subject.objective, part.probes, seed, trace=trace, blocks=blocks, shares=0).hessian_trace
    return _estimate_row(found)


def _estimate_row(found: Estimate) -> Rows:
    """With the degrees of freedom of the probes: the groups are all there is."""
    assert found.degrees_of_freedom is not None
    row = {"value": found.value, "sem": found.sem, "freedom": found.degrees_of_freedom}
    return {name: np.array(value) for name, value in row.items()}


def estimators_record(
    settings: PaperSettings, cell: SweepCell, reference: Rows, rows: dict[Ways, list[Rows]], size: int
) -> EstimatorsRecord:
    """E5 from its rows."""
    part = _estimators(settings)
    truth, error = float(reference["value"]), float(reference["sem"])
    known = (
        exact(truth) if error == 0 else Estimate(truth, error, part.groups, "statistical", float(reference["freedom"]))
    )
    return EstimatorsRecord.of(
        optimizer=cell.optimizer, weight_decay=cell.weight_decay, seed=cell.seed, groups=part.groups,
        probes=part.probes, reference=known,
        reference_way="every diagonal entry" if size <= part.exact else
        f"gauss-newton, {part.reference_probes} probes a group",
        points=[estimator_point(way, found, truth, error) for way, found in rows.items()],
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


def _estimators(settings: PaperSettings) -> EstimatorsPart:
    assert settings.estimators is not None
    return settings.estimators


def _bounded(pair: EigenvalueRecord) -> EstimateRecord:
    """An eigenvalue of these groups within its residual bound; the bound is no standard error of data."""
    interval = (pair.value - pair.bound, pair.value + pair.bound)
    return EstimateRecord(value=pair.value, sem=0.0, n=1, interval=interval, status="estimated")
