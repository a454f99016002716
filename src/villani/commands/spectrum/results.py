"""From a spectrum to its record, that of the command or of a call in Python."""

from collections.abc import Mapping, Sequence
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
from villani.statistics import Array
from villani.work.records import CONFIDENCE, EstimateRecord
from villani.work.team import Rows

_NUMBERS = ("value", "residual", "bound", "quadratic")


def record(result: Spectrum | Eigenpairs, origin: Origin) -> SpectrumRecord:
    """That of a call in Python: no groups are held out, and layers have no blocks of their own."""
    pairs, density = (result.eigenpairs, result.density) if isinstance(result, Spectrum) else (result, None)
    layers = layers_of(origin)
    values = eigenvalue_records(pair_rows([*pairs.largest, *pairs.smallest], layers), len(pairs.largest))
    samples = [sample for share in density.samples for sample in share] if density else []
    return SpectrumRecord(
        **origin.facts, design=SpectrumDesign.of(
            origin, **origin.call, held_out=0, basis=None, seed=origin.provenance.seed, confidence=CONFIDENCE
        ),
        products=pairs.products, converged=pairs.converged, rounding=values[0].bound - values[0].residual,
        layer_names=list(layers), eigenvalues=values, layers=[], sharpness=None,
        density=density_record(density, max(len(sample.nodes) for sample in samples)) if density else None,
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


def pair_rows(pairs: Sequence[Eigenpair], layers: Mapping[str, Sequence[int]]) -> dict[str, Array]:
    """Eigenpairs as a ledger keeps them: a number each, none as NaN, and (k, layers) shares of sum 1."""
    shares = np.array([[float(pair.shares[list(i)].sum()) for i in layers.values()] for pair in pairs])
    numbers = {name: np.array([getattr(p, name) for p in pairs], np.float64) for name in _NUMBERS}
    return numbers | {"shares": shares / shares.sum(axis=1, keepdims=True)}


def eigenvalue_records(
    rows: Rows, top: int, held_out: Sequence[EstimateRecord | None] | None = None
) -> list[EigenvalueRecord]:
    """Of the rows of eigenpairs: from the largest, of which there are `top`, then from the smallest."""
    count = len(rows["value"])
    ranks = [*range(1, top + 1), *range(-1, top - count - 1, -1)]
    rounding = float(rows["bound"][0] - rows["residual"][0])
    columns = {name: rows[name].tolist() for name in (*_NUMBERS, "shares")}
    each = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [
        EigenvalueRecord(
            **row | {"quadratic": None if np.isnan(row["quadratic"]) else row["quadratic"]}, rank=rank,
            rank_limit=row["value"] - rounding * np.sign(rank), status="estimated", held_out=held,
        )
        for rank, held, row in zip(ranks, held_out or [None] * count, each, strict=True)
    ]  # fmt: skip


def rows(record: SpectrumRecord) -> list[dict[str, Any]]:
    """An eigenvalue a row."""
    names = ("rank", "value", "residual", "bound", "quadratic", "rank_limit", "status")
    return [{name: getattr(eigenvalue, name) for name in names} for eigenvalue in record.eigenvalues]
