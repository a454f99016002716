"""Learning rates of a checkpoint: from the user, from JSON beside its weights, or a default; never one for scratch."""

import json

import pytest

from villani.commands.recommend.rates import TUNING_RATES, settle
from villani.commands.recommend.settings import RATES, RecommendSettings


def settled(folder, **options):
    settings, sources = settle(RecommendSettings.given(model=str(folder), **options))
    return settings.learning_rate, sources


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content))


def test_random_weights_train_as_ever():
    rates, sources = settled("builtin:tiny")
    assert rates == RATES
    assert set(sources.values()) == {"the default for random weights"}
    assert settled("config:gpt-neo-125m", learning_rate=0.3)[1]["sgd"] == "as given"


def test_a_checkpoint_is_tuned_gently(tmp_path):
    settings = RecommendSettings.given(model=str(tmp_path))
    assert (settings.optimizers, settings.seeds, settings.steps) == (["adamw"], 2, 100)
    assert (
        settings.command() == f"villani recommend {tmp_path} --text builtin --weight-decay 0,0.0001,0.001,0.01,0.1,1,10"
    )
    rates, sources = settled(tmp_path, optimizers=["sgd", "noisy-sgd", "adamw"])
    assert rates == TUNING_RATES
    assert all(rate < RATES[name] / 9 for name, rate in rates.items())
    assert set(sources.values()) == {"a default for fine-tuning"}


def test_what_the_user_says_comes_first(tmp_path):
    write(tmp_path, "training_args.json", {"learning_rate": 3e-4})
    assert settled(tmp_path, learning_rate=1e-6) == ({"adamw": 1e-6}, {"adamw": "as given"})
    rates, sources = settled(tmp_path, learning_rate={"sgd": 0.02}, optimizers=["sgd", "adamw"])
    assert rates == {"sgd": 0.02, "adamw": 3e-4}
    assert sources["adamw"] == "the highest in training_args.json of the checkpoint"
    assert settled(tmp_path, learning_rate={"sgd": 0.02})[0] == {"sgd": 0.02}  # whose rate is named is trained


def test_the_state_of_a_trainer_gives_its_highest_rate(tmp_path):
    history = [{"learning_rate": 1e-5, "step": 1}, {"learning_rate": 7e-5}, {"learning_rate": 0.0}, {"eval_loss": 2.0}]
    write(tmp_path, "trainer_state.json", {"log_history": history})
    rates, sources = settled(tmp_path, optimizers=["sgd", "adamw"])
    assert rates == {"sgd": TUNING_RATES["sgd"], "adamw": 7e-5}
    assert sources["adamw"] == "the highest in trainer_state.json of the checkpoint"


@pytest.mark.parametrize(
    ("optim", "adamw", "sgd"),
    [("adamw_torch", 1e-3, 0.01), ("paged_adamw_8bit", 1e-3, 0.01), ("sgd", 5e-5, 1e-3), ("adafactor", 5e-5, 0.01)],
)
def test_a_rate_belongs_to_its_optimiser(tmp_path, optim, adamw, sgd):
    write(tmp_path, "training_args.json", {"learning_rate": 1e-3, "optim": optim})
    assert settled(tmp_path, optimizers=["adamw", "sgd"])[0] == {"adamw": adamw, "sgd": sgd}
