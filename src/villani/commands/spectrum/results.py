"""From a spectrum to its record, that of the command or of a call in Python."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from villani.commands.spectrum.record import (
    DensityRecord,
    EigenvalueRecord,
    QuadratureRecord,
    SpectrumDesign,
    SpectrumRecord,
)
from villani.curvature.blocks import layers_of
from villani.curvature.pairs import Eigenpair
from villani.curvature.spectrum import Density
from villani.measurement.spectrum import Eigenpairs, Spectrum
from villani.objective.origin import Origin
from villani.work.records import CONFIDENCE


def record(result: Spectrum | Eigenpairs, origin: Origin) -> SpectrumRecord:
    """That of a call in Python: no groups are held out, and layers have no blocks of their own."""
    pairs, density = (result.eigenpairs, result.density) if isinstance(result, Spectrum) else (result, None)
    first = [*pairs.largest, *pairs.smallest][0]
    rounding = float(first.bound - first.residual)
    layers = layers_of(origin)
    ranks = [*range(1, len(pairs.largest) + 1), *range(-1, -len(pairs.smallest) - 1, -1)]
    each = zip(ranks, [*pairs.largest, *pairs.smallest], strict=True)
    return SpectrumRecord(
        model=origin.model, objective=origin.objective, text=origin.text,
        design=SpectrumDesign.of(
            origin, **origin.call, held_out=0, basis=None, seed=origin.provenance.seed, confidence=CONFIDENCE
        ),
        products=pairs.products, converged=pairs.converged, rounding=rounding, layer_names=list(layers),
        eigenvalues=[_eigenvalue(rank, pair, rounding, list(layers.values())) for rank, pair in each],
        density=density_record(density, _steps(density)) if density else None,
        layers=[], sharpness=None, provenance=origin.provenance,
    )  # fmt: skip


def density_record(density: Density, steps: int) -> DensityRecord:
    """The density with its curve; `steps` are the products of a probe."""
    grid, values, sem, resolution = density.curve()
    return DensityRecord.of(
        density, shares=len(density.samples), probes=len(density.samples[0]), steps=steps,
        samples=[
            [QuadratureRecord(nodes=q.nodes.tolist(), weights=q.weights.tolist()) for q in share]
            for share in density.samples
        ],
        grid=grid.tolist(), density=values.tolist(), sem=sem.tolist(), resolution=resolution,
        negative_share=density.negative_share(),
    )  # fmt: skip


def _steps(density: Density) -> int:
    return max(len(q.nodes) for share in density.samples for q in share)


def _eigenvalue(rank: int, pair: Eigenpair, rounding: float, layers: Sequence[Sequence[int]]) -> EigenvalueRecord:
    shares = np.array([float(pair.shares[list(tensors)].sum()) for tensors in layers])
    return EigenvalueRecord(
        rank=rank, value=float(pair.value), residual=float(pair.residual), bound=float(pair.bound),
        quadratic=pair.quadratic, rank_limit=float(pair.value - rounding * np.sign(rank)), status="estimated",
        shares=(shares / shares.sum()).tolist(),
    )  # fmt: skip


def rows(record: SpectrumRecord) -> list[dict[str, Any]]:
    """An eigenvalue a row."""
    names = ("rank", "value", "residual", "bound", "quadratic", "rank_limit", "status")
    return [{name: getattr(eigenvalue, name) for name in names} for eigenvalue in record.eigenvalues]
