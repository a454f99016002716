"""Rules that name a weight decay without a grid search: of thumb, and from theory. Each knows where it does not apply.

A λ is given in the convention of torch's optimiser (`weight_decay=`) unless it says otherwise: for SGD that is the λ of
F = L + (λ/2)‖θ‖², for AdamW it is not (THEORY.md §8; `convert`). A rule that is used outside its domain refuses, and
says what its formula would have given. No rule is proved to give a good loss. No torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from villani.errors import InputError, check_nonnegative, check_positive
from villani.statistics import Status
from villani.theory.constants import Smoothing
from villani.theory.conventions import Optimizer, convert

RULES = {
    "constants": "0, 0.01 and 0.1",
    "ema": "EMA timescale (Wang & Aitchison)",
    "power-lines": "Power Lines (Bergsma et al.)",
    "loshchilov-hutter": "normalised decay (Loshchilov & Hutter)",
    "claimed": "claimed constant 1/λ + d/λ²",
    "certified": "certified constant of the smoothed loss",
    "guard": "guard of criterion (iv)",
    "certificate": "least certified risk",
    "held-out": "least held-out loss of the grid",
}  # what --rules may name
NORMALISED = 0.025  # λ_norm, the default of public implementations of Loshchilov & Hutter; from image classification
_FITTED = (1.11e8, 3.3e9)  # parameters that the power law of Bergsma et al. was fitted on


@dataclass(frozen=True)
class Training:
    """What rules are told of a training run.

    Attributes:
        optimizer: adamw (decoupled), sgd (L2, momentum), or noisy-sgd (L2, noise √(ηs) ξ).
        learning_rate: η, at its peak.
        time: Σ η_k over the schedule.
        steps: K.
        batch: B, blocks in a step.
        block: tokens in a block.
        blocks: N, of the training text.
        parameters: d.
        from_scratch: whether the weights are random at the start.
        covered: whether every parameter decays.
        momentum: of sgd.
        temperature: s of noisy-sgd, else None.
        clipped: whether gradients are clipped.
    """

    optimizer: Optimizer
    learning_rate: float
    time: float
    steps: int
    batch: int
    block: int
    blocks: int
    parameters: int
    from_scratch: bool
    covered: bool
    momentum: float = 0.0
    temperature: float | None = None
    clipped: bool = False

    def __post_init__(self) -> None:
        check_positive(learning_rate=self.learning_rate, time=self.time, steps=self.steps, batch=self.batch)
        check_positive(block=self.block, blocks=self.blocks, parameters=self.parameters)
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum={self.momentum:g}: expected a number in [0, 1)")
        if self.temperature is not None:
            check_positive(temperature=self.temperature)

    @property
    def epochs(self) -> float:
        """Passes over the text."""
        return self.steps * self.batch / self.blocks

    @property
    def stable_below(self) -> float:
        """λ from which on decay alone, at the peak rate, makes a step grow: ηλ = 2(1 + μ), of heavy balls."""
        return 2 * (1 + self.momentum) / self.learning_rate


@dataclass(frozen=True)
class Rule:
    """What one rule says.

    Attributes:
        id: of `RULES`.
        name: in words.
        weight_decay: λ to use; None where the rule refuses.
        interval: λ between which the rule does not choose, where it has one.
        would_be: what its formula gives, where it refuses; None if nothing, or no float.
        domain: where it is valid.
        refused: why it refuses; None where it does not.
        flags: what to know when using it.
        status: of the claim behind it. Rules of thumb are as-claimed.
        source: where it comes from.
    """

    id: str
    name: str
    weight_decay: float | None
    domain: str
    status: Status
    source: str
    interval: tuple[float, float] | None = None
    would_be: float | None = None
    refused: str | None = None
    flags: tuple[str, ...] = ()


# Rules of thumb


def constants() -> list[Rule]:
    """0, 0.01 and 0.1, whatever is trained."""
    return [
        Rule(
            "constants", f"constant {value:g}", value, "everywhere, since it looks at nothing", "as-claimed",
            "common defaults: HF Trainer 0, torch's AdamW 0.01, nanoGPT and OLMo 0.1",
        )
        for value in (0.0, 0.01, 0.1)
    ]  # fmt: skip


def ema_timescale(run: Training) -> Rule:
    """λ = B/(η τ N) with 1 ≤ τ ≤ epochs; names the geometric mean. With less than an epoch τ is the whole run."""
    ends = [run.batch / (run.learning_rate * tau * run.blocks) for tau in (run.epochs, 1.0)]
    flags = ["the rule gives a range; its geometric mean is taken"]
    if run.epochs < 1:
        ends = [ends[0]] * 2
        flags = [f"{run.epochs:.2g} epochs leave no τ between 1 and the number of epochs: τ is the whole run"]
    rule = Rule(
        "ema", RULES["ema"], math.sqrt(ends[0] * ends[1]), "AdamW, from scratch", "as-claimed",
        "Wang & Aitchison 2024, arXiv 2405.13698", interval=(ends[0], ends[1]), flags=tuple(flags),
    )  # fmt: skip
    return _of_adamw(rule, run)


def power_lines(run: Training) -> Rule:
    """λ = B/(η τ D), τ = 1.084 (D/d)^−0.527, with B and D in tokens."""
    tokens = run.steps * run.batch * run.block
    timescale = 1.084 * (tokens / run.parameters) ** -0.527
    flags = []
    if not _FITTED[0] <= run.parameters <= _FITTED[1]:
        flags.append(f"fitted on 111M to 3.3B parameters, used at {run.parameters:,}")
    if run.epochs > 1:
        flags.append(f"fitted within one epoch, used for {run.epochs:.3g}")
    rule = Rule(
        "power-lines", RULES["power-lines"], run.batch * run.block / (run.learning_rate * timescale * tokens),
        "AdamW, from scratch, language models under µP, one epoch", "as-claimed",
        "Bergsma et al. 2025, arXiv 2505.13738", flags=tuple(flags),
    )  # fmt: skip
    return _of_adamw(rule, run)


def loshchilov_hutter(run: Training, normalised: float = NORMALISED) -> Rule:
    """λ_norm √(b/(BT)) = λ_norm/√K a step, whatever the learning rate: torch's decay is that over η."""
    check_positive(normalised=normalised)
    each = normalised / math.sqrt(run.steps)
    rule = Rule(
        "loshchilov-hutter", RULES["loshchilov-hutter"], convert(
            each, "unscaled-adamw", "adamw", learning_rate=run.learning_rate
        ), "AdamW, from scratch", "as-claimed", "Loshchilov & Hutter 2019, arXiv 1711.05101, appendix",
        flags=(
            f"λ_norm = {normalised:g} is a default from image classification, not fitted to language models",
            f"their decay is not multiplied by η: {each:.3g} a step is weight_decay = {each:.3g}/η in torch",
        ),
    )  # fmt: skip
    return _of_adamw(rule, run)


# From theory


def claimed_constant(run: Training) -> Rule:
    """λ at which the claimed C_LS ≤ 1/λ + d/λ² lets KL to equilibrium fall by e within the run.

    KL falls at least at the rate 2/(βC) (THEORY.md §1), so that this needs C ≤ 2T/β, T = Σ η_k. At any β the claim
    reads 1/x + d/x² with x = βλ. It is false in general (§2.3).
    """
    rule = Rule(
        "claimed", RULES["claimed"], None, "noisy SGD, decay on every parameter", "as-claimed", "arXiv 2605.06599",
        flags=(
            "chosen so that the claimed rate makes KL to equilibrium fall by e within Σ η of this run",
            "the constant is refuted in general (THEORY.md §2.3)", *_clipping(run),
        ),
    )  # fmt: skip
    if run.temperature is None:
        return _without_gibbs(rule, run)
    beta = 2 / run.temperature
    target = 2 * run.time / beta
    x = (1 + math.sqrt(1 + 4 * target * run.parameters)) / (2 * target)
    return _bounded(replace(rule, weight_decay=x / beta), run)


def certified_constant(run: Training, smoothing: Smoothing) -> Rule:
    """The same from C3 of the smoothed loss, C_LS ≤ e^{βω}/(βλ): λ ≥ e^{βω}/(2T). No sane temperature affords it."""
    rule = Rule(
        "certified", RULES["certified"], None, "noisy SGD on the smoothed loss, decay on every parameter", "certified",
        "THEORY.md §3, C3",
        flags=(
            "chosen so that the certified rate makes KL to equilibrium fall by e within Σ η of this run",
            f"about the loss smoothed with α = {smoothing.alpha:g}", *_clipping(run),
        ),
    )  # fmt: skip
    if run.temperature is None:
        return _without_gibbs(rule, run)
    exponent = 2 / run.temperature * smoothing.oscillation - math.log(2 * run.time)
    if exponent > 300:
        orders = f"it would take λ = 10^{exponent / math.log(10):,.0f}: the certified constant grows as e^(βω)"
        return replace(rule, refused=orders)
    return _bounded(replace(rule, weight_decay=math.exp(exponent)), run)


@dataclass(frozen=True)
class Pair:
    """What was measured of one rescaling pair (A grows, B shrinks) at one θ.

    Attributes:
        name: of the orbit.
        laplacian: Δ_B L.
        gradient_squared: ‖∇_B L‖².
        norm_squared: ‖mA‖²; 0 for an orbit of Theorem D, where no λ helps.
    """

    name: str
    laplacian: float
    gradient_squared: float
    norm_squared: float


def guard(run: Training, pairs: Sequence[Pair], source: str) -> Rule:
    """The largest of λ² = (sΔ_B L − ‖∇_B L‖²)/‖A‖² over pairs: with less decay Ψ_s falls to −∞ on one of them.

    A lower guard: more decay does not make (iv) hold, and (iv) does not make a loss low.
    """
    rule = Rule(
        "guard", RULES["guard"], None, "noisy SGD; a lower limit, necessary for (iv) on the orbits looked at",
        "estimated", "THEORY.md §8 (4)", flags=(source, *_clipping(run)),
    )  # fmt: skip
    if run.temperature is None:
        return _without_gibbs(rule, run)
    if not pairs:
        return replace(rule, refused="no rescaling pair was measured")
    found, hopeless = 0.0, []
    for pair in pairs:
        check_nonnegative(norm_squared=pair.norm_squared)
        excess = run.temperature * pair.laplacian - pair.gradient_squared
        if excess > 0 and pair.norm_squared == 0:
            hopeless.append(pair.name)
        elif excess > 0:
            found = max(found, math.sqrt(excess / pair.norm_squared))
    if hopeless:
        rule = replace(rule, flags=(*rule.flags, f"no λ at all saves (iv) along {hopeless[0]} (Theorem D)"))
    if found == 0:
        return replace(rule, refused="at this temperature no pair asks for any decay")
    return _bounded(replace(rule, weight_decay=found), run)


def least_certified(run: Training, bounds: Sequence[tuple[float, float]], highest: float) -> Rule:
    """The λ of the least certified risk; all bounds hold at once, so that choosing among them is paid for.

    Args:
        bounds: (λ, bound) for every λ that has a certificate.
        highest: guessing, ln V: bounds that are no better say nothing.
    """
    rule = Rule(
        "certificate", RULES["certificate"], None, "noisy SGD from random weights, at the temperature of its noise",
        "certified", "THEORY.md §5, §8",
    )  # fmt: skip
    if not bounds:
        return replace(rule, refused="no certificate was made")
    decay, least = min(bounds, key=lambda pair: pair[1])
    if least >= highest:
        words = f"vacuous at every λ: the least certified risk, {least:.3f} nats, is no better than guessing"
        return replace(rule, refused=words, would_be=decay)
    rule = replace(rule, weight_decay=decay)
    if run.temperature is None:
        return _refuse(rule, "certificates are about noisy SGD, and this run has no noise")
    return rule


# Domains


def _of_adamw(rule: Rule, run: Training) -> Rule:
    """Refuse what was made for AdamW from scratch wherever it is used for something else."""
    if run.optimizer != "adamw":
        words = f"made for AdamW's decoupled decay, not for the L2 of {run.optimizer}"
        if not run.from_scratch:
            words += ", and for training from scratch, not for fine-tuning"
        # the same memory in steps
        scale = 1 - run.momentum
        interval = rule.interval and (rule.interval[0] * scale, rule.interval[1] * scale)
        return _refuse(replace(rule, weight_decay=(rule.weight_decay or 0.0) * scale, interval=interval), words)
    if not run.from_scratch:
        return _refuse(rule, "made for training from scratch, not for fine-tuning")
    return _bounded(rule, run)


def _without_gibbs(rule: Rule, run: Training) -> Rule:
    if run.optimizer == "adamw":
        return _refuse(rule, "AdamW is no gradient descent on F: its weight_decay is not the λ of this theory")
    return _refuse(rule, "without injected noise there is no temperature and no Gibbs law")


def _bounded(rule: Rule, run: Training) -> Rule:
    """Refuse a λ that no step of this size survives, or a law that does not exist."""
    theory = rule.id in ("claimed", "certified")
    if theory and not run.covered:
        return _refuse(rule, "some parameters do not decay, so that there need be no Gibbs law (THEORY.md §2.1)")
    if rule.weight_decay is not None and rule.weight_decay >= run.stable_below:
        return _refuse(rule, f"at this learning rate decay alone diverges from λ = {run.stable_below:.3g} on")
    return rule


def _refuse(rule: Rule, why: str) -> Rule:
    return replace(rule, weight_decay=None, would_be=rule.weight_decay, refused=why)


def _clipping(run: Training) -> tuple[str, ...]:
    return ("gradients are clipped: where they are, the drift is not ∇F",) if run.clipped else ()
