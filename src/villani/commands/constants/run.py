"""What `villani constants` does: the constants of a real model, as claimed and as certified, and how far apart."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from villani.bounds import check_bounds
from villani.commands.constants.record import ModelConstants, ModelConstantsRecord, ModelPointRecord, SpectralGapRecord
from villani.commands.exact.run import constant_record, versions
from villani.commands.finish import default_name, finish
from villani.criteria.head import NormalisedHead, normalised_head
from villani.errors import InputError
from villani.inputs.models import load_model
from villani.objective.objective import Objective
from villani.objective.parameters import ParameterSpace
from villani.outwards import upper_power
from villani.theory.comparison import model_constants
from villani.theory.constants import Smoothing, homogeneous_head, variance_quotient
from villani.work.ledger import Ledger, write_settings

ALPHA = 0.1  # prediction smoothing of the certified constant
_TOKENS = 4  # of the block that the graph is read on; shapes do not matter
TIME = 100.0  # length of a run to compare with, Σ learning rates: 100,000 steps of 10⁻³


class ConstantsSettings(BaseModel):
    """What `villani constants` was asked.

    Attributes:
        model: see `load_model`; only its shapes matter.
        weight_decay: every λ > 0 asked about.
        temperature: every s > 0 asked about.
        alpha: prediction smoothing of the certified constant.
        decay: which parameters decay.
        time: length of a training run, Σ learning rates.
        curvature: κ with ∇²L ⪰ −κI wherever it was looked at.
        gradient_norms: ‖∇L‖ wherever it was looked at.
        variance: lower confidence limit of the variance of some u·θ, |u| = 1, under the Gibbs law.
        trust_remote_code: whether a checkpoint may run its code.
        allow_unused: see `load_model`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    weight_decay: list[float] = [0.1]
    temperature: list[float] = [2.0]
    alpha: float = ALPHA
    decay: str = "all"
    time: float = TIME
    curvature: float | None = None
    gradient_norms: list[float] = []
    variance: float | None = None
    trust_remote_code: bool = False
    allow_unused: str | None = None


def run_constants(settings: ConstantsSettings, run: Path | None = None) -> tuple[Path, ModelConstantsRecord]:
    """Constants from what needs no measurement, d, V, λ, s and α, and from figures of the smoothed loss that are given.

    Args:
        settings: what was asked.
        run: directory; made from the settings when None.

    Returns:
        the run directory and its record.

    Raises:
        InputError: some parameter does not decay, so that there is no Gibbs law to speak of (THEORY.md §2.1).
    """
    check_bounds(settings)
    loaded = load_model(
        settings.model, trust_remote_code=settings.trust_remote_code, allow_unused=settings.allow_unused
    )
    space = ParameterSpace(loaded.model, settings.decay)
    block = torch.zeros((1, 1, _TOKENS), dtype=torch.int64)
    head = read_head(Objective(loaded.model, block, decay=settings.decay))
    found = constants_of(loaded.model, space, settings, head)
    if found is None:
        free = space.size - space.decayed_size
        raise InputError(
            f"decay={settings.decay}: {free:,} parameters do not decay, so exp(−βF) need not be integrable and no "
            "constant is certain to exist (THEORY.md §2.1); use --decay all"
        )
    record = ModelConstantsRecord(**dict(found), model=loaded.record)
    asked = settings.model_dump()
    keyed = {**asked, **versions(), "parameters": space.size}
    keyed.pop("allow_unused")
    directory = run or Path("runs") / default_name("constants", settings.model, keyed)
    with Ledger(directory, keyed):
        write_settings(directory, asked)
        finish(directory, f"villani constants {settings.model}", [record], {})
    return directory, record


def constants_of(
    model: nn.Module, space: ParameterSpace, settings: ConstantsSettings, head: NormalisedHead | str | None = None
) -> ModelConstants | None:
    """The comparison at every λ and s; None if some parameter does not decay. `head`: from `read_head`, if asked."""
    if space.decayed_size < space.size:
        return None
    smoothing = Smoothing(outputs(model), settings.alpha)
    lower = []
    if settings.variance is not None:
        lower.append(variance_quotient(settings.variance, 1.0, "statistical", "a direction, from samples"))
    points = []
    for decay, s in product(settings.weight_decay, settings.temperature):
        found = model_constants(
            space.size, decay, s, smoothing.vocabulary, smoothing.alpha, curvature=settings.curvature,
            gradient_norms=settings.gradient_norms, lower=lower, time=settings.time,
        )  # fmt: skip
        points.append(
            ModelPointRecord(
                weight_decay=decay, temperature=s, visible=found.visible, sentence=found.sentence,
                constants=[constant_record(constant) for constant in found.comparison.constants],
                spectral_gap=None if head is None else spectral_gap(head, decay, s),
            )
        )  # fmt: skip
    return ModelConstants(
        parameters=space.size, vocabulary=smoothing.vocabulary, alpha=smoothing.alpha, smoothing_cost=smoothing.cost,
        time=settings.time, points=points,
    )  # fmt: skip


def constants_beside(
    model: nn.Module, space: ParameterSpace, weight_decay: Sequence[float], temperature: Sequence[float],
    head: NormalisedHead | str | None = None,
) -> ModelConstants | None:  # fmt: skip
    """What a measurement is shown beside; None if no λ is positive or some parameter does not decay."""
    positive = [decay for decay in weight_decay if decay > 0]
    asked = ConstantsSettings(model="", weight_decay=positive, temperature=list(temperature))
    return constants_of(model, space, asked, head) if positive else None


def read_head(objective: Objective) -> NormalisedHead | str:
    """What C10 needs of a model, or the reason why it does not apply."""
    try:
        return normalised_head(objective)
    except InputError as error:
        return str(error)


def spectral_gap(head: NormalisedHead | str, weight_decay: float, temperature: float) -> SpectralGapRecord:
    """C10 of the loss as it is, with what it says and what it does not; or why it does not apply."""
    if isinstance(head, str):
        return _no_gap(head)
    hypotheses = (
        f"{head.words}, and used nowhere else; raw cross-entropy over V = {head.classes:,} of D = {head.features:,} "
        f"normalised features, d_φ = {head.dimension:,}; every parameter decays"
    )
    try:
        constant = homogeneous_head(
            weight_decay, 2 / temperature, dimension=head.dimension, classes=head.classes, degree=head.degree,
            slope=head.slope, hypotheses=hypotheses,
        )  # fmt: skip
    except (InputError, OverflowError) as error:
        return _no_gap(str(error))
    shown = upper_power(constant.log10, 3)
    text = (
        f"Raw cross-entropy has a spectral gap: C_P ≤ {shown} at λ = {weight_decay:g}, s = {temperature:g} "
        f"(C10, certified), since {hypotheses}. So Langevin diffusion converges exponentially in χ², whether (iv) "
        "holds or not. That is all it says: the size is astronomical and useless as a rate, and nothing follows about "
        "the log-Sobolev constant C_LS or about KL."
    )
    return SpectralGapRecord(constant=constant_record(constant), text=text)


def _no_gap(reason: str) -> SpectralGapRecord:
    text = (
        f"No Poincaré constant of raw cross-entropy is known here: C10 does not apply, since {reason}. Whether there "
        "is a spectral gap without smoothing is open."
    )
    return SpectralGapRecord(constant=None, text=text)


def outputs(model: nn.Module) -> int:
    """V: the rows of the output embedding, which may be more than a tokenizer's tokens."""
    causal: Any = model
    head = causal.get_output_embeddings()
    return int(causal.config.vocab_size if head is None else head.weight.shape[0])
