"""What `villani constants` does: the constants of a real model, as claimed and as certified, and how far apart."""

from itertools import product

from villani.errors import InputError
from villani.landscape.models import load_model
from villani.landscape.parameters import ParameterSpace
from villani.runs.exact import ModelConstantsRecord, ModelPointRecord
from villani.studies.exact import constant_record
from villani.theory.comparison import model_constants


def run_constants(
    model: str, weight_decay: list[float], temperature: list[float], *, alpha: float = 0.1, decay: str = "all",
    time: float | None = None, trust_remote_code: bool = False,
) -> ModelConstantsRecord:  # fmt: skip
    """Constants from what needs no measurement: d, V, λ, s, α.

    Args:
        model: see `load_model`; only its shapes matter.
        weight_decay: every λ > 0 asked about.
        temperature: every s > 0 asked about.
        alpha: prediction smoothing of the certified constant.
        decay: which parameters decay.
        time: length of a training run, Σ learning rates.
        trust_remote_code: whether a checkpoint may run its code.

    Raises:
        InputError: some parameter does not decay, so that there is no Gibbs law to speak of (THEORY.md §2.1).
    """
    loaded = load_model(model, trust_remote_code=trust_remote_code)
    space = ParameterSpace(loaded.model, decay)
    dimension = int(space.sizes.sum())
    if free := dimension - space.decayed_size:
        raise InputError(
            f"decay={decay}: {free:,} parameters do not decay, so exp(−βF) need not be integrable and no constant is "
            "certain to exist (THEORY.md §2.1); use --decay all"
        )
    head = loaded.model.get_output_embeddings()  # type: ignore[operator]
    vocabulary = int(head.weight.shape[0])
    points = []
    for one_decay, s in product(weight_decay, temperature):
        found = model_constants(dimension, one_decay, s, vocabulary, alpha, time=time)
        points.append(
            ModelPointRecord(
                weight_decay=one_decay, temperature=s, visible=found.visible, sentence=found.sentence,
                constants=[constant_record(constant) for constant in found.comparison.constants],
            )
        )  # fmt: skip
    return ModelConstantsRecord(
        model=loaded.record, parameters=dimension, vocabulary=vocabulary, alpha=alpha,
        smoothing_cost=found.smoothing.cost, points=points,
    )  # fmt: skip
