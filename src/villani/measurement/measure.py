"""Per-group statistics at θ, and from them Ψ_s with an interval for every λ and s.

Measure once, answer for every λ and s: five statistics determine Ψ_s = ‖∇F‖²/s − ΔF (THEORY.md §6), and no λ or s
enters the measurement. The design is nested: every group has its own gradient and its own probes, so that one jackknife
over groups covers data and probe noise together.
"""

import math
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from villani.curvature.blocks import Blocks, BlockTrace, layers_of
from villani.curvature.deflation import Deflation
from villani.curvature.products import ProductMethod
from villani.curvature.sketch import GradientSketch, buckets_for
from villani.curvature.trace import GroupStatistics, TraceMethod, group_statistics
from villani.errors import InputError, check_whole, is_number
from villani.objective.objective import Objective, at_one_theta, check_weight_decay
from villani.statistics import (
    Array,
    Estimate,
    GroupSums,
    JointEstimate,
    exact,
    finite_statistics,
    ratio_estimates,
    sampled_statistics,
)
from villani.work.team import Ledger, Rows, Team

SHARES = 6  # groups behind the traces of single tensors, where the way to the whole trace does not tell them


@dataclass(frozen=True)
class TensorStatistics:
    """One parameter tensor's share.

    Attributes:
        name: of the tensor.
        shape: of the tensor.
        decayed: whether it decays.
        norm_squared: ‖θ_t‖².
        hessian_trace: trace of its diagonal block of ∇²L; None with `shares=0` where probes did not tell tensors apart.
    """

    name: str
    shape: tuple[int, ...]
    decayed: bool
    norm_squared: float
    hessian_trace: Estimate | None


@dataclass(frozen=True)
class LayerStatistics:
    """One layer's share: the tensors that have the same first number in their names, or one tensor without a number.

    Attributes:
        name: the layer's number, or the tensor's name.
        parameters: how many.
        hessian_trace: trace of its diagonal block of ∇²L; None with `shares=0` where probes did not tell layers apart.
    """

    name: str
    parameters: int
    hessian_trace: Estimate | None


@dataclass(frozen=True)
class Measurement:
    """What was measured at one θ, ready to answer for any λ and s.

    Attributes:
        joint: loss, ‖∇L‖², ⟨∇L, mθ⟩, tr ∇²L with their covariance.
        naive_gradient_norm_squared: mean of ‖∇L_g‖² over groups: what a mini-batch reports, too large by tr Σ/B.
        decayed_norm_squared: ‖mθ‖², exact.
        parameters: d.
        decayed_parameters: d_m.
        weight_decay: the objective's λ, the default of `psi`.
        gauss_newton_trace: the part of tr ∇²L that is never negative; None with `hutchinson`. Not a stand-in for it.
        tokens: predicted tokens in all groups.
        tensors: per tensor, in θ's order.
        layers: per layer, in θ's order.
        sketch: buckets of the gradient sketch, or None where gradients were kept whole.
    """

    joint: JointEstimate
    naive_gradient_norm_squared: Estimate
    gauss_newton_trace: Estimate | None
    decayed_norm_squared: float
    parameters: int
    decayed_parameters: int
    weight_decay: float
    tokens: int
    tensors: tuple[TensorStatistics, ...]
    layers: tuple[LayerStatistics, ...]
    sketch: int | None

    @property
    def loss(self) -> Estimate:
        """L, mean nats per predicted token."""
        return self.joint.component(0)

    @property
    def gradient_norm_squared(self) -> Estimate:
        """‖∇L‖², unbiased; near a stationary point it can come out negative."""
        return self.joint.component(1)

    @property
    def gradient_dot_parameters(self) -> Estimate:
        """⟨∇L, mθ⟩."""
        return self.joint.component(2)

    @property
    def hessian_trace(self) -> Estimate:
        """Tr ∇²L; add λ·d_m for the Laplacian of F."""
        return self.joint.component(3)

    def psi(self, weight_decay: float | None = None, *, temperature: float) -> Estimate:
        """Ψ_s = ‖∇F‖²/s − ΔF at this θ, with its five parts; THEORY.md §1, §6.

        The exact parts λ²‖mθ‖²/s and −λ·d_m carry no error, so λ moves the interval only through 2λ⟨∇L, mθ⟩/s.
        Its sign at one θ proves nothing about the Villani condition (iv), which concerns θ → ∞; at equilibrium its
        mean is negative (THEORY.md §1).

        Args:
            weight_decay: λ ≥ 0; the objective's own when not given.
            temperature: s > 0.

        Raises:
            InputError: λ or s outside its range.
        """
        decay = self.weight_decay if weight_decay is None else weight_decay
        check_weight_decay(decay)
        check_temperature(temperature)
        count = self.joint.n
        unit = np.eye(4)
        parts = {
            "decay_norm": exact(decay**2 * self.decayed_norm_squared / temperature, count),
            "cross": self.joint.linear(unit[2] * 2 * decay / temperature),
            "gradient_norm": self.joint.linear(unit[1] / temperature),
            "decay_laplacian": exact(-decay * self.decayed_parameters, count),
            "hessian_trace": self.joint.linear(-unit[3]),
        }
        weights = np.array([0.0, 1 / temperature, 2 * decay / temperature, -1.0])
        total = self.joint.linear(weights, parts["decay_norm"].value + parts["decay_laplacian"].value)
        return Estimate(total.value, total.sem, count, total.status, total.degrees_of_freedom, parts)

    def propagate(self, function: Callable[[Array], float]) -> Estimate:
        """A smooth function of (loss, ‖∇L‖², ⟨∇L, mθ⟩, tr ∇²L), by the delta method; see `JointEstimate.propagate`."""
        return self.joint.propagate(function)


@at_one_theta
def measure(
    objective: Objective,
    probes: int = 1,
    seed: int = 0,
    *,
    trace: TraceMethod | None = None,
    blocks: Blocks = "whole",
    products: ProductMethod = "reverse-over-reverse",
    groups: Sequence[int] | None = None,
    shares: int = SHARES,
    sketch: int | None = None,
    deflate: Deflation | None = None,
    ledger: Ledger | None = None,
    progress: Callable[[int, int], None] | None = None,
    team: Team | None = None,
) -> Measurement:
    """Measure the five statistics of an objective at its current θ.

    Dropout is off during the measurement; θ, `.grad`, train mode and global random state are left as they were.
    Besides the model it needs about three copies of θ and the activations of one double backward pass.

    Args:
        objective: model, groups and mask.
        probes: independent probes (with `gauss-newton`, label samples too) in each group; at least 1, or 2 when
            `objective.finite`.
        seed: a non-negative integer; the same seed gives the same bits.
        trace: `gauss-newton` (default for language models), `hutchinson` (default for a custom loss) or `taylor`.
        blocks: with `taylor`, what gets a probe of its own: the `whole` of θ, each `layer` or each `tensor`.
        products: with `hutchinson`, how ∇²L·v is had: `reverse-over-reverse`, `forward-over-reverse`, or
            `finite-differences` of gradients, which leave fused attention and compiled models as they are.
        groups: which of the objective's groups to measure; all by default.
        shares: where the way does not tell tensors apart, how many of the groups are also sampled by `gauss-newton`,
            which does; 0 for none. Takes the memory of a double backward pass.
        sketch: buckets of the gradient sketch, used when d is larger; by default 262,139, and fewer beyond 128 groups.
        deflate: with `hutchinson`, directions whose share of the trace is taken exactly; made without these groups.
        ledger: keeps finished groups, and supplies those of an interrupted run.
        progress: called with (finished, total) units.
        team: the processes that share the groups, each with the same objective; this one alone by default.

    Raises:
        InputError: too few groups or probes, a negative seed, ways to the trace that do not go together, a loss or
            derivative that is not finite, finite differences that are off by more than 10⁻³, or a θ that has changed.
        LostProcess: another process of the team is gone.
    """
    chosen = range(len(objective.groups)) if groups is None else _chosen(groups, len(objective.groups))
    count = len(chosen)
    check_design(count, probes, seed, objective.finite)
    check_whole(0, shares=shares)
    if sketch is not None:
        check_whole(1, sketch=sketch)
    probes, seed = int(probes), int(seed)
    method: TraceMethod = trace or ("hutchinson" if objective.loss_fn else "gauss-newton")
    check_trace(method, blocks, products)
    if deflate is not None and (method, products) != ("hutchinson", "reverse-over-reverse"):
        raise InputError(
            f"deflate goes with trace='hutchinson' and products='reverse-over-reverse', not with {method!r}"
        )
    space = objective.parameters
    buckets = sketch or buckets_for(len(objective.groups))
    gradient_sketch = GradientSketch(space, seed, buckets)
    sampler = BlockTrace(objective, blocks) if method == "taylor" else None
    if sampler is not None:
        sampler.check(next(objective.batches(chosen[0])))
    apart = sampler is None or blocks == "tensor"  # whether samples tell tensors apart

    def work(group: int) -> Rows:
        return group_row(
            group_statistics(objective, group, probes, seed, method, gradient_sketch, sampler, products, deflate)
        )

    def share(group: int) -> Rows:
        own = 2 if objective.finite else 1
        return group_row(group_statistics(objective, group, own, seed, "gauss-newton", GradientSketch(space, seed, 1)))

    units: dict[str, Callable[[], Rows]] = {f"group/{group}": partial(work, group) for group in chosen}
    if not apart:
        least = count if objective.finite else max(shares, 3)  # of the whole data set no group can be left out
        units |= {f"share/{group}": partial(share, group) for group in chosen[: least if shares else 0]}
    if objective.finite:
        units["gradient"] = partial(_whole_gradient, objective, products == "finite-differences")
    rows = dict(
        zip(units, (team or Team()).map(units, ledger, progress, partial(peak_memory, objective.device)), strict=True)
    )
    of_groups = [rows[f"group/{group}"] for group in chosen]
    of_shares = of_groups if apart else [rows[key] for key in units if key.startswith("share/")]
    sums = group_sums(objective, of_groups, sketched=gradient_sketch.lossy)
    tokens = sums.tokens
    if objective.finite:
        joint = finite_statistics(sums, float(rows["gradient"]["norm_squared"][0]))
    else:
        joint = sampled_statistics(sums)
    norms = space.norms_squared()
    gauss_newton = _samples(of_groups, "gauss_newton")[1].sum(axis=2, keepdims=True)  # (G, m or 0, 1)
    names = layers_of(space)
    by_layer = of_groups if blocks == "layer" else of_shares
    own: list[Estimate | None] = [None] * len(space.parameters)
    layers: list[Estimate | None] = [None] * len(names)
    if of_shares:
        own = [*_traces(*_samples(of_shares, "traces")[::-1], objective.finite)]
    if by_layer:
        share_tokens, samples = _samples(by_layer, "traces")
        summed = np.stack([samples[:, :, list(indices)].sum(axis=2) for indices in names.values()], axis=2)
        layers = [*_traces(summed, share_tokens, objective.finite)]
    return Measurement(
        joint=joint,
        naive_gradient_norm_squared=_naive(sums),
        gauss_newton_trace=_traces(gauss_newton, tokens, objective.finite)[0] if gauss_newton.size else None,
        decayed_norm_squared=float(norms[space.decayed].sum()),
        parameters=space.size,
        decayed_parameters=space.decayed_size,
        weight_decay=objective.weight_decay,
        tokens=int(tokens.sum()),
        tensors=tuple(
            TensorStatistics(p.name, tuple(p.tensor.shape), p.decayed, float(norm), estimate)
            for p, norm, estimate in zip(space.parameters, norms, own, strict=True)
        ),
        layers=tuple(
            LayerStatistics(name, sum(space.parameters[i].tensor.numel() for i in indices), estimate)
            for (name, indices), estimate in zip(names.items(), layers, strict=True)
        ),
        sketch=buckets if gradient_sketch.lossy else None,
    )


def group_sums(objective: Objective, rows: Sequence[Rows], *, sketched: bool) -> GroupSums:
    """What the rows of groups say for the objective's mask."""
    tokens, traces = _samples(rows, "traces")
    dots = np.stack([row["dots"] for row in rows])  # (G, P)
    return GroupSums(
        tokens=tokens,
        loss=np.concatenate([row["loss"] for row in rows]),
        gradient=np.stack([row["gradient"] for row in rows]),
        gradient_dot_parameters=dots[:, objective.parameters.decayed].sum(axis=1),
        hessian_trace=traces.sum(axis=2),
        sketched=sketched,
    )


def _samples(rows: Sequence[Rows], name: str) -> tuple[Array, Array]:
    """(G,) tokens and (G, m, P) samples."""
    return np.concatenate([row["tokens"] for row in rows]), np.stack([row[name] for row in rows])


def check_trace(method: TraceMethod, blocks: Blocks, products: ProductMethod) -> None:
    """Refuse a way to the trace that is unknown, or does not go with the others.

    Raises:
        InputError: one of them.
    """
    if method not in get_args(TraceMethod):
        raise InputError(f"trace={method!r}: expected {', '.join(get_args(TraceMethod))}")
    if blocks not in get_args(Blocks):
        raise InputError(f"blocks={blocks!r}: expected {', '.join(get_args(Blocks))}")
    if blocks != "whole" and method != "taylor":
        raise InputError(f"blocks={blocks!r} goes with trace='taylor', not with {method!r}")
    if products not in get_args(ProductMethod):
        raise InputError(f"products={products!r}: expected {', '.join(get_args(ProductMethod))}")
    if products != "reverse-over-reverse" and method != "hutchinson":
        raise InputError(f"products={products!r} goes with trace='hutchinson', not with {method!r}")


def check_temperature(temperature: float) -> None:
    """Refuse an s that is not positive and finite."""
    if not is_number(temperature) or not 0 < temperature < float("inf"):
        raise InputError(f"temperature={temperature}: expected a finite number > 0")


def check_design(groups: int, probes: int, seed: int, finite: bool) -> None:
    """Refuse a design that gives no interval."""
    if not finite and groups < 3:
        raise InputError(f"groups={groups}: expected at least 3 (12 or more for good intervals), or finite=True")
    for name, value in (("probes", probes), ("seed", seed)):
        check_whole(-math.inf, **{name: value})
    least = 2 if finite else 1
    if probes < least:
        why = " with finite=True, where only probes tell the error" if finite else ""
        raise InputError(f"probes={probes}: expected at least {least}{why}")
    if seed < 0:
        raise InputError(f"seed={seed}: expected a non-negative integer")


def _chosen(groups: Sequence[int], supply: int) -> list[int]:
    """Groups that were asked for, each once and there."""
    chosen = [*groups]
    for group in chosen:
        check_whole(0, group=group)
        if group >= supply:
            raise InputError(f"group={group}: the objective has {supply}, counted from 0")
    if len({*chosen}) < len(chosen):
        raise InputError("groups are asked for more than once: each is one draw of the data")
    return [int(group) for group in chosen]


def group_row(found: GroupStatistics) -> Rows:
    """A group's statistics as a unit of work leaves them."""
    return {
        "tokens": np.array([found.tokens]),
        "loss": np.array([found.loss]),
        "gradient": found.gradient,
        "dots": found.dots,
        "traces": found.traces,
        "gauss_newton": found.gauss_newton,
    }


def _whole_gradient(objective: Objective, fused: bool) -> Rows:
    """‖∇L‖² over all groups: an exact second pass, since a sketch would add an error where there should be none."""
    gradient = objective.gradient(fused=fused)
    return {"norm_squared": np.array([sum(float(g.square().sum()) for g in gradient)])}


def _traces(traces: Array, tokens: Array, finite: bool) -> list[Estimate]:
    """Token-weighted means of (G, m, P) trace samples, one estimate for each of P."""
    count, probes, _ = traces.shape
    if finite:
        share = traces / tokens.sum()
        values = share.mean(axis=1).sum(axis=0)
        sems = np.sqrt((share.var(axis=1, ddof=1) / probes).sum(axis=0))
        freedom = float(count * (probes - 1))
    else:
        values, sems = ratio_estimates(traces.mean(axis=1), tokens)
        freedom = float(count - 1)
    return [Estimate(float(v), float(e), count, "statistical", freedom) for v, e in zip(values, sems, strict=True)]


def _naive(sums: GroupSums) -> Estimate:
    norms = np.einsum("gk,gk->g", sums.gradient, sums.gradient) / sums.tokens**2
    count = len(norms)
    sem = float(norms.std(ddof=1) / np.sqrt(count)) if count > 1 else 0.0
    return Estimate(float(norms.mean()), sem, count, "estimated")


def peak_memory(device: torch.device) -> int:
    """Largest memory so far: resident on a CPU, allocated on a GPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage begins at what the parent process had when it started this one
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line[:6] == "VmHWM:")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
