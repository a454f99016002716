"""Chains that survive a kill, those at one λ and s together, and what theory knows beside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from villani.commands.converge.coupling import Pair
from villani.commands.converge.record import DivergenceRecord
from villani.commands.converge.settings import ConvergeSettings
from villani.dynamics.advice import largest_curvature, smaller_step
from villani.dynamics.kernel import Kernel
from villani.dynamics.langevin import LangevinTarget, advance
from villani.statistics import Array, Status
from villani.theory.catalogue import Case
from villani.work.records import Cost
from villani.work.stretches import Enough, stretches
from villani.work.team import Rows
from villani.work.work import Work

CHAINS, COUPLED = "chains: λ = {!r}, s = {!r}", "two chains with common noise: λ = {!r}, s = {!r}"  # stages


@dataclass(frozen=True)
class Chain:
    """A whole chain, or as much as there is of one that left.

    Attributes:
        steps: (n,) logged.
        rows: (n, k, R), see `langevin.Piece`.
        inspected: (i,) and
        findings: (i, j), what `inspect` gave at these steps.
        accepted: moves of walkers that were accepted.
        diverged: the step at which it left, or None.
        observing: seconds that observables took.
    """

    steps: Array
    rows: Array
    inspected: Array
    findings: Array
    accepted: int
    diverged: int | None
    observing: float


def run_chain(
    target: LangevinTarget, kernel: Kernel, work: Work, states: Path, *, seed: int, chain: int, log_every: int,
    inspect: Callable[[int], Array] | None = None, inspect_every: int = 0,
) -> Chain:  # fmt: skip
    """Run a chain to its end, or take it up where it was stopped.

    Args:
        target: at the start that all chains are reset from.
        kernel: how to move.
        work: of this λ and s; its units are stretches of chains.
        states: name of the files of θ, without what tells their step.
        seed: of everything random.
        chain: which.
        log_every: steps between rows.
        inspect: see `langevin.advance`.
        inspect_every: see there.

    Raises:
        InputError: the file of θ that a unit left is gone or damaged; or the disk is full.
    """
    velocity = [torch.zeros_like(t) for t in target.tensors] if kernel.momentum else None

    def stretch(start: int, before: Rows | None, enough: Enough) -> dict[str, Array]:
        if before is None:
            target.reset(chain)
        piece = advance(
            target, kernel, seed=seed, chain=chain, start=start, velocity=velocity, log_every=log_every,
            ceiling=float(before["ceiling"]) if before else None, enough=enough, inspect=inspect,
            inspect_every=inspect_every,
        )  # fmt: skip
        for tensor in target.tensors:  # before the state is written
            tensor.grad = None
        return {
            "stop": np.array(piece.stop), "ceiling": np.array(piece.ceiling), "observing": np.array(piece.observing),
            "steps": np.array(piece.steps, dtype=int), "rows": np.array(piece.rows, dtype=float),
            "inspected": np.array(piece.inspected, dtype=int), "findings": np.array(piece.findings, dtype=float),
            "accepted": np.array(piece.accepted), "state": np.zeros(0, dtype=np.uint8),
            "diverged": np.array(-1 if piece.diverged is None else piece.diverged),
        }  # fmt: skip

    named = states.with_name(f"{states.name}-{chain}")
    moving = [*target.tensors, *(velocity or [])]
    return _joined(stretches(work.scope(str(chain)), named, kernel.steps, moving, stretch))


def _joined(rows: Sequence[Rows]) -> Chain:
    def whole(name: str) -> Array:
        parts = [row[name] for row in rows if len(row[name])]
        return np.concatenate(parts) if parts else np.zeros((0, 0))

    diverged = int(rows[-1]["diverged"])
    return Chain(
        whole("steps").astype(int), whole("rows"), whole("inspected").astype(int), whole("findings"),
        sum(int(row["accepted"]) for row in rows), None if diverged < 0 else diverged,
        sum(float(row["observing"]) for row in rows),
    )  # fmt: skip


@dataclass(frozen=True)
class Ensemble:
    """The chains at one λ and s.

    Attributes:
        settings: with every field filled.
        kernel: how the chains moved.
        names: of the observables, in the order of the chains' rows.
        chains: of a model; or the one of a potential, which holds all replicates.
        pair: coupled chains, if any.
        diverged: what left.
        dimension: d.
        undecayed: coordinates without a Gibbs law.
    """

    settings: ConvergeSettings
    kernel: Kernel
    names: tuple[str, ...]
    chains: tuple[Chain, ...]
    pair: Pair | None
    diverged: list[DivergenceRecord]
    dimension: int
    undecayed: int

    @property
    def whole(self) -> list[Chain]:
        """Chains that did not leave: only they are analysed."""
        return [chain for chain in self.chains if chain.diverged is None]

    def curves(self) -> dict[str, Array]:
        """Name → (C, n) of the chains that did not leave."""
        rows = [chain.rows for chain in self.whole]  # (n, k, R)
        stacked = np.concatenate(rows, axis=2) if rows else np.zeros((0, len(self.names), 0))
        return {name: stacked[:, i].T for i, name in enumerate(self.names)}

    def inspected(self) -> dict[str, Array]:
        """Name → (C, i) of what was measured at intervals."""
        rows = [chain.findings for chain in self.whole if chain.findings.size]
        names = ("psi", "laplacian", "unbiased_gradient_squared")
        return {name: np.stack(rows)[:, :, i] for i, name in enumerate(names)} if rows else {}


@dataclass(frozen=True)
class Theory:
    """What theory knows: of a potential its case and gap (or why there is none), of a model its vocabulary.

    `status` is that of the gap, and `ceiling` a certified upper bound on it where it is estimated.
    """

    gap: float | None = None
    status: Status = "certified"
    ceiling: float | None = None
    unsolved: str = ""
    case: Case | None = None
    vocabulary: int | None = None


def divergence_records(
    chain: Chain, target: LangevinTarget, kernel: Kernel, replicates: int, number: int = 0
) -> list[DivergenceRecord]:
    """What to say about a chain that left; all replicates of a potential go together."""
    if chain.diverged is None:
        return []
    curvature = largest_curvature(target, kernel, number)
    step = smaller_step(kernel, curvature)
    return [
        DivergenceRecord(chain=number + i, step=chain.diverged, curvature=curvature, learning_rate=step)
        for i in range(replicates)
    ]


def cost_of(ensembles: list[Ensemble], work: Work, tokens: int = 0) -> Cost:
    """What all chains took; `seconds_per_group` is per step, and `tokens` are those of a step."""
    steps = sum(ensemble.kernel.steps * len(ensemble.chains) for ensemble in ensembles)
    observing = sum(chain.observing for ensemble in ensembles for chain in ensemble.chains)
    return work.cost(tokens * steps, shares=steps, observing_seconds=observing)
