"""What `villani constants` does: the constants of a real model, as claimed and as certified, and how far apart."""

from collections.abc import Sequence
from itertools import product

import torch

from villani.commands.constants.record import ModelConstants, ModelConstantsRecord, ModelPointRecord, SpectralGapRecord
from villani.commands.constants.settings import OWN_RUN, ConstantsSettings
from villani.commands.exact.record import ConstantRecord
from villani.commands.running import Outcome, versions
from villani.commands.subject import load, outputs
from villani.criteria.head import NormalisedHead, normalised_head
from villani.errors import InputError
from villani.objective.objective import Objective
from villani.objective.parameters import ParameterSpace
from villani.outwards import upper_power
from villani.theory.comparison import model_constants
from villani.theory.constants import Smoothing, homogeneous_head, variance_quotient
from villani.theory.guidance import next_step
from villani.work.records import ObjectiveRecord
from villani.work.work import Work

_TOKENS = 4  # of the block that the graph is read on; shapes do not matter


def run(settings: ConstantsSettings, work: Work) -> Outcome:
    """Constants from what needs no measurement, d, V, λ, s and α, and from figures of the smoothed loss that are given.

    Raises:
        InputError: some parameter does not decay, so that there is no Gibbs law to speak of (THEORY.md §2.1).
    """
    loaded = load(settings, work)
    space = ParameterSpace(loaded.model, settings.decay)
    if free := space.size - space.decayed_size:
        raise InputError(
            f"decay={settings.decay}: {free:,} parameters do not decay, so exp(−βF) need not be integrable and no "
            "constant is certain to exist (THEORY.md §2.1); use --decay all"
        )
    block = torch.zeros((1, 1, _TOKENS), dtype=torch.int64)
    head = read_head(Objective(loaded.model, block, decay=settings.decay))
    constants = constants_for(space.size, outputs(loaded.model), settings, head)
    own = {"allow_unused", "learning_rate", *OWN_RUN} | (set() if settings.adapter else {"adapter"})
    keyed = settings.model_dump(exclude=own) | versions("villani", "numpy", "scipy")
    work.open("constants", settings.model, keyed | {"parameters": space.size}, settings.model_dump())
    following = next_step(
        settings.weight_decay[0], settings.temperature[0], dimension=space.size,
        norm_squared=float(space.norms_squared().sum()), run=settings.own_run,
    )  # fmt: skip
    return Outcome([ModelConstantsRecord.of(constants, model=loaded.record, next_step=following)])


def constants_for(
    size: int, rows: int, settings: ConstantsSettings, head: NormalisedHead | str | None = None
) -> ModelConstants:
    """The comparison at every λ and s, of a model of so many parameters, all of which decay, and rows of outputs.

    With a `head` from `read_head` it says as well what C10 does.
    """
    smoothing, variance = Smoothing(rows, settings.alpha), settings.variance
    note = "a direction, from samples"
    lower = [] if variance is None else [variance_quotient(variance, 1.0, "statistical", note)]
    points = []
    for decay, s in product(settings.weight_decay, settings.temperature):
        bounds = model_constants(
            size, decay, s, smoothing.vocabulary, smoothing.alpha, curvature=settings.curvature,
            gradient_norms=settings.gradient_norms, lower=lower, time=settings.time,
        )  # fmt: skip
        points.append(
            ModelPointRecord.of(
                bounds, weight_decay=decay, temperature=s, constants=bounds.comparison.constants,
                spectral_gap=None if head is None else spectral_gap(head, decay, s),
            )
        )  # fmt: skip
    return ModelConstants.of(
        smoothing, parameters=size, smoothing_cost=smoothing.cost, time=settings.time, points=points
    )


def constants_beside(
    objective: ObjectiveRecord, rows: int | None, weight_decay: Sequence[float], temperature: Sequence[float],
    head: NormalisedHead | str | None = None,
) -> ModelConstants | None:  # fmt: skip
    """What a measurement is shown beside.

    None where no λ is positive, some parameter does not decay, or there are no rows of outputs, hence no predictions.
    """
    positive = [decay for decay in weight_decay if decay > 0]
    if not positive or rows is None or objective.decayed_parameters < objective.parameters:
        return None
    settings = ConstantsSettings(model="", weight_decay=positive, temperature=list(temperature))
    return constants_for(objective.parameters, rows, settings, head)


def read_head(objective: Objective) -> NormalisedHead | str:
    """What C10 needs of a model, or the reason why it does not apply."""
    try:
        return normalised_head(objective)
    except InputError as error:
        return str(error)


def spectral_gap(head: NormalisedHead | str, weight_decay: float, temperature: float) -> SpectralGapRecord:
    """C10 of the loss as it is, with what it says and what it does not; or why it does not apply."""
    if isinstance(head, str):
        text = (
            f"No Poincaré constant of raw cross-entropy is known here: C10 does not apply, since {head}. Whether there "
            "is a spectral gap without smoothing is open."
        )
        return SpectralGapRecord(constant=None, text=text)
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
        return spectral_gap(str(error), weight_decay, temperature)
    shown = upper_power(constant.log10, 3)
    text = (
        f"Raw cross-entropy has a spectral gap: C_P ≤ {shown} at λ = {weight_decay:g}, s = {temperature:g} "
        f"(C10, certified), since {hypotheses}. So Langevin diffusion converges exponentially in χ², whether (iv) "
        "holds or not. That is all it says: the size is astronomical and useless as a rate, and nothing follows about "
        "the log-Sobolev constant C_LS or about KL."
    )
    return SpectralGapRecord(constant=ConstantRecord.model_validate(constant), text=text)
