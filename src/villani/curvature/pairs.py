"""Ritz pairs, each examined by a product of its own: Rayleigh quotients, true residuals, and where vectors live.

`villani.curvature.lanczos` finds them, and says what is proved of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from villani.curvature.basis import Basis, dot, norm
from villani.curvature.lanczos import Ends, Ritz, krylov
from villani.curvature.operators import Budget, Product
from villani.objective.evaluation import plain_arithmetic
from villani.results import Content, numbers
from villani.statistics import Array
from villani.work.ledger import writing
from villani.work.work import Work

Rounding = Callable[[torch.Tensor, torch.Tensor], float]  # u, Hu → size of the error of a product
_ROOM = 2  # columns that leave memory before pairs are examined: vectors are made then that the recurrence had not


@dataclass(frozen=True, eq=False, repr=False)
class Eigenpair(Content):
    """A Ritz pair, examined by a product of its own.

    Attributes:
        value: the Rayleigh quotient ρ = uᵀHu.
        residual: ‖Hu − ρu‖: an eigenvalue lies within it of ρ, up to the rounding of products.
        bound: `residual` and that rounding, as far as it is known.
        quadratic: r²/gap with the gap to the nearest other of the wanted values, where that is larger than r: closer
            than `bound` if no eigenvalue was missed in between; else None.
        shares: (P,) ‖u_t‖² of each tensor of the matrix.
        vector: u, or the file that holds it.
    """

    value: float
    residual: float
    bound: float
    quadratic: float | None
    shares: Array
    vector: torch.Tensor | Path

    def __float__(self) -> float:
        return float(self.value)

    def __str__(self) -> str:
        return str(numbers().format_bounded(float(self.value), float(self.bound)))


@plain_arithmetic()
def examine(
    product: Product,
    basis: Basis,
    ritz: Ritz,
    sizes: list[int],
    rounding: Rounding | None = None,
    work: Work | None = None,
    directory: Path | None = None,
) -> list[Eigenpair]:
    """Multiply every wanted Ritz vector once more: its Rayleigh quotient and its true residual.

    Args:
        product: v ↦ Hv.
        basis: that `ritz` came from; its columns stay.
        ritz: the wanted pairs.
        sizes: entries of each tensor, for `shares`.
        rounding: given u and Hu, the size of the error of a product; asked for the first pair. None: not known, 0.
        work: keeps what comes of each pair.
        directory: where vectors are written, as .npy files; without one they are kept in memory.
    """
    if basis.budget.limit is not None:
        basis.release(_ROOM)
    work = work or Work()
    rows: list[Mapping[str, Array]] = []
    vectors: list[torch.Tensor | Path] = []
    for i in range(len(ritz.values)):
        key, path = f"pair/{i}", None if directory is None else directory / f"vector-{i:02d}.npy"
        row = work.get(key) if path and path.exists() else None
        if row is None:
            u = basis.combination(ritz.weights[:, i])
            if path is not None:
                save_vector(path, u)
            measure = partial(_examined, product, u, sizes, None if i else rounding)
            row = work.once(key, measure)
        rows.append(row)
        vectors.append(path or u)
        work.advance(i + 1, len(ritz.values))
    values, residuals = (np.array([float(row[name][0]) for row in rows]) for name in ("value", "residual"))
    bounds = residuals + float(rows[0]["noise"][0])
    return [
        Eigenpair(values[i], residuals[i], bounds[i], _quadratic(values, residuals, i), row["shares"], vectors[i])
        for i, row in enumerate(rows)
    ]


def _examined(product: Product, u: torch.Tensor, sizes: list[int], rounding: Rounding | None) -> dict[str, Array]:
    w = product(u)
    noise = rounding(u, w) if rounding else 0.0
    value = dot(u, w)
    w.sub_(u, alpha=value)
    return {
        "value": np.array([value]),
        "residual": np.array([norm(w)]),
        "noise": np.array([noise]),
        "shares": np.array([norm(part) ** 2 for part in u.split(sizes)]),
    }


def _quadratic(values: Array, residuals: Array, i: int) -> float | None:
    others = np.delete(values, i)
    gap = float(np.abs(others - values[i]).min()) if len(others) else 0.0
    return float(residuals[i] ** 2 / gap) if gap > residuals[i] else None


def save_vector(path: Path, vector: torch.Tensor) -> None:
    """Write a vector as .npy, whole or not at all."""
    temporary = path.with_suffix(".part")
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.save(file, vector.cpu().numpy())
        temporary.replace(path)


@plain_arithmetic()
def ritz_pairs(
    product: Product,
    size: int,
    dtype: torch.dtype,
    ends: Ends | None = None,
    seed: int = 0,
    start: torch.Tensor | None = None,
    budget: Budget | None = None,
) -> tuple[list[Eigenpair], Ritz]:
    """The examined Ritz pairs at both ends of a symmetric matrix that is given by its products.

    Args:
        product: v ↦ Hv for v (size,) of `dtype`.
        size: d.
        dtype: float32 or float64.
        ends: what is wanted; see there.
        seed: of the random start.
        start: as `krylov`.
        budget: what the basis may take; the rest goes to a temporary file.

    Raises:
        InputError: as `krylov`.
    """
    ends = ends or Ends()
    with Basis(size, dtype, None if start is None else start.device, budget=budget) as q:
        ritz = krylov(product, q, ends, seed, start)
        return examine(product, q, ritz, [size]), ritz
