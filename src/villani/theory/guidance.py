"""What a weight decay can do in a run, and which temperature a run resembles: arithmetic to choose λ by. No torch.

Temperatures of runs without injected noise are heuristic throughout: an isotropic surrogate, about which no theorem of
this project speaks (THEORY.md §1).
"""

import math
from dataclasses import dataclass
from typing import Literal

from villani.errors import InputError, check_nonnegative, check_positive
from villani.outwards import lower
from villani.theory.conventions import memory

Stepper = Literal["sgd", "adamw"]
ACTS = 0.01  # least share of the weights that decay takes away in a run for it to be said to act


def forgotten(weight_decay: float, time: float, momentum: float = 0.0) -> float:
    """Share of the weights that decay alone takes away in a run: 1 − exp(−λ Σ η_k/(1 − μ)), between 0 and 1.

    The continuous limit of 1 − Π(1 − η_k λ), at small ηλ: of AdamW's decoupled decay, and of SGD with L2, where a heavy
    ball takes each step 1/(1 − μ) times. Clipping does not enter: torch adds L2 after it.

    Args:
        weight_decay: λ ≥ 0, as torch's optimiser takes it.
        time: Σ η_k over the run's schedule.
        momentum: μ of SGD; 0 of AdamW.
    """
    check_nonnegative(weight_decay=weight_decay)
    check_positive(time=time)
    return -math.expm1(-weight_decay * time / _resting(momentum))


def acting_from(time: float, momentum: float = 0.0) -> float:
    """Least λ that takes away the share `ACTS` of the weights in a run of length Σ η_k."""
    check_positive(time=time)
    return -math.log1p(-ACTS) * _resting(momentum) / time


def gradient_noise(naive: float, unbiased: float, tokens: float) -> float:
    """Tr Σ of one token's gradient, nats², from the naive and the unbiased ‖∇L‖² of groups of so many tokens.

    E‖∇L_g‖² = ‖∇L‖² + tr Σ/T for a group of T tokens, as if these were independent; 0 where sampling makes it negative.
    """
    check_nonnegative(naive=naive)
    check_positive(tokens=tokens)
    return max(naive - unbiased, 0.0) * tokens


def sgd_temperature(learning_rate: float, noise: float, batch: float, dimension: int, momentum: float = 0.0) -> float:
    """s that plain SGD resembles, s = η tr Σ/((1 − μ) B d): heuristic (THEORY.md §1).

    A step moves θ by −η(∇F + ε), whose noise has covariance η²Σ/B; noisy SGD's has ηs·I. Their traces agree at
    s = η tr Σ/(B d). A heavy ball moves 1/(1 − μ) times as far for each ε, and makes 1/(1 − μ) times the way η down F:
    η²/(1 − μ)² Σ/B = s η/(1 − μ). Hypotheses, none of which holds exactly: η times the curvature is small, gradients of
    steps are independent, Σ does not depend on θ, and is a multiple of I, which it never is: where gradients vary much
    it is hotter than this, elsewhere colder.

    Args:
        learning_rate: η.
        noise: tr Σ of one token's gradient, nats².
        batch: B, predicted tokens in a step.
        dimension: d.
        momentum: μ.
    """
    check_positive(learning_rate=learning_rate, batch=batch, dimension=dimension)
    check_nonnegative(noise=noise)
    return learning_rate * noise / (_resting(momentum) * batch * dimension)


def adamw_temperature(learning_rate: float) -> float:
    """s at which decay alone holds weights as wide as in AdamW that is nothing but noise: s = η, heuristic.

    Where gradients are noise, g/√v̂ has mean square 1 in every coordinate, a step ends up displacing it by η g/√v̂, and
    the decay 1 − ηλ holds that at the variance η²/(2ηλ) = η/(2λ), as √(s/2λ)² at s = η. A signal in the gradients makes
    the noise less: an upper end. AdamW is no gradient descent on F, and has no Gibbs law of F (THEORY.md §8).
    """
    check_positive(learning_rate=learning_rate)
    return learning_rate


def decay_width(weight_decay: float, temperature: float) -> float:
    """√(s/2λ): standard deviation of a weight under exp(−λ‖θ‖²/s), the law of decay alone (THEORY.md §1)."""
    check_positive(weight_decay=weight_decay, temperature=temperature)
    return math.sqrt(temperature / (2 * weight_decay))


def _resting(momentum: float) -> float:
    """1 − μ."""
    if not 0 <= momentum < 1:
        raise InputError(f"momentum={momentum:g}: expected a number in [0, 1)")
    return 1 - momentum


@dataclass(frozen=True)
class Run:
    """A user's own training, as far as it is known.

    Attributes:
        optimizer: sgd with L2, or adamw.
        learning_rate: η, at its peak.
        momentum: of sgd.
        batch: predicted tokens in a step; None where that is not known.
        noise: tr Σ of one token's gradient; None where it was not measured.
        steps: of the run; None where they are not known.
    """

    optimizer: Stepper
    learning_rate: float
    momentum: float = 0.0
    batch: float | None = None
    noise: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        check_positive(learning_rate=self.learning_rate)
        _resting(self.momentum)
        if self.momentum and self.optimizer != "sgd":
            raise InputError(f"momentum={self.momentum:g}: goes with sgd")
        if self.noise is not None:
            check_nonnegative(gradient_noise=self.noise)
        for name in ("batch", "steps"):
            if getattr(self, name) is not None:
                check_positive(**{name: getattr(self, name)})

    def temperature(self, dimension: int) -> float | None:
        """s that it resembles, heuristic; None where that would take the noise of its gradients."""
        if self.optimizer == "adamw":
            return adamw_temperature(self.learning_rate)
        if self.noise is None or self.batch is None:
            return None
        return sgd_temperature(self.learning_rate, self.noise, self.batch, dimension, self.momentum)


def next_step(
    weight_decay: float, temperature: float, *, dimension: int, norm_squared: float, run: Run | None = None
) -> str:
    """What to do next about λ, in plain words: what a Gibbs law would do to the weights, and what a run's decay does.

    Args:
        weight_decay: λ that was asked about.
        temperature: s that was asked about.
        dimension: d_m, the coordinates that decay.
        norm_squared: ‖mθ‖² of the weights as they are.
        run: the user's own training; None where nothing is known of it.

    Raises:
        InputError: a number out of range.
    """
    check_nonnegative(weight_decay=weight_decay, norm_squared=norm_squared)
    check_positive(temperature=temperature)
    if weight_decay == 0 or dimension == 0:
        return "At λ = 0 nothing decays and no Gibbs law exists: to choose a λ, train over a grid (villani recommend)."
    rms = math.sqrt(norm_squared / dimension)
    law = _law(weight_decay, temperature, rms)
    if run is None:
        return (
            f"{law} No figure here sets λ: train over a grid (villani recommend), in which decay acts only on runs of "
            "about 1/(ηλ) steps and more."
        )
    return f"{law} {_run(run, weight_decay, dimension, rms)}"


def _law(weight_decay: float, temperature: float, rms: float) -> str:
    """What the law of decay alone does to the weights."""
    width = decay_width(weight_decay, temperature)
    words = f"Decay alone at λ = {weight_decay:g}, s = {temperature:g} holds weights at √(s/2λ) = {width:.2g}"
    if rms == 0:
        return f"{words}; those of this model that decay are all 0."
    words += f", {width / rms:.2g} times their rms of {rms:.2g}"
    if width > 2 * rms:
        least = lower(2 * weight_decay * rms**2, 2)
        return f"{words}: where the loss does not hold them this law is about noise; s ≤ 2λ·rms² = {least} is not."
    if width < rms / 2:
        return f"{words}: where the loss does not hold them it shrinks them to that."
    return f"{words}: about what they are."


def _run(run: Run, weight_decay: float, dimension: int, rms: float) -> str:
    """What the user's own run resembles, and whether its decay acts."""
    name = "AdamW" if run.optimizer == "adamw" else "SGD"
    own = run.temperature(dimension)
    if own is None:
        words = f"Which s your {name} resembles takes the noise of its gradients and its batch."
    else:
        words = f"Your {name} resembles {'at most ' if run.optimizer == 'adamw' else ''}s = {own:.2g} (heuristic)"
        if own > 0 and rms > 0:
            words += f", at which decay alone holds them at {decay_width(weight_decay, own) / rms:.2g} times the rms"
        words += "."
    lasts = memory(weight_decay, run.learning_rate, run.momentum)
    formula = "(1 − μ)/(ηλ)" if run.momentum else "1/(ηλ)"
    words += f" Its decay forgets over {formula} = {lasts:,.3g} steps"
    if run.steps is None:
        return f"{words}: in a run much shorter than that leave λ as it is; for a longer one, villani recommend."
    time = run.steps * run.learning_rate
    if forgotten(weight_decay, time, run.momentum) < ACTS:
        least = acting_from(time, run.momentum)
        return f"{words}: it cannot act in {run.steps:,}. Leave λ as it is, or look from λ = {least:.2g} on."
    share, whole = forgotten(weight_decay, time, run.momentum), (1 - run.momentum) / time
    return (
        f"{words}, and takes away up to {share:.0%} of the weights in {run.steps:,}: try a grid about λ = {whole:.2g}, "
        "whose memory is the run (villani recommend)."
    )
