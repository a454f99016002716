"""∇²L, its Gauss–Newton part, or ∇²F as a matrix: `H @ v` for arrays and tensors, and SciPy's `LinearOperator`."""

from typing import Any, Literal, TypeVar

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator

from villani.curvature.operators import Curvature, OperatorKind
from villani.errors import InputError
from villani.objective.evaluation import plain_arithmetic
from villani.objective.objective import Objective

Matrix = Literal["loss", "objective"]
Vectors = TypeVar("Vectors", np.ndarray[Any, Any], torch.Tensor)


class HessianOperator:
    """A symmetric matrix (d, d) that is never formed: ∇²L of the mean loss over all groups, at the model's present θ.

    Coordinates are those of `objective.parameters.tensors`, flattened and joined in that order; a tied weight counts
    once. A product takes a double backward pass over the data and about three copies of θ.

        H = HessianOperator(objective)
        curvature = v @ H @ v / (v @ v)                                  # of v (d,), an array or a tensor
        values, vectors = scipy.sparse.linalg.eigsh(H.to_scipy(), k=3)   # villani.eigenpairs adds bounds

    With a model in float32 a product has a relative error of about 10⁻⁶, of rounding; load it in float64 for more.
    What it does not say: the groups are taken as the whole data set here, so that no data noise is told. `measure` and
    `spectrum` give errors.

    Args:
        objective: whose loss, θ, λ and mask.
        operator: `hessian`, or `gauss-newton` for JᵀSJ with S = diag p − ppᵀ, which is never negative and no stand-in
            for ∇²L.
        matrix: of `loss`, L; or of the `objective`, F = L + (λ/2)‖m⊙θ‖², with λ added on decayed coordinates.

    Attributes:
        shape: (d, d).
        dtype: of θ, float32 or float64; products are made and given in it.
        device: of θ.

    Raises:
        InputError: an unknown operator or matrix, or `gauss-newton` of a custom loss, which has no logits.
    """

    __array_ufunc__ = None  # numpy's arrays leave `v @ H` to `__rmatmul__`

    def __init__(self, objective: Objective, operator: OperatorKind = "hessian", matrix: Matrix = "loss") -> None:
        if not isinstance(objective, Objective):
            raise InputError(f"objective is a {type(objective).__name__}: expected a villani.Objective")
        self._curvature = curvature_of(objective, operator, matrix)
        size = self._curvature.size
        self.shape: tuple[int, int] = (size, size)
        self.dtype: torch.dtype = self._curvature.dtype
        self.device: torch.device = objective.device

    def __matmul__(self, vectors: Vectors) -> Vectors:
        """The product with a vector (d,), or with each column of (d, k): of the same kind, shape and device.

        Raises:
            InputError: another shape, numbers that are not real and finite, or a product that is not finite.
        """
        self._check(vectors, axis=0)
        with plain_arithmetic():
            columns = self._columns(vectors)  # (d, k), in θ's dtype, on its device
            products = [self._curvature(columns[:, i].contiguous()) for i in range(columns.shape[1])]
            result = torch.stack(products, dim=1) if products else columns
        if not bool(torch.isfinite(result).all()):
            raise InputError("a product with the curvature is not finite: try float64")
        result = result.reshape(tuple(vectors.shape))
        return result.to(vectors.device) if isinstance(vectors, torch.Tensor) else result.cpu().numpy()

    def __rmatmul__(self, vectors: Vectors) -> Vectors:
        """V H of (d,) or (k, d): the transpose of H Vᵀ, since H is symmetric."""
        self._check(vectors, axis=-1)
        return (self @ vectors.T).T if vectors.ndim == 2 else self @ vectors

    def to_scipy(self) -> "LinearOperator[Any]":
        """The same matrix for `scipy.sparse.linalg`: arrays in, arrays of H's dtype out."""
        return LinearOperator(
            shape=self.shape, dtype=np.dtype(self._name), matvec=self.__matmul__, rmatvec=self.__matmul__,
            matmat=self.__matmul__, rmatmat=self.__matmul__,
        )  # fmt: skip

    def __repr__(self) -> str:
        d = self.shape[0]
        return f"HessianOperator({self._curvature.kind}, shape=({d}, {d}), dtype={self._name}, device={self.device})"

    @property
    def _name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def _check(self, vectors: Any, axis: int) -> None:
        """Refuse what is no vector, or has no vectors along an axis."""
        d = self.shape[0]
        dense = isinstance(vectors, torch.Tensor) and vectors.layout == torch.strided
        if not dense and (not isinstance(vectors, np.ndarray) or isinstance(vectors, np.ma.MaskedArray)):
            raise InputError(f"v is a {type(vectors).__name__}: expected a plain numpy array or a dense torch tensor")
        if vectors.ndim not in (1, 2) or vectors.shape[axis] != d:
            raise InputError(f"v has shape {tuple(vectors.shape)}: expected d = {d} entries, in one vector or in each")
        if isinstance(vectors, np.ndarray):
            real = vectors.dtype.kind in "fiu"
        else:
            real = vectors.dtype != torch.bool and not vectors.is_complex()
        if not real:
            raise InputError(f"v holds {vectors.dtype}: expected real numbers")

    def _columns(self, vectors: np.ndarray[Any, Any] | torch.Tensor) -> torch.Tensor:
        """A copy (d, k) as the curvature takes it, whatever the strides, byte order and history of what was given."""
        if isinstance(vectors, torch.Tensor):
            given = vectors.detach().clone().to(self.device, self.dtype)
        else:
            with np.errstate(over="ignore"):
                given = torch.from_numpy(np.array(vectors, dtype=self._name, order="C")).to(self.device)
        if not bool(torch.isfinite(given).all()):
            raise InputError(f"v has entries that are not finite in {self._name}: expected finite numbers")
        return given.reshape(self.shape[0], -1 if given.numel() else 0)


def curvature_of(objective: Objective, operator: OperatorKind, matrix: Matrix, **rest: Any) -> Curvature:
    """The matrix that is meant, as `Curvature` has it.

    Raises:
        InputError: an unknown operator or matrix, or what `Curvature` refuses.
    """
    if matrix not in ("loss", "objective"):
        raise InputError(f"matrix={matrix!r}: expected loss or objective")
    return Curvature(objective, operator, weight_decay=objective.weight_decay if matrix == "objective" else 0.0, **rest)
