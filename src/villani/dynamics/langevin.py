"""Noisy SGD, its variant with matched noise, and MALA: one kernel for Transformers and for potentials in closed form.

dθ = −∇F dt + √s dW with F = L + (λ/2)‖mθ‖² and Gibbs law exp(−2F/s) (THEORY.md §1). One step of size η:

    noisy-sgd   θ⁺ = θ − η∇F + √(ηs) ξ               biased by O(η): variance (s/2λ)/(1 − ηλ/2) if L = 0
    matched     θ⁺ = θ − η∇F + √(ηs(1 − ηλ/2)) ξ     on decayed coordinates: exact if L = 0, whatever the schedule
    mala        noisy-sgd accepted by Metropolis     exact, whatever the schedule; needs full gradients

and, with momentum μ, v⁺ = μv − η∇F + √((1 − μ)ηs) ξ, θ⁺ = θ + v⁺ (Chen, Fox & Guestrin 2014, in our units). A step
covers a time η/(1 − μ) of the diffusion. Undecayed coordinates are moved and shaken like all others, but have no Gibbs
law (§2.1). Everything random is of (seed, chain, step), so that a chain may be cut anywhere and taken up again.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

import numpy as np
import torch

from villani.dynamics.kernel import Kernel
from villani.dynamics.noise import add_gaussian, gaussian
from villani.statistics import Array
from villani.streams import Purpose, stream

STANDARD = ("loss", "objective", "norm_squared", "radial_force", "gradient_squared")


@dataclass(frozen=True)
class Sums:
    """Sums over coordinates that all observables follow from; each (W,), over all (θ) and over decayed (m) ones."""

    theta: Array  # ‖θ‖²
    decayed: Array  # ‖mθ‖²
    force: Array  # ⟨θ, ∇L⟩
    decayed_force: Array  # ⟨mθ, ∇L⟩
    gradient: Array  # ‖∇L‖²


@dataclass(frozen=True)
class Evaluation:
    """L of each walker (W,) and ∇L, tensor by tensor, at the present θ; on mini-batches unbiased for both."""

    loss: Array
    gradient: list[torch.Tensor]


class LangevinTarget(Protocol):
    """What a chain moves in: W walkers at once, θ in place.

    Attributes:
        tensors: θ; contiguous; of W > 1 walkers the first axis counts them.
        decayed: whether each tensor decays.
        walkers: W.
        replicates: R, equal shares of the walkers that observables are averaged over: R chains in one.
        dimension: d of one walker.
        extras: names of what `extra` gives.
    """

    tensors: list[torch.Tensor]
    decayed: list[bool]
    walkers: int
    replicates: int
    dimension: int
    extras: tuple[str, ...]

    def reset(self, chain: int) -> None:
        """Put θ where this chain begins."""

    def evaluate(self, chain: int, step: int) -> Evaluation:
        """L and ∇L, on the data of (chain, step)."""

    def sums(self, gradient: list[torch.Tensor]) -> Sums:
        """See `Sums`."""

    def extra(self, weight_decay: float) -> Array:
        """Further observables (len(extras), W) at the present θ."""


@dataclass
class Piece:
    """A stretch of a chain.

    Attributes:
        start: first step.
        stop: one past the last step.
        steps: (n,) logged steps; what is logged is θ before the step.
        rows: (n, k, R) means over each replicate's walkers of the standard observables and of the target's own.
        inspected: (i,) steps that were inspected.
        findings: (i, j) what came of it.
        accepted: walkers' steps that were accepted; all of them without MALA.
        diverged: the step at which a walker left, or None.
        ceiling: F above which a walker counts as gone.
        observing: seconds that observables took.
    """

    start: int
    stop: int
    ceiling: float
    observing: float = 0.0
    steps: list[int] = field(default_factory=list)
    rows: list[Array] = field(default_factory=list)
    inspected: list[int] = field(default_factory=list)
    findings: list[Array] = field(default_factory=list)
    accepted: int = 0
    diverged: int | None = None


def advance(
    target: LangevinTarget, kernel: Kernel, *, seed: int, chain: int, start: int = 0,
    velocity: list[torch.Tensor] | None = None, log_every: int = 1, ceiling: float | None = None,
    enough: Callable[[int], bool] = lambda _: False, inspect: Callable[[int], Array] | None = None,
    inspect_every: int = 0, noise_chain: int | None = None,
) -> Piece:  # fmt: skip
    """Move θ from a step on until the kernel's last, or until it is `enough`.

    Args:
        target: at the θ of step `start`.
        kernel: how to move.
        seed: of noise, batches and acceptance.
        chain: which chain this is.
        start: the step to begin with.
        velocity: with momentum, v, changed in place.
        log_every: steps between rows.
        ceiling: that of the chain's first piece; None for the first.
        enough: asked with the number of the next step, after each.
        inspect: what to do at every `inspect_every`-th step, before it.
        inspect_every: 0 for never.
        noise_chain: whose noise and batches to use, if not its own: chains that share them are coupled.

    Returns:
        what was observed. A walker whose loss is not finite, or whose F is above the ceiling, ends the chain; rows
        before that stay.
    """
    source = chain if noise_chain is None else noise_chain
    piece = Piece(start, start, ceiling if ceiling is not None else math.inf)
    known: Evaluation | None = None
    for step in range(start, kernel.steps):
        now = known or target.evaluate(source, step)
        logged = step % log_every == 0 or step == 0
        if logged or not np.isfinite(now.loss).all() or float(now.loss.max()) > piece.ceiling:
            began = perf_counter()
            row, energy = _observe(target, kernel, now)
            piece.observing += perf_counter() - began
            if step == 0:
                piece.ceiling = _ceiling(energy, target, kernel)
            if not (np.isfinite(energy).all() and float(energy.max()) <= piece.ceiling):
                piece.diverged = step
                break
            if logged:
                piece.steps.append(step)
                piece.rows.append(row)
        if inspect and inspect_every and step % inspect_every == 0:
            piece.inspected.append(step)
            piece.findings.append(inspect(step))
        if kernel.method == "mala":
            known, accepted = _metropolis(target, kernel, seed, source, step, now)
            piece.accepted += accepted
        else:
            _move(target, kernel, seed, source, step, now, velocity)
            piece.accepted += target.walkers
        piece.stop = step + 1
        if enough(step + 1):
            break
    return piece


def _observe(target: LangevinTarget, kernel: Kernel, now: Evaluation) -> tuple[Array, Array]:
    """A row of observables, and F of each walker (W,)."""
    decay, sums = kernel.weight_decay, target.sums(now.gradient)
    with np.errstate(all="ignore"):
        energy = now.loss + decay / 2 * sums.decayed
        force = sums.force + decay * sums.decayed
        squared = sums.gradient + 2 * decay * sums.decayed_force + decay**2 * sums.decayed
        standard = np.stack([now.loss, energy, sums.theta, force, squared])  # (5, W)
        every = np.concatenate([standard, target.extra(decay)])  # (k, W)
        row = every.reshape(len(every), target.replicates, -1).mean(axis=2)
    return row, energy


def _ceiling(energy: Array, target: LangevinTarget, kernel: Kernel) -> float:
    """Ten times what the start has plus d + 100 quanta of s/2.

    With L = 0 the law's F is Gamma(d/2)·s/2, of which ten times d + 100 quanta has probability below e⁻⁹⁰⁰; a loss
    that is bounded by its start's adds no more than that. A chain that stays at that level does not exist.
    """
    return 10 * (float(np.abs(energy).max()) + (target.dimension + 100) * kernel.temperature / 2)


def _move(
    target: LangevinTarget, kernel: Kernel, seed: int, chain: int, step: int, now: Evaluation,
    velocity: list[torch.Tensor] | None,
) -> None:  # fmt: skip
    size = kernel.step_size(step)
    thetas = [t.detach().view(-1) for t in target.tensors]
    gradients = [g.detach().view(-1) for g in now.gradient]
    decays = [kernel.weight_decay if decayed else 0.0 for decayed in target.decayed]
    scales = [kernel.noise(step, decayed) for decayed in target.decayed]
    with torch.no_grad():
        if velocity is None:

            def drift(i: int, part: slice) -> None:
                thetas[i][part].mul_(1 - size * decays[i]).add_(gradients[i][part], alpha=-size)

            add_gaussian(thetas, scales, seed, chain, step, drift)
            return
        speeds = [v.view(-1) for v in velocity]

        def pull(i: int, part: slice) -> None:
            v = speeds[i][part].mul_(kernel.momentum).add_(gradients[i][part], alpha=-size)
            v.add_(thetas[i][part], alpha=-size * decays[i])

        add_gaussian(speeds, scales, seed, chain, step, pull)
        for theta, speed in zip(thetas, speeds, strict=True):
            theta.add_(speed)


def _metropolis(
    target: LangevinTarget, kernel: Kernel, seed: int, chain: int, step: int, now: Evaluation
) -> tuple[Evaluation, int]:
    """One MALA step of every walker; gives L and ∇L where they are now, and how many moved."""
    size, beta, scale = kernel.step_size(step), kernel.beta, kernel.noise(step, False)
    decays = [kernel.weight_decay if decayed else 0.0 for decayed in target.decayed]
    with torch.no_grad():
        before = [t.detach().clone() for t in target.tensors]
        gradient = [g.detach().clone() for g in now.gradient]  # the target may reuse its own
        energy = now.loss + kernel.weight_decay / 2 * target.sums(gradient).decayed
        forward = np.zeros(target.walkers)
        for i, t in enumerate(target.tensors):
            noise = gaussian(t, seed, Purpose.NOISE, chain, step, i)
            forward += _squares(noise, target.walkers)
            t.mul_(1 - size * decays[i]).sub_(size * gradient[i]).add_(noise, alpha=scale)
    then = target.evaluate(chain, step + 1)
    with torch.no_grad(), np.errstate(all="ignore"):
        new_energy = then.loss + kernel.weight_decay / 2 * target.sums(then.gradient).decayed
        backward = np.zeros(target.walkers)
        for i, t in enumerate(target.tensors):
            back = before[i] - (1 - size * decays[i]) * t + size * then.gradient[i]
            backward += _squares(back, target.walkers) / scale**2
        log_ratio = -beta * (new_energy - energy) - (backward - forward) / 2
        uniform = stream(seed, Purpose.ACCEPT, chain, step).random(target.walkers)
        moved = np.log(uniform) < log_ratio  # a proposal that is not finite is refused
        if moved.all():
            return then, target.walkers
        stays = torch.from_numpy(~moved)
        for now_, then_ in ((before, target.tensors), (gradient, then.gradient)):
            for old, new in zip(now_, then_, strict=True):
                if target.walkers == 1:
                    new.copy_(old)
                else:
                    new[stays] = old[stays]
    return Evaluation(np.where(moved, then.loss, now.loss), then.gradient), int(moved.sum())


def _squares(x: torch.Tensor, walkers: int) -> Array:
    """Sums of squares over all but walkers, in float64."""
    total: Array = x.double().square().reshape(walkers, -1).sum(dim=1).cpu().numpy()
    return total
