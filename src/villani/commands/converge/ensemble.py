"""The chains at one λ and s, and what theory knows beside them."""

from dataclasses import dataclass

import numpy as np

from villani.commands.converge.chains import Chain
from villani.commands.converge.coupling import Pair
from villani.commands.converge.record import DivergenceRecord
from villani.commands.converge.settings import ConvergeSettings
from villani.dynamics.advice import largest_curvature, smaller_step
from villani.dynamics.kernel import Kernel
from villani.dynamics.langevin import LangevinTarget
from villani.statistics import Array, Status
from villani.theory.catalogue import Case
from villani.work.records import Cost
from villani.work.work import Work


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
