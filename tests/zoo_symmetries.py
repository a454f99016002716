"""How many independent rescalings leave a loss as it is, counted twice: by villani's degrees, and from gradients alone.

A rescaling multiplies rows and columns of every matrix, and entries of every vector, by factors of their own: entry
(i, j) of W by exp(r_i + c_j). Along it a loss changes at the rate Σ_ij g_ij·W_ij·(r_i + c_j). Rescalings that do so at
no random θ, for no token, are the symmetries: of the matrix of these sums the null space, less what r and c say twice.
Entries on which no loss depends (tokens that do not occur, biases of keys) are left out of both counts.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn

from villani.criteria.degrees import Degrees

ZERO = 1e-9  # of the largest singular value, columns of length 1; what an ε of 10⁻⁶ or more breaks is well above
_DEAD = 1e-12  # of the largest entry of |g·θ|
_FIRST = 8  # random θ that say which entries are live
_SPREAD = 0.3  # of random θ about the model's own
Tensors = Sequence[torch.Tensor]


@dataclass(frozen=True)
class Counts:
    """Independent rescalings, of rows and columns and of whole tensors.

    Attributes:
        channels: by villani, and by null space.
        tensors: the same for rescalings of whole tensors.
        violation: the largest rate at which a rescaling of villani's changes a loss, over the largest of its parts'.
        gap: the smallest singular value that counts and the largest that does not, over the largest.
        missing: tensors that rescalings of the null space move, and no combination of villani's as they do.
    """

    channels: tuple[int, int]
    tensors: tuple[int, int]
    violation: float
    gap: tuple[float, float]
    missing: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether villani finds all."""
        return self.channels[0] == self.channels[1] and self.tensors[0] == self.tensors[1]


def count_symmetries(model: nn.Module, ids: torch.Tensor, degrees: Degrees, names: Sequence[str]) -> Counts:
    """Both counts for a float64 model, inside `all_in_float64`; θ comes back.

    Args:
        model: in eval mode.
        ids: (B, T); the losses of their tokens are those that must not change.
        degrees: of the loss that villani traced.
        names: of θ's tensors, in villani's order.
    """
    theta = [dict(model.named_parameters())[name] for name in names]
    shapes = [_as_matrices(t) for t in theta]
    wanted = sum(b * (m + n) for b, m, n in shapes)
    points = _points(model, ids, theta, max(_FIRST, math.ceil(1.2 * wanted / ids[:, 1:].numel())))
    first = [next(points) for _ in range(_FIRST)]
    rates = [torch.cat(rows).view(-1, *s) for rows, s in zip(zip(*first, strict=True), shapes, strict=True)]
    size = max(float(r.abs().max()) for r in rates)
    live = [(r.abs().amax(0) > _DEAD * size).to(r) for r in rates]
    sums = [_coordinates(rates, live), *(_coordinates(rows, live) for rows in points)]
    channels, wholes = (torch.cat(parts) for parts in zip(*sums, strict=True))
    exponents = [e.view(-1, *s) * mask for e, s, mask in zip(_exponents(degrees, theta), shapes, live, strict=True)]
    moved = sum((r.flatten(1) @ e.flatten(1).T for r, e in zip(rates, exponents, strict=True)), torch.zeros(()))
    parts = sum(
        (r.flatten(1).abs() @ e.flatten(1).abs().T for r, e in zip(rates, exponents, strict=True)), torch.zeros(())
    )
    values, null = _null_space(channels)
    ours = torch.cat([_sums(e) for e in exponents], 1)  # (k, U): on what rows and columns can say, one to one
    theirs = torch.cat([_sums(e) for e in _entries(null, shapes, live)], 1)
    alike = _alike(exponents, live)
    whole_values, _ = _null_space(wholes[:, [bool(mask.any()) for mask in live]])
    counted = int((values > ZERO).sum())
    return Counts(
        (rank(ours), sum(map(_freedom, live)) - counted),
        (rank(alike), len(whole_values) - int((whole_values > ZERO).sum())),
        float((moved.abs().amax(0) / parts.amax(0).clamp(min=1e-300)).max()) if moved.numel() else 0.0,
        (float(values[values > ZERO].min()), float(values[values <= ZERO].max()) if (values <= ZERO).any() else 0.0),
        _missing(ours, theirs, shapes, names),
    )  # fmt: skip


def rank(matrix: torch.Tensor, tolerance: float = 1e-8) -> int:
    """Singular values above a share of the largest."""
    values = torch.linalg.svdvals(matrix) if matrix.numel() else matrix.new_zeros(1)
    return int((values > tolerance * values.max().clamp(min=1e-300)).sum())


def _as_matrices(tensor: torch.Tensor) -> tuple[int, int, int]:
    """(batch, rows, columns); a vector is one row."""
    m, n = (1, 1, *tensor.shape)[-2:]
    return tensor.numel() // (m * n), m, n


def _points(model: nn.Module, ids: torch.Tensor, theta: Tensors, count: int) -> Iterator[list[torch.Tensor]]:
    """g·θ entry by entry for the losses of single tokens, (tokens, …) of every tensor, at each of `count` random θ."""
    generator = torch.Generator().manual_seed(7)
    centre = [t.detach().clone() for t in theta]
    try:
        for _ in range(count):
            with torch.no_grad():
                for t, c in zip(theta, centre, strict=True):
                    t.copy_(c + _SPREAD * torch.randn(c.shape, generator=generator))
            yield [g * t.detach() for g, t in zip(gradients(token_losses(model, ids), theta), theta, strict=True)]
    finally:
        with torch.no_grad():
            for t, c in zip(theta, centre, strict=True):
                t.copy_(c)


def _coordinates(rates: Tensors, live: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, U) sums over columns and rows of every tensor, and (n, P) over whole tensors, of live entries."""
    masked = [r.view(len(r), *mask.shape) * mask for r, mask in zip(rates, live, strict=True)]
    return torch.cat([_sums(r) for r in masked], 1), torch.stack([r.flatten(1).sum(1) for r in masked], 1)


def token_losses(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """(B·(T − 1),) nats of every predicted token, by transformers' forward and torch's cross-entropy."""
    logits = model(input_ids=ids, **forward_options(model)).logits
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")


def forward_options(model: nn.Module) -> dict[str, bool]:
    """No cache, where a forward can be told so."""
    code = type(model).forward.__wrapped__ if hasattr(type(model).forward, "__wrapped__") else type(model).forward
    names = code.__code__.co_varnames[: code.__code__.co_argcount + code.__code__.co_kwonlyargcount]
    return {"use_cache": False} if "use_cache" in names or code.__code__.co_flags & 8 else {}


def gradients(losses: torch.Tensor, theta: Tensors) -> list[torch.Tensor]:
    """(n, …) of each tensor; all losses at once where the backward pass can be batched."""
    unit = torch.eye(len(losses), dtype=losses.dtype)
    try:
        found = torch.autograd.grad(losses, theta, unit, retain_graph=True, allow_unused=True, is_grads_batched=True)
    except RuntimeError:  # an operation without a batching rule
        single = [torch.autograd.grad(losses, theta, u, retain_graph=True, allow_unused=True) for u in unit]
        found = [None if g[0] is None else torch.stack(g) for g in zip(*single, strict=True)]
    return [t.new_zeros(len(losses), *t.shape) if g is None else g for g, t in zip(found, theta, strict=True)]


def _sums(entries: torch.Tensor) -> torch.Tensor:
    """(…, b, m, n) → (…, b·m + b·n) over columns and over rows."""
    return torch.cat([entries.sum(-1).flatten(1), entries.sum(-2).flatten(1)], 1)


def _freedom(live: torch.Tensor) -> int:
    """Dimension of r_i + c_j on the live entries of a tensor: r and c may trade a constant in each connected piece."""
    total = 0
    for matrix in live:
        rows, columns = matrix.nonzero().T.numpy()
        used, where = len(set(rows)) + len(set(columns)), (rows, columns + len(matrix))
        size = sum(matrix.shape)
        pieces = connected_components(coo_array(([1] * len(rows), where), shape=(size, size)), directed=False)[0]
        total += used - (pieces - (size - used))
    return total


def _null_space(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Singular values over the largest, columns taken at length 1, and (q, U) what spans the null space."""
    length = matrix.norm(dim=0)
    used = length > 0
    _, values, right = torch.linalg.svd(matrix[:, used] / length[used], full_matrices=False)
    values = values / values[0]
    null = matrix.new_zeros(int((values <= ZERO).sum()), matrix.shape[1])
    null[:, used] = right[values <= ZERO] / length[used]
    return values, null


def _entries(null: torch.Tensor, shapes: Sequence[tuple[int, int, int]], live: Tensors) -> list[torch.Tensor]:
    """Vectors (q, U) of r and c as exponents r_i + c_j of live entries."""
    pieces = null.split([size for b, m, n in shapes for size in (b * m, b * n)], 1)
    return [(r.view(-1, b, m, 1) + c.view(-1, b, 1, n)) * mask
            for (b, m, n), mask, r, c in zip(shapes, live, pieces[::2], pieces[1::2], strict=True)]  # fmt: skip


def _exponents(degrees: Degrees, theta: Tensors) -> list[torch.Tensor]:
    """(k, …) the exponents of every tensor along each of the k unknowns that villani leaves free."""
    signs: dict[int, list[tuple[torch.Tensor, int]]] = {i: [(f, 1)] for i, f in degrees.tensors.items()}
    signs |= {i: [(out.unsqueeze(-1), 1), (into.unsqueeze(-2), -1)] for i, (out, into) in degrees.maps.items()}
    resolved = {}
    for parts in signs.values():
        for f, _ in parts:
            resolved |= {k: degrees.equations.resolve(k) for k in f.unique().tolist() if k not in resolved}
    free = {u: j for j, u in enumerate(sorted({u for form in resolved.values() for u in form}))}
    forms: dict[int, torch.Tensor] = {k: torch.zeros(len(free), dtype=torch.float64) for k in resolved}
    for k, form in resolved.items():
        for u, coefficient in form.items():
            forms[k][free[u]] = float(coefficient)
    exponents = []
    for index, t in enumerate(theta):
        total = torch.zeros(len(free), *t.shape, dtype=torch.float64)
        for f, sign in signs.get(index, []):
            known, back = f.unique(return_inverse=True)
            table = torch.stack([forms[k] for k in known.tolist()], 1)  # (k, forms)
            total += sign * table[:, back.reshape(-1)].view(len(free), *f.shape)
        exponents.append(total)
    return exponents


def _alike(exponents: Tensors, live: Tensors) -> torch.Tensor:
    """(q, P) combinations of villani's rescalings that move all live entries of a tensor alike, tensor by tensor."""
    count = len(exponents[0])
    uneven, means = torch.zeros(count, count, dtype=torch.float64), torch.zeros(count, len(live), dtype=torch.float64)
    for index, (e, mask) in enumerate(zip(exponents, live, strict=True)):
        if mask.any():
            flat = e.flatten(1)[:, mask.flatten() > 0]
            means[:, index] = flat.mean(1)
            flat = flat - means[:, index, None]
            uneven += flat @ flat.T
    values, vectors = torch.linalg.eigh(uneven)
    return vectors[:, values <= 1e-9 * max(1.0, float(values.max()) if count else 1.0)].T @ means


def _missing(
    ours: torch.Tensor, theirs: torch.Tensor, shapes: Sequence[tuple[int, int, int]], names: Sequence[str]
) -> tuple[str, ...]:
    basis, kept = _span(ours), _span(theirs)
    rest = kept - kept @ basis.T @ basis
    sizes = [part.norm() for part in rest.split([b * (m + n) for b, m, n in shapes], 1)]
    return tuple(name for name, size in zip(names, sizes, strict=True) if size > 1e-5)


def _span(rows: torch.Tensor) -> torch.Tensor:
    """Orthonormal rows that span the given ones."""
    if not rows.numel():
        return rows
    _, values, right = torch.linalg.svd(rows, full_matrices=False)
    return right[values / values[0].clamp(min=1e-300) > 1e-8]
