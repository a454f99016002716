"""Directions along which L is exactly constant at every θ, among parameters that do not decay; THEORY.md §2.1.

Proposed where a gradient at a random point shows that nothing depends on some coordinates, or on their common shift.
Proved on the graph by `shifts`, and verified by moving along it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from villani.criteria.shifts import Proposal, Shifts, rounding
from villani.objective.graph import LossGraph
from villani.objective.objective import Objective
from villani.results import Content
from villani.streams import Purpose, stream

aten = torch.ops.aten
STEPS = (1.0, 10.0, 100.0)
_WIDE = 500_000_000  # coordinates up to which a copy of θ in float64 is made
_NORMALISED = 1e-6  # how far from 1 the largest entry of a stated direction may be
_SPREAD = 0.1  # how far from θ the point lies where gradients propose


@dataclass(frozen=True, eq=False, repr=False)
class FlatDirection(Content):
    """θ + c·direction has the same loss for every θ and c.

    Attributes:
        tensor: the name of the tensor that it moves.
        index: of that tensor in θ.
        direction: in the shape of the tensor, largest entry ±1; zero for all other tensors.
        coordinates: how many entries it moves.
        kind: what it is, in words.
        deleted_by: operations that delete the shift, with their places; empty where the loss never uses what moves.
        steps: the c that were tried.
        changes: |L(θ + c·direction) − L(θ)| in nats per token, the largest over the graphs looked at, for each of them.
        tolerance: what rounding explains at each of them.
    """

    tensor: str
    index: int
    direction: torch.Tensor
    coordinates: int
    kind: str
    deleted_by: tuple[str, ...]
    steps: tuple[float, ...]
    changes: tuple[float, ...]
    tolerance: tuple[float, ...]

    @property
    def holds(self) -> bool:
        """Whether rounding explains every change."""
        return all(c <= t for c, t in zip(self.changes, self.tolerance, strict=True))


def widened(objective: Objective) -> list[torch.Tensor]:
    """θ in float64, or as it is where a copy would be too large."""
    wide = objective.parameters.size <= _WIDE
    return [t.detach().double() if wide else t.detach() for t in objective.parameters.tensors]


def flat_directions(
    objective: Objective, graphs: Sequence[tuple[LossGraph, float]], undecayed: Sequence[int], seed: int = 0
) -> tuple[list[FlatDirection], int]:
    """Flat directions that were proved and verified on every graph, and how many were proposed.

    Args:
        objective: model and names.
        graphs: traced losses, each with its number of terms.
        undecayed: indices of the tensors to look at.
        seed: of the random point and the random directions.
    """
    generic = _generic(objective, seed)
    with objective.evaluating():
        proposals = _propose(graphs[0], generic, undecayed, seed)
    proofs = _proofs(objective, graphs, generic, proposals)
    with objective.evaluating(), torch.no_grad():
        found = [
            verified(objective, graphs, proposal, deletions)
            for proposal, deletions in zip(proposals, proofs, strict=True)
            if deletions is not None
        ]
        if objective.finite:
            unread = _unread_rows(objective, graphs[0][0], undecayed, seed)
            proposals += unread
            found += [verified(objective, graphs, proposal, ()) for proposal in unread]
    return [f for f in found if f.holds], len(proposals)


def reproved(
    objective: Objective,
    graphs: Sequence[tuple[LossGraph, float]],
    undecayed: Sequence[int],
    index: int,
    direction: torch.Tensor,
    seed: int = 0,
) -> FlatDirection | str:
    """A flat direction that somebody states, proved and verified again; if it is none, why, as after "it".

    Args:
        objective: model and names.
        graphs: traced losses; of a table, one of them must look up the row that moves.
        undecayed: indices of the tensors that do not decay.
        index: of the tensor in θ.
        direction: in its shape.
        seed: of the random point.
    """
    largest = float(direction.abs().max()) if direction.numel() else 0.0
    if index not in undecayed:
        return "lies in a tensor that decays, so that F grows along it"
    if not abs(largest - 1) <= _NORMALISED:
        return f"has {largest:.3g} as its largest entry, and not 1"
    point = _generic(objective, seed)
    count = int((direction != 0).sum())
    proposal = Proposal(index, direction.to(point[index]), f"a shift of {count} of {direction.numel()} entries")
    proof: tuple[str, ...] | None
    if _is_table(graphs[0][0], index):
        moved = (direction != 0).any(-1)
        if objective.finite and not bool((objective.gradient(fused=True)[index][moved] != 0).any()):
            proof = ()  # no group looks them up
        elif int(moved.sum()) > 1:
            return "moves rows that not every text looks up"
        else:
            [proof] = _proofs(objective, graphs, point, [proposal])
    else:
        [proof] = _proofs(objective, graphs, point, [proposal])
    if proof is None:
        return "is not shown by the traced graph to leave the loss alone"
    with objective.evaluating(), torch.no_grad():
        found = verified(objective, graphs, proposal, proof)
    return found if found.holds else f"changes the loss by {max(found.changes):.1g} nats per token"


def _generic(objective: Objective, seed: int) -> list[torch.Tensor]:
    """A random point near θ, where an identity holds only if it holds everywhere."""
    return [
        t + _SPREAD * torch.from_numpy(stream(seed, Purpose.DIRECTION, i).standard_normal(t.shape)).to(t)
        for i, t in enumerate(widened(objective))
    ]


def _proofs(
    objective: Objective,
    graphs: Sequence[tuple[LossGraph, float]],
    point: Sequence[torch.Tensor],
    proposals: Sequence[Proposal],
) -> list[tuple[str, ...] | None]:
    """Of each proposal the operations that delete its shift, on all graphs; None where one of them does not."""
    deletions: list[list[str]] = [[] for _ in proposals]
    proved = [True for _ in proposals]
    with objective.evaluating(), torch.no_grad():
        for graph, _ in graphs:
            shifts = Shifts(graph, proposals, point)
            for k in range(len(proposals)):
                proved[k] &= shifts.gone(k)
                deletions[k] += [d for d in shifts.deletions[k] if d not in deletions[k]]
    return [tuple(d) if p else None for d, p in zip(deletions, proved, strict=True)]


def _is_table(graph: LossGraph, index: int) -> bool:
    """Whether the loss only looks rows up in a tensor."""
    users = [u for n, i in graph.parameters.items() if i == index for u in n.users]
    return bool(users) and all(u.target is aten.embedding.default for u in users)


def _unread_rows(objective: Objective, graph: LossGraph, undecayed: Sequence[int], seed: int) -> list[Proposal]:
    """Rows that no group looks up, where the groups are all the data: their gradient is exactly 0."""
    tables = [i for i in undecayed if _is_table(graph, i)]
    gradient = objective.gradient(fused=True) if tables else []
    proposals = []
    for index in tables:
        unread = (gradient[index] == 0).all(-1)
        if bool(unread.any()):
            random = torch.from_numpy(stream(seed, Purpose.DIRECTION, index).uniform(-1, 1, gradient[index].shape))
            direction = random.to(gradient[index]) * unread[:, None]
            kind = f"any shift of the {int(unread.sum())} rows that these groups never look up"
            proposals.append(Proposal(index, direction / direction.abs().max(), kind))
    return proposals


def _propose(
    traced: tuple[LossGraph, float],
    point: list[torch.Tensor],
    undecayed: Sequence[int],
    seed: int,
) -> list[Proposal]:
    """Coordinates without a derivative at a random point, and shifts common to all others without one."""
    graph, terms = traced
    leaves = [t.requires_grad_() if i in undecayed else t for i, t in enumerate(point)]
    loss = graph.run(leaves) / terms
    wanted = [leaves[i] for i in undecayed]
    grads: Sequence[torch.Tensor | None] = [None] * len(wanted)
    if loss.requires_grad:
        grads = torch.autograd.grad(loss, wanted, allow_unused=True)
    for t in wanted:
        t.requires_grad_(False)
    exact = rounding(point[0].dtype)
    largest = max([float(g.abs().max()) for g in grads if g is not None] + [1e-3 * abs(float(loss.detach()))])
    proposals = []
    for index, gradient in zip(undecayed, grads, strict=True):
        g = torch.zeros_like(point[index]) if gradient is None else gradient
        if _is_table(graph, index):
            proposals += _shift_of_a_row(index, g, exact)
            continue
        own = float(g.abs().max())
        idle = g.abs() <= (exact * own if own > exact * largest else own)  # all of it where all is rounding
        busy = g.numel() - int(idle.sum())
        if bool(idle.any()):
            random = stream(seed, Purpose.DIRECTION, len(point) + index).standard_normal(g.shape)
            direction = torch.from_numpy(random).to(g) * idle
            kind = f"any shift of {g.numel() - busy} of {g.numel()} entries"
            proposals.append(Proposal(index, direction / direction.abs().max(), kind))
        if g.dim() == 1 and busy > 1 and abs(float(g[~idle].sum())) <= exact * own * busy:
            proposals.append(Proposal(index, (~idle).to(g), f"a common shift of {busy} of {g.numel()} entries"))
    return proposals


def _shift_of_a_row(index: int, gradient: torch.Tensor, exact: float) -> list[Proposal]:
    """Of a lookup table: rows that this block does not look up prove nothing, those that it does may shift."""
    own = gradient.abs().amax(-1)
    shifted = (own > exact * own.max()) & (gradient.sum(-1).abs() <= exact * own * gradient.shape[-1])
    for row in shifted.nonzero()[:1, 0].tolist():
        direction = torch.zeros_like(gradient)
        direction[row] = 1.0
        return [Proposal(index, direction, f"a common shift of row {row} of {len(gradient)}")]
    return []


def verified(
    objective: Objective,
    graphs: Sequence[tuple[LossGraph, float]],
    proposal: Proposal,
    deletions: tuple[str, ...],
) -> FlatDirection:
    """What moving along a proposed direction does to the loss."""
    tensors = widened(objective)

    def losses(step: float) -> list[float]:
        moved = list(tensors)
        moved[proposal.index] = tensors[proposal.index] + step * proposal.direction
        return [float(graph.run(moved)) / terms for graph, terms in graphs]

    here = losses(0.0)
    noise = 1e3 * torch.finfo(tensors[0].dtype).eps * (1 + max(map(abs, here)))
    return FlatDirection(
        tensor=objective.parameters.parameters[proposal.index].name,
        index=proposal.index,
        direction=proposal.direction,
        coordinates=int((proposal.direction != 0).sum()),
        kind=proposal.kind,
        deleted_by=deletions,
        steps=STEPS,
        changes=tuple(max(abs(a - b) for a, b in zip(losses(c), here, strict=True)) for c in STEPS),
        tolerance=tuple(noise * (1 + c) for c in STEPS),
    )
