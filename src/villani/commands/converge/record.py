"""Records of Langevin runs: chains at several λ and s, what their curves say, and every rate beside them."""

from typing import Literal

from pydantic import Field

from villani.work.records import (
    Cost,
    EstimateRecord,
    ModelRecord,
    ObjectiveRecord,
    Provenance,
    Record,
    Status,
    TextRecord,
)

Verdict = Literal["refuted", "consistent", "not identifiable"]


class PotentialRecord(Record):
    """Which potential was run."""

    name: str
    expression: str = Field(description="L")
    dimension: int
    shape: Literal["ridge", "copies", "radial"]


class DynamicsRecord(Record):
    """How the chains moved."""

    method: Literal["noisy-sgd", "matched", "mala"]
    learning_rate: float = Field(gt=0, description="η, the largest step")
    momentum: float
    schedule: Literal["constant", "cosine"]
    steps: int
    chains: int
    walkers: int = Field(description="independent walkers in each chain, whose mean is what is recorded")
    start: Literal["same", "spread"] = Field(description="spread: chains of odd number begin elsewhere")
    batch: int | None = Field(description="blocks in a step; null: full gradients")
    blocks: int | None = Field(description="blocks in the data set; null for potentials")
    log_every: int
    psi_every: int = Field(description="0: Ψ was not measured")
    psi_groups: int
    seed: int
    confidence: float


class CurveRecord(Record):
    """An observable along the run, thinned for the page; null where chains had ended."""

    name: str
    mean: list[float | None]
    sem: list[float | None] = Field(description="over chains")
    chains: list[list[float | None]]


class WindowRecord(Record):
    """A fit of c + A·e^{−rt} from `start` to the end of the run."""

    start: float
    rate: float
    interval: tuple[float, float]
    amplitude: float
    level: float
    problem: str = Field(description="why the rate cannot be used; empty if it can")


class FitRecord(Record):
    """Fits of one observable."""

    name: str
    rate: EstimateRecord | None = Field(description="its interval is the hull over windows; null if none is usable")
    windows: list[WindowRecord]
    verdict: Literal["identified", "not identifiable"]
    why: str


class MixingRecord(Record):
    """R̂ and effective sample size of one observable over the second halves of the chains."""

    name: str
    rhat: float | None
    ess: float | None


class IdentityRecord(Record):
    """An identity of THEORY.md §1 as the ratio of its two sides over the second half of the run; 1 at equilibrium."""

    name: str
    ratio: EstimateRecord | None = Field(description="null where a side was not measured")
    verdict: Literal["holds", "fails", "not resolved", "not measured"]
    note: str


class RateRecord(Record):
    """A rate in the picture: a promise about the gap, a bound on it, or what was fitted."""

    name: str
    side: Literal["at least", "at most", "equal", "fitted", "reference"] = Field(
        description="what it says about the gap"
    )
    log10: float = Field(description="of the rate, per unit of diffusion time")
    limit_log10: float | None = Field(
        default=None,
        description="upper confidence limit, of bounds from the run; those of one λ and s hold all at once",
    )
    status: Status
    verdict: Verdict | None = Field(default=None, description="null where there is no promise to judge")
    sentence: str


class DivergenceRecord(Record):
    """A chain that left."""

    chain: int
    step: int
    curvature: float | None = Field(description="estimate of the largest curvature where the chain began")
    learning_rate: float = Field(description="the step that is advised")


class GradientNoiseRecord(Record):
    """How the noise of mini-batches compares with the injected noise, as shares of s; upper bounds, heuristic."""

    isotropic: float = Field(description="η·E‖g‖²/(d·s) ≥ s_eff/s, spread over all directions")
    worst_direction: float = Field(description="η·E‖g‖²/s, all of it in one direction")


class CoupledRecord(Record):
    """Two chains from different starts that share noise and batches."""

    times: list[float]
    log_distance: list[float] = Field(description="mean of ln‖θ_a − θ_b‖ over pairs")
    rate: EstimateRecord | None = Field(description="−d ln‖θ_a − θ_b‖/dt; null if it is too short")


class ChainsRecord(Record):
    """Chains at one λ and s."""

    weight_decay: float = Field(ge=0)
    temperature: float = Field(gt=0)
    beta: float
    time: float = Field(description="length of the run in time of the diffusion: Σ η/(1 − μ)")
    exact_gap: float | None = Field(description="of the diffusion, where it can be computed")
    exact_gap_status: Status | None = Field(
        default=None, description="certified by intervals, or estimated from two grids; null where there is no gap"
    )
    sentence: str
    trap: str = Field(description="what the loss does not see; empty if nothing was found")
    equilibrium: Literal["not contradicted", "contradicted", "unknown"]
    times: list[float]
    curves: list[CurveRecord]
    fits: list[FitRecord]
    mixing: list[MixingRecord]
    identities: list[IdentityRecord]
    rates: list[RateRecord]
    acceptance: float | None = Field(description="share of accepted proposals, with mala")
    diverged: list[DivergenceRecord]
    gradient_noise: GradientNoiseRecord | None
    coupled: CoupledRecord | None


class ConvergenceRecord(Record):
    """What `villani converge` found."""

    kind: Literal["convergence"] = "convergence"
    model: ModelRecord | None = Field(description="null for potentials")
    objective: ObjectiveRecord | None
    text: TextRecord | None
    potential: PotentialRecord | None = Field(description="null for models")
    design: DynamicsRecord
    undecayed: int = Field(description="coordinates without decay, which have no Gibbs law")
    points: list[ChainsRecord]
    provenance: Provenance | None = Field(description="null for potentials, which `design` and versions determine")
    cost: Cost | None = Field(default=None, description="null inside records.json, where every byte is reproducible")


RECORDS = (ConvergenceRecord,)
