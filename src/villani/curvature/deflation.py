"""Directions that the trace takes exactly, so that probes need not hit them.

With orthonormal q_1 … q_k and P = I − QQᵀ, tr H = Σ q_iᵀHq_i + E (Pv)ᵀH(Pv) for any Q that does not depend on v: Ritz
vectors make the second part small where few eigenvalues carry ‖H‖_F, and any others leave it unbiased. Tensor by tensor
too: with E_t the projector on a tensor, Σ q_iᵀE_tHq_i + E (Pv)ᵀE_tH(Pv) = tr(E_tH). It costs k products a group.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from villani.errors import InputError
from villani.objective.parameters import ParameterSpace
from villani.work import foreign

_CHUNK = 1 << 20  # coordinates that are held in float64 at a time
_TOLERANCE = 1e-4  # |⟨q_i, q_j⟩ − δ_ij| of what is taken as orthonormal


class Deflation:
    """Orthonormal directions over θ.

    Args:
        space: θ.
        vectors: each (d,), orthonormal to 10⁻⁴; they are made so to rounding.

    Raises:
        InputError: none, a wrong size, or vectors that are not orthonormal.
    """

    def __init__(self, space: ParameterSpace, vectors: Sequence[torch.Tensor]) -> None:
        if not vectors:
            raise InputError("deflate: expected at least one vector")
        for vector in vectors:
            if vector.shape != (space.size,):
                raise InputError(
                    f"deflate: a vector of shape {tuple(vector.shape)}, but θ has {space.size} coordinates"
                )
        rows = torch.stack([vector.to(space.dtype) for vector in vectors])  # (k, d)
        chunks = rows.split(_CHUNK, dim=1)
        gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
        for chunk in chunks:
            gram += chunk.double() @ chunk.double().T
        off = float((gram - torch.eye(len(rows), dtype=torch.float64)).abs().max())
        if not off <= _TOLERANCE:
            raise InputError(f"deflate: vectors are not orthonormal: inner products are off by {off:.2g}")
        turn = torch.linalg.inv(torch.linalg.cholesky(gram))  # nearly the identity
        for chunk in chunks:
            chunk.copy_(turn @ chunk.double())
        self.rows = rows.to(space.tensors[0].device)  # (k, d)
        self.checksum = hashlib.sha256(self.rows.cpu().numpy().data).hexdigest()
        self._sizes = [int(size) for size in space.sizes]
        self._shapes = [t.shape for t in space.tensors]

    @property
    def vectors(self) -> list[list[torch.Tensor]]:
        """The directions, as tensors of θ's shapes."""
        return [self._shaped(row) for row in self.rows]

    def project(self, probe: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Pv for a probe v, as tensors of θ's shapes."""
        flat = torch.cat([piece.reshape(-1) for piece in probe])
        for row in self.rows:
            flat.sub_(row, alpha=float(torch.sum(row.double() * flat)))
        return self._shaped(flat)

    def _shaped(self, flat: torch.Tensor) -> list[torch.Tensor]:
        return [piece.view(shape) for piece, shape in zip(flat.split(self._sizes), self._shapes, strict=True)]


def deflation_from(run: Path, space: ParameterSpace) -> Deflation:
    """The eigenvectors that `villani spectrum --run RUN` left.

    Raises:
        InputError: there are none, or they do not fit θ.
    """
    paths = sorted(run.glob("vector-*.npy"))
    if not paths:
        raise InputError(f"deflate {run}: no eigenvectors there; give the run directory of villani spectrum")
    remedy = "give the run directory of villani spectrum, or run that again"
    vectors = [torch.from_numpy(foreign.read_vector(path, remedy)) for path in paths]
    return Deflation(space, vectors)
