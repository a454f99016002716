"""How degrees pass operations: what is found, against the null space of θ⊙∇L over many θ and rescaled losses."""

import inspect

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from villani.criteria.degrees import Degrees
from villani.criteria.symmetries import generators
from villani.objective.graph import trace_loss
from villani.objective.objective import Objective

SERIES = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
ZEROS = torch.zeros(2, 3, dtype=torch.float64)


FUNCTIONS = {  # of v (2, 3) and u (2, 3); some of a mask (2, 3), of places (2, 3) in 0…2, and of rows (2,) in 0…2
    "convolution by channel": lambda v, u: F.conv1d(v[None, :, :1] * SERIES, u[:, None], padding=1, groups=2),
    "convolution with a bias": lambda v, u: F.conv1d(v[None], u[:, :2, None], u[:, 2], stride=1),
    "the same kernel twice": lambda v, u: F.conv1d(_series(v, u), u[:, :2, None]) * u[:, 2:],
    "largest": lambda v, u: v.topk(2).values * u[:, :2],
    "largest of one": lambda v, u: v.max(dim=1).values * u[:, 0] + v.min(1, keepdim=True).values[:, 0] * u[:, 0],
    "places of the largest": lambda v, u: u.gather(1, v.topk(2).indices) + v.sum(1, keepdim=True),
    "in order": lambda v, u: (v * u).sort(dim=0).values,
    "compared": lambda v, u: torch.where(v > u, v, 3 * u),
    "compared with 0": lambda v, u: torch.where(v > 0, u, -u) + v,
    "compared with 1": lambda v, u: torch.where(v > 1, u, -u) + v,
    "larger": lambda v, u: torch.maximum(v, u),
    "smaller": lambda v, u: torch.min(v, 0.5 * u),
    "clamped at 0": lambda v, u: v.clamp(min=0) + u,
    "clamped at a number": lambda v, u: v.clamp(max=0.3) * u,
    "clamped at what moves": lambda v, u: v.abs().clamp(min=u),
    "padded by 0": lambda v, u: F.pad(v, (1, 1))[:, :3].cumsum(1)[:, 1:] * u[:, :2],
    "padded by 1": lambda v, u: F.pad(v, (1, 0), value=1.0) * u.sum(1, keepdim=True),
    "filled with 0": lambda v, u, mask, places, rows: v.masked_fill(mask, 0.0) + u,
    "filled with 1": lambda v, u, mask, places, rows: v.masked_fill(mask, 1.0) * u,
    "one of 0": lambda v, u, mask, places, rows: torch.where(mask, v, 0.0) + u,
    "entries set to 0": lambda v, u, mask, places, rows: v.scatter(1, places[:, :1], 0.0) + u,
    "entries set to 2": lambda v, u, mask, places, rows: v.scatter(1, places[:, :1], 2.0) + u,
    "entries set": lambda v, u, mask, places, rows: v.scatter(1, places, u) + v,
    "entries added": lambda v, u, mask, places, rows: v.scatter_add(1, places, u) + v,
    "entries added to 0": lambda v, u, mask, places, rows: (
        torch.zeros_like(v).scatter_add(1, places, u)[:, 1:] * v[:, 1:]
    ),
    "rows set": lambda v, u, mask, places, rows: torch.zeros(3, 3, dtype=v.dtype).index_put((rows,), v)[[0, 2]] + u,
    "rows added": lambda v, u, mask, places, rows: u.T.contiguous().index_add(0, rows, v[:, :2], alpha=0.7).T + u,
    "into zeros": lambda v, u: torch.cat([torch.zeros_like(v), v], 1)[:, 2:5].cumsum(1)[:, 1:] * u[:, 1:],
    "from zeros": lambda v, u: ZEROS * u + torch.zeros_like(v) @ u.T @ u + v * u,
    "one after another": lambda v, u: _filled_in_turn(v) * u,
    "cumulated": lambda v, u: v.cumsum(1) * u[:, :1],
    "triangle": lambda v, u: (v.T @ u).tril().sum(1),
    "largest modulus": lambda v, u: v.abs().amax(1) * u[:, 0],
    "variance": lambda v, u: v.var(1) * u[:, 0],
    "norm": lambda v, u: torch.linalg.vector_norm(v, dim=1) * u[:, 0],
    "leaky": lambda v, u: F.leaky_relu(v) * u,
    "complex": lambda v, u: torch.view_as_real(torch.view_as_complex(v[:, :2].contiguous()) * (1 + 2j)) * u[:, :2],
    "matrices in batches": lambda v, u: torch.matmul(v.view(2, 1, 3), u.view(2, 3, 1)),
    "rotated in part": lambda v, u: _rotated(v) * u,
    "zeros among constants": lambda v, u: v * torch.tensor([1.0, 0.0, 2.0]) + u * torch.tensor([0.0, 3.0, 1.0]),
    "a constant choice": lambda v, u: torch.where(torch.arange(3) > 1, v, u) + torch.where(torch.arange(3) < 1, v, 0.0),
    "einsum": lambda v, u: torch.einsum("ab,cb->ac", v, u),
}  # fmt: skip


def _series(v, u):
    return F.conv1d(v[None, :, :1] * SERIES, u[:, :2, None])


def _rotated(v):
    """As rotary embeddings turn some channels, by angles of which one is 0 everywhere."""
    angles = torch.arange(2, dtype=v.dtype)[:, None] * torch.tensor([0.3, 0.0, 0.7], dtype=v.dtype)
    return v * angles.cos() + v.roll(1, 1) * angles.sin()


def _filled_in_turn(v):
    """Written column by column into what was zeros, as recurrent layers do."""
    out = torch.zeros_like(v)
    for k in range(3):
        out[:, k] = v[:, k] * (1 + k)
    return out


class Two(nn.Module):
    """L = softplus(Σ w⊙f(v, u)), where f may read data."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        draw = torch.Generator().manual_seed(3)
        self.v, self.u = (nn.Parameter(torch.randn(2, 3, dtype=torch.float64, generator=draw)) for _ in range(2))
        self.reads = len(inspect.signature(function).parameters) > 2
        size = self.of(data(0)).shape
        self.w = nn.Parameter(torch.randn(size, dtype=torch.float64, generator=draw))

    def of(self, group):
        return self.function(self.v, self.u, *(group if self.reads else ()))

    def forward(self, group):
        return F.softplus((self.w * self.of(group)).sum())


def data(seed):
    """A mask, places and rows."""
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, generator=draw) < 0.5, torch.rand(2, 3, generator=draw).argsort(1), torch.tensor(
        [[0, 1], [2, 0], [1, 2]][seed % 3]
    )  # fmt: skip


def null_space(model):
    """Dimension of {e: Σ e_i θ_i ∂_i L = 0 at every θ}, from random θ: what no graph was needed for."""
    draw, rows = torch.Generator().manual_seed(5), []
    tensors = list(model.parameters())
    for seed in range(120):
        with torch.no_grad():
            for t in tensors:
                t.copy_(torch.randn(t.shape, dtype=t.dtype, generator=draw))
        gradient = torch.autograd.grad(model(data(seed)), tensors, materialize_grads=True, allow_unused=True)
        row = torch.cat([(t * g).flatten() for t, g in zip(tensors, gradient, strict=True)]).detach()
        rows.append(row / row.norm().clamp(min=1e-30))
    values = torch.linalg.svdvals(torch.stack(rows))
    return int((values < 1e-9 * values[0]).sum())


def dimension(degrees, model):
    """Of the span of the exponents that were found, entry by entry."""
    forms = []
    for index, t in enumerate(model.parameters()):
        if index in degrees.maps:
            outputs, inputs = degrees.maps[index]
            entries = degrees.pairs(outputs.unsqueeze(-1), inputs.unsqueeze(-2), -1)
        else:
            entries = degrees.tensors[index]
        forms += [degrees.equations.resolve(k) for k in entries.expand(t.shape).flatten().tolist()]
    unknowns = sorted({u for form in forms for u in form})
    matrix = torch.tensor([[float(form.get(u, 0)) for u in unknowns] for form in forms])
    return int(torch.linalg.matrix_rank(matrix)) if unknowns else 0


@pytest.mark.parametrize("case", FUNCTIONS)
def test_all_rescalings_are_found_and_none_is_invented(case):
    model = Two(FUNCTIONS[case])
    objective = Objective(model, [data(0)], 0.1, loss_fn=lambda m, group: m(group))
    degrees = Degrees(trace_loss(objective, data(0)))
    assert degrees.skipped.all() == ()
    start = [p.detach().clone() for p in model.parameters()]
    for generator in generators(degrees):
        for ratio in (2.0, 1.37):
            with torch.no_grad():
                before = model(data(0))
                for p, index in zip(model.parameters(), range(3), strict=True):
                    p.mul_(ratio ** generator.exponents.get(index, torch.zeros(())))
                assert torch.allclose(model(data(0)), before, rtol=1e-12)
                for p, value in zip(model.parameters(), start, strict=True):
                    p.copy_(value)
    # of a comparison with a number derivatives know nothing
    assert dimension(degrees, model) == (0 if case == "compared with 1" else null_space(model))
