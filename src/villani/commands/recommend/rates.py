"""At which learning rates a sweep trains, and who says so: the user, the checkpoint's own files, or a default."""

from villani.commands.recommend.settings import RATES, RecommendSettings
from villani.inputs.past_training import PastTraining, past_training

TUNING_RATES = {"sgd": 1e-2, "noisy-sgd": 3e-2, "adamw": 5e-5}  # η of fine-tuning; AdamW's is that of HF's Trainer


def settle(settings: RecommendSettings) -> tuple[RecommendSettings, dict[str, str]]:
    """The settings with a learning rate for every optimiser, and in words where each comes from.

    Raises:
        InputError: files of the checkpoint that would say it, and cannot be read.
    """
    given = settings.learning_rate
    if settings.from_scratch:
        return settings, {
            name: "the default for random weights" if given[name] == RATES[name] else "as given"
            for name in settings.optimizers
        }
    rates, sources = dict(given), dict.fromkeys(given, "as given")
    missing = [name for name in settings.optimizers if name not in given]
    past = past_training(settings.model) if missing else None
    for name in missing:
        if past is not None and _same(past, name):
            rates[name], sources[name] = past.learning_rate, f"the highest in {past.source} of the checkpoint"
        else:
            rates[name], sources[name] = TUNING_RATES[name], "a default for fine-tuning"
    return settings.model_copy(update={"learning_rate": rates}), sources


def _same(past: PastTraining, optimizer: str) -> bool:
    """Whether the rate of that training is one of this optimiser."""
    return past.adam if optimizer == "adamw" else past.sgd and optimizer == "sgd"
