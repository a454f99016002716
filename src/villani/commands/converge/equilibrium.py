"""Whether chains are at equilibrium, and what bounds the gap if they are: identities, mini-batch noise, ceilings."""

from collections.abc import Iterator
from typing import Literal

import numpy as np

from villani.commands.converge.chains import Ensemble
from villani.commands.converge.record import GradientNoiseRecord, IdentityRecord
from villani.dynamics.convergence import (
    Ceiling,
    Mixing,
    autocorrelation_ceiling,
    ratio_of_means,
    second_half,
    variance_ceiling,
)
from villani.statistics import Array
from villani.work.records import CONFIDENCE

_NEGLIGIBLE = 0.05  # of s: mini-batch noise in one direction that is taken for none
_BIAS = 0.05  # of an identity: what the step size may cost


def gradient_noise_of(ensemble: Ensemble, curves: dict[str, Array]) -> GradientNoiseRecord | None:
    """Upper bounds from E‖g‖² ≥ tr Σ/B of the batch's ∇L, the injected noise having variance ηs in every direction."""
    if ensemble.settings.batch is None or not ensemble.whole:
        return None
    decay = ensemble.kernel.weight_decay
    squared = curves["gradient_squared"]
    if decay and not ensemble.undecayed:  # less 2λ⟨θ, g⟩ + λ²‖θ‖²; where something does not decay, ‖∇F‖² has to do
        norm = curves["norm_squared"]
        squared = squared - 2 * decay * curves["radial_force"] + decay**2 * norm
    worst = ensemble.kernel.learning_rate * float(second_half(squared).mean()) / ensemble.kernel.temperature
    return GradientNoiseRecord(isotropic=worst / ensemble.target.dimension, worst_direction=worst)


def identities_of(
    ensemble: Ensemble, curves: dict[str, Array], noise: GradientNoiseRecord | None
) -> Iterator[IdentityRecord]:
    """The identities of THEORY.md §1 over the second half of the run."""
    beta = ensemble.kernel.beta
    force, inspected = curves["radial_force"], ensemble.inspected()
    note = "" if noise is None else "linear in the gradient, so mini-batches do not bias it"
    if ensemble.undecayed:
        note = "counts undecayed coordinates, for which it need not hold"
    yield _identity("E⟨θ, ∇F⟩ = d/β", force, np.full_like(force, ensemble.target.dimension / beta), note)
    squared, laplacian, psi = (curves.get(name) for name in ("gradient_squared", "laplacian", "psi"))
    note = "every term exact"
    if inspected:
        squared, laplacian, psi = (inspected[name] for name in ("unbiased_gradient_squared", "laplacian", "psi"))
        note = f"from independent groups at {psi.shape[1]} steps of each chain, unbiased"
    elif laplacian is None or noise is not None:
        laplacian = None
        note = "ΔF has atoms at kinks" if ensemble.settings.potential else "needs ΔF: give --psi-every"
    yield _identity("E‖∇F‖² = E ΔF/β", squared, laplacian, note, beta)
    yield _identity("E Ψ_s = −½ E ΔF", psi, laplacian, note, -2)


def _identity(name: str, left: Array | None, right: Array | None, note: str, factor: float = 1.0) -> IdentityRecord:
    ratio = None if left is None or right is None else ratio_of_means(factor * left, right)
    verdict = "not measured"
    if ratio is not None:
        low, high = ratio.interval(CONFIDENCE)
        resolved = (high - low) / 2 <= 5 * _BIAS
        verdict = "fails" if low > 1 + _BIAS or high < 1 - _BIAS else "holds" if resolved else "not resolved"
    return IdentityRecord.of(name=name, ratio=ratio, verdict=verdict, note=note)


def equilibrium_of(
    mixed: Mixing, identities: list[IdentityRecord]
) -> Literal["not contradicted", "contradicted", "unknown"]:
    """What mixing and identities say of equilibrium, which nothing can show."""
    if not any(value is not None for value in mixed.rhat.values()):
        return "unknown"
    if not mixed.settled or any(identity.verdict == "fails" for identity in identities):
        return "contradicted"
    return "not contradicted"


def obstacle_of(
    ensemble: Ensemble, noise: GradientNoiseRecord | None, state: str, mixed: Mixing, identities: list[IdentityRecord]
) -> str:
    """Why what was found at equilibrium bounds no gap of the Gibbs law, or ""."""
    kernel = ensemble.kernel
    if not ensemble.whole:
        return "every chain diverged"
    if ensemble.undecayed:
        return f"{ensemble.undecayed:,} coordinates do not decay, so there need be no Gibbs law"
    if kernel.momentum:
        return "with momentum a chain is not the reversible diffusion that the promise is about"
    if kernel.schedule != "constant":
        return "a chain with varying steps has no autocorrelation function"
    if noise is not None and noise.worst_direction > _NEGLIGIBLE:
        return (
            f"mini-batch noise may reach {noise.worst_direction:.3g} of s in one direction, so that the chain's law "
            "need not be the Gibbs law"
        )
    if state != "not contradicted":
        failed = [identity.name for identity in identities if identity.verdict == "fails"]
        if failed:
            return f"the chains are not at equilibrium ({failed[0]} fails)"
        known = {name: value for name, value in mixed.rhat.items() if value is not None}
        if not known:
            return "there are too few chains to tell whether they are at equilibrium"
        worst = max(known, key=lambda name: known[name])
        least = min(value for value in mixed.ess.values() if value is not None)
        return f"the chains are not shown to have mixed (R̂ = {known[worst]:.2f} of {worst}, least ESS {least:.0f})"
    return ""


def ceilings_of(ensemble: Ensemble, curves: dict[str, Array], times: Array) -> list[Ceiling]:
    """Bounds on the gap, whose limits hold all at once: the least of them is the one that gets quoted.

    The level of each allows for all that are looked for, found or not (Bonferroni).
    """
    if len(times) < 2:
        return []
    spacing, walkers = float(times[1] - times[0]), ensemble.settings.walkers or 1
    linear = [name for name in ensemble.names if name.startswith("linear")]
    names = ["norm_squared", *linear]
    if ensemble.settings.potential is not None or ensemble.settings.full:  # else the noise of batches, no function of θ
        names = ["loss", "objective", *names]
    level = 1 - (1 - CONFIDENCE) / (len(names) + len(linear))
    halves = {name: second_half(curves[name]) for name in names}
    ceilings = [autocorrelation_ceiling(name, spacing, halves[name], level) for name in names]
    ceilings += [variance_ceiling(name, ensemble.kernel.beta, halves[name], walkers, level) for name in linear]
    return [ceiling for ceiling in ceilings if ceiling is not None]
