"""Chains that survive a kill, those at one λ and s together, and what theory knows beside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from villani.commands.converge.record import DivergenceRecord
from villani.commands.converge.settings import ConvergeSettings
from villani.dynamics.advice import largest_curvature, smaller_step
from villani.dynamics.kernel import Kernel
from villani.dynamics.langevin import STANDARD, LangevinTarget, advance
from villani.statistics import Array, Status
from villani.theory.catalogue import Case
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
        findings: (i, j), what was inspected.
        accepted: moves of walkers that were accepted.
        observing: seconds that observables took.
        diverged: what to say if it left; all replicates of a potential go together.
    """

    steps: Array
    rows: Array
    findings: Array
    accepted: int
    observing: float
    diverged: list[DivergenceRecord]


def run_chains(
    settings: ConvergeSettings, target: LangevinTarget, kernel: Kernel, work: Work, states: Path,
    inspect: Callable[[int, int], Array] | None = None,
) -> list[Chain]:  # fmt: skip
    """Run all chains at one λ and s to their ends, or take them up where they were stopped.

    Args:
        settings: with every field filled.
        target: at the start that all chains are reset from; where it has replicates, these are chains.
        kernel: how to move.
        work: of this λ and s; its units are stretches of chains.
        states: name of the files of θ, without what tells their chain and step.
        inspect: what is measured at intervals, at a step of a chain; see `langevin.advance`.

    Raises:
        InputError: the file of θ that a unit left is gone or damaged; or the disk is full.
    """
    chains, _, log_every = settings.sizes
    count = chains // target.replicates

    def run(number: int) -> Chain:
        part, place = work.part(number, count), (kernel.weight_decay, kernel.temperature)
        part.stage(f"chain {number + 1} of {count} at λ = {place[0]:g}, s = {place[1]:g}", CHAINS.format(*place))
        velocity = [torch.zeros_like(t) for t in target.tensors] if kernel.momentum else None

        def stretch(start: int, before: Rows | None, enough: Enough) -> dict[str, Array]:
            if before is None:
                target.reset(number)
            piece = advance(
                target, kernel, seed=settings.seed, chain=number, start=start, velocity=velocity, log_every=log_every,
                ceiling=float(before["ceiling"]) if before else None, enough=enough,
                inspect=partial(inspect, number) if inspect else None, inspect_every=settings.psi_every,
            )  # fmt: skip
            for tensor in target.tensors:  # before the state is written
                tensor.grad = None
            values = vars(piece) | {"diverged": -1 if piece.diverged is None else piece.diverged}
            return {name: np.array(value) for name, value in values.items()} | {"state": np.zeros(0, dtype=np.uint8)}

        named, moving = states.with_name(f"{states.name}-{number}"), [*target.tensors, *(velocity or [])]
        rows = stretches(part.scope(f"{number}"), named, kernel.steps, moving, stretch)
        steps, values, findings = (_joined(rows, name) for name in ("steps", "rows", "findings"))
        accepted = sum(int(row["accepted"]) for row in rows)
        observing = sum(float(row["observing"]) for row in rows)
        left = _divergences(target, kernel, number, int(rows[-1]["diverged"]))
        return Chain(steps.astype(int), values, findings, accepted, observing, left)

    return [run(number) for number in range(count)]


def _joined(rows: Sequence[Rows], name: str) -> Array:
    parts = [row[name] for row in rows if len(row[name])]
    return np.concatenate(parts) if parts else np.zeros((0, 0))


def _divergences(target: LangevinTarget, kernel: Kernel, number: int, step: int) -> list[DivergenceRecord]:
    if step < 0:
        return []
    curvature = largest_curvature(target, kernel, number)
    smaller = smaller_step(kernel, curvature)
    chains = range(number, number + target.replicates)
    return [DivergenceRecord(chain=n, step=step, curvature=curvature, learning_rate=smaller) for n in chains]


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


@dataclass(frozen=True)
class Ensemble:
    """The chains at one λ and s.

    Attributes:
        settings: with every field filled.
        kernel: how the chains moved.
        target: in what.
        chains: of a model; or the one of a potential, which holds all replicates.
        pair: of coupled chains, if any; see `coupled`.
        undecayed: coordinates without a Gibbs law.
        theory: what is known beside them.
    """

    settings: ConvergeSettings
    kernel: Kernel
    target: LangevinTarget
    chains: list[Chain]
    pair: Rows | None
    undecayed: int
    theory: Theory

    @property
    def names(self) -> tuple[str, ...]:
        """Of the observables, in the order of the chains' rows."""
        return (*STANDARD, *self.target.extras)

    @property
    def whole(self) -> list[Chain]:
        """Chains that did not leave: only they are analysed."""
        return [chain for chain in self.chains if not chain.diverged]

    @property
    def diverged(self) -> list[DivergenceRecord]:
        """What left."""
        return [one for chain in self.chains for one in chain.diverged]

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
