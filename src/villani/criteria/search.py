"""A smaller s*: orbits walked at once, and a θ where the block that shrinks has less of a gradient; THEORY.md §2.2.

s* is what it is at one θ, and (iv) speaks of all of them. Minimising L over the block B that shrinks, the rest fixed,
leaves λ²‖mA‖²/Δ_B L of s* under Theorem C, and nothing at all under Theorem D: inf s_∞ = 0 wherever Δ_B L > 0 stays.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import count

import numpy as np
import torch

from villani.criteria.orbits import Orbit, Threshold, pooled, replaced, threshold
from villani.criteria.part_gradients import batch_gradients
from villani.criteria.parts import Parts, PartStatistics
from villani.criteria.streamed_parts import streamed_slopes
from villani.objective.objective import Objective
from villani.statistics import Array
from villani.work.team import Rows
from villani.work.work import Work

_CLEAR = 2.0  # standard errors that Δ_B L has to be above 0 for a descent to be worth its cost


def promise(found: Threshold) -> tuple[float, float]:
    """Small where an orbit is worth confirming: by the bound of s*, or by how clearly Δ_B L > 0 where there is none."""
    return found.upper, -found.laplacian.value / found.laplacian.sem if found.laplacian.sem else found.value


def pool(
    ranked: Sequence[Orbit], exponents: Callable[[Orbit], Array], statistics: PartStatistics, objective: Objective
) -> Orbit | None:
    """Orbits of one kind that together have a smaller bound of s* than the best alone; None if there are no such.

    With every s* known, none could be smaller than the smallest. But what one layer's data leave uncertain, all layers
    together may show. Greedy, in the order given.
    """
    best: list[Orbit] = []
    bound = promise(threshold(exponents(ranked[0]), statistics, objective.weight_decay))
    for orbit in ranked:
        together = pooled([*best, orbit], objective.parameters) if best else orbit
        if together is None or together.theorem != ranked[0].theorem:
            continue
        found = promise(threshold(exponents(together), statistics, objective.weight_decay))
        if not best or found < bound:
            best.append(orbit)
            bound = found
    return pooled(best, objective.parameters) if len(best) > 1 else None


def candidate(orbits: Sequence[Orbit], screened: Mapping[str, Threshold]) -> Orbit | None:
    """The orbit whose s* could fall lowest if ∇_B L vanished, of those whose Δ_B L is clearly positive."""

    def floor(orbit: Orbit) -> tuple[float, float]:
        found = screened[orbit.name]
        return found.norm_squared / found.laplacian.value, *promise(found)[1:]

    clear = [o for o in orbits if screened[o.name].laplacian.value > _CLEAR * screened[o.name].laplacian.sem]
    return min(clear, key=floor, default=None)


def descent(
    objective: Objective, parts: Parts, chosen: Sequence[int], groups: Sequence[int], steps: int,
    work: Work | None = None,
) -> dict[int, torch.Tensor]:  # fmt: skip
    """The values of tensors after some steps of L-BFGS on L of some groups, over the chosen parts alone.

    θ is left as it was. Every evaluation of L and its slopes is a unit of work; in memory by default.
    """
    space, work = objective.parameters, work or Work()
    moving = [i for i, labels in enumerate(parts.labels) if bool(torch.isin(labels, torch.tensor(chosen)).any())]
    free = [space.values[i].clone().requires_grad_() for i in moving]
    most = 3 * steps
    optimizer = torch.optim.LBFGS(free, max_iter=steps, max_eval=most, line_search_fn="strong_wolfe", tolerance_grad=0)
    inside, number = parts.mask(chosen), count()

    def evaluation() -> Rows:
        with replaced(objective, {i: value.detach() for i, value in zip(moving, free, strict=True)}):
            slopes, tokens, loss = _slopes(objective, groups, moving)
        rows = {str(i): (slopes[i] / tokens).to(space.dtype).cpu().numpy() for i in moving}
        return rows | {"loss": np.array(loss / tokens)}

    def closure() -> float:
        done = next(number)
        rows = work.once(f"evaluation/{done}", evaluation)
        work.advance(min(done + 1, most), most)
        for i, value in zip(moving, free, strict=True):
            value.grad = torch.from_numpy(rows[str(i)]).to(value) * inside[parts.labels[i]].to(value)
        loss = float(rows["loss"])
        return loss if math.isfinite(loss) else math.inf

    optimizer.step(closure)
    return {i: value.detach() for i, value in zip(moving, free, strict=True)}


def _slopes(
    objective: Objective, groups: Sequence[int], moving: Sequence[int]
) -> tuple[dict[int, torch.Tensor], float, float]:
    """(∇ of the loss sum of some groups in some tensors, in float64, tokens, loss sum)."""
    if objective.streamed:
        return streamed_slopes(objective, groups, moving)
    sums: dict[int, torch.Tensor] = {}
    tokens = loss = 0.0
    for group in groups:
        gradient, predicted, nats = batch_gradients(objective, group, moving)
        for i, g in zip(moving, gradient, strict=True):
            sums[i] = sums[i] + g if i in sums else g.double()
        tokens, loss = tokens + predicted, loss + nats
    return sums, tokens, loss
