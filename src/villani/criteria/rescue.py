"""What would rescue criterion (iv) where orbits refute it; THEORY.md §2.2, R1, R2 and the guard on λ of §8."""

import math

from villani.criteria.differential import Differential
from villani.outwards import lower

RESCUES = {
    "a bounded logit Jacobian (R1)": "(iv) holds for every s where ‖∇L‖ = o(‖θ‖) and (ΔL)⁺ = o(‖θ‖²): softmax "
    "regression on frozen features, a network linearised at its start, or bounded smooth activations under a frozen "
    "outer layer. Frozen gains, gain-free norms, or merged query–key and value–output products are not enough.",
    "a penalty of higher degree (R2)": "(μ/2m)‖θ‖^{2m} in place of (λ/2)‖θ‖², with 2m > K, if ‖∇L‖ = O(‖θ‖^{K−1}) and "
    "ΔL = O(‖θ‖^{2K−2}); in a deep network K grows with depth.",
    "no need of (iv)": "(iv) is sufficient for a spectral gap, not necessary. With predictions smoothed, "
    "p̃ = (1−α)p + α/V, a log-Sobolev constant is certified without it (THEORY.md §3, C3), at the size that is shown.",
}


def rescues(found: Differential) -> dict[str, str]:
    """Name → what it asks and what it gives; empty where nothing is refuted."""
    if found.outcome.verdict != "refuted":
        return {}
    return {"more weight decay (guard)": _guard(found), **RESCUES}


def _guard(found: Differential) -> str:
    confirmed = [f for f in found.findings if f.confirmed]
    finite = [f.guard for f in confirmed if 0 < f.guard < math.inf]
    text = f"At s = {found.temperature:.3g}: "
    if any(f.guard == math.inf for f in confirmed):
        text += (
            "no λ helps, since on an orbit of Theorem D the part that decay adds grows more slowly than the part that "
            "makes Ψ fall"
        )
        if finite:
            text += f"; against the orbits of Theorem C alone, λ ≥ {lower(max(finite), 3)} would be needed"
    elif finite:
        text += f"λ ≥ {lower(max(finite), 3)} is needed against the orbits that were confirmed, and may not be enough"
    else:
        text += "no orbit that was confirmed lets Ψ fall at this s; above the s* that was found, one does"
    return f"{text}."
