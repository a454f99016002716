"""The scripts about weight decay: the arms of the mechanism against plain loops, and what a broken-off study says."""

import itertools
import json

import numpy as np
import pytest

from tests.commands.paper.test_settings import GRIDS, empty_folder, write  # noqa: F401
from tests.dynamics.test_training import tokens
from tests.test_benchmarks import run, script  # noqa: F401
from villani.commands.paper.settings import PaperOptions
from villani.commands.recommend import cells as training
from villani.commands.running import execute
from villani.dynamics.training import train
from villani.inputs.models import load_model

ASKED = {"steps": 16, "batch": 4, "rate": 1e-2, "decay": 3.0, "seed": 0}


def model_of():
    return load_model("builtin:tiny?width=8&layers=1").model


def arm_of(module, arm, reference=None):
    model = model_of()
    return model, module.train_arm(model, *tokens(), arm, reference=reference, **ASKED)


def distance(a, b):
    pairs = [(p.detach().double(), q.detach().double()) for p, q in zip(a.parameters(), b.parameters(), strict=True)]
    return max(float((p - q).norm() / q.norm()) for p, q in pairs if q.norm() > 0)


@pytest.mark.parametrize(("arm", "decay"), [("none", 0.0), ("decay", 3.0)])
def test_arms_with_and_without_decay_are_what_villani_trains(script, arm, decay):  # noqa: F811
    module, model = script("decay_mechanism"), model_of()
    train(model, *tokens(), steps=16, batch=4, learning_rate=1e-2, seed=0, weight_decay=decay)
    assert distance(arm_of(module, arm)[0], model) < 1e-4


def test_each_arm_has_one_effect_of_decay_and_not_the_others(script):  # noqa: F811
    module = script("decay_mechanism")
    _, plain = arm_of(module, "none")
    _, decayed = arm_of(module, "decay")
    shrunk = decayed["norms"][-1] / plain["norms"][-1]
    assert float(shrunk.max()) < 0.9
    _, step = arm_of(module, "step", decayed)
    np.testing.assert_allclose(relative(module, "step", decayed), decayed["sizes"], rtol=1e-3, atol=1e-6)
    assert float((step["norms"][-1] / decayed["norms"][-1]).min()) > 1.05  # nothing is pulled towards zero
    _, norm = arm_of(module, "norm", decayed)
    np.testing.assert_allclose(norm["norms"], decayed["norms"], rtol=1e-4)
    model, late = arm_of(module, "late")
    np.testing.assert_array_equal(late["norms"][:12], plain["norms"][:12])
    assert (late["norms"][-1] < 0.999 * plain["norms"][-1]).all()
    output = [p is model.get_output_embeddings().weight for p in model.parameters()]
    _, readout = arm_of(module, "readout")
    ratio = readout["norms"][0] / plain["norms"][0]
    assert ratio[output] == pytest.approx(1 - 3.0 * 1e-2, abs=0.01)  # at the peak, after a warm-up of one step
    assert ratio[np.logical_not(output)] == pytest.approx(1.0, abs=1e-6)


def relative(module, arm, reference):
    """(K, tensors) ‖θ_{t+1} − θ_t‖/‖θ_t‖, from the weights themselves."""
    states, model = [], model_of()

    class Watching:
        def advance(self, *_):
            states.append([p.detach().double().clone() for p in model.parameters()])

    states.append([p.detach().double().clone() for p in model.parameters()])
    module.train_arm(model, *tokens(), arm, reference=reference, work=Watching(), **ASKED)
    moves = [[float((b - a).norm() / a.norm()) if a.norm() else 0.0 for a, b in zip(old, new, strict=True)]
             for old, new in itertools.pairwise(states)]  # fmt: skip
    return np.array(moves)


def test_a_run_matched_to_itself_is_itself(script):  # noqa: F811
    module = script("decay_mechanism")
    plain, own = arm_of(module, "none")
    for arm in ("step", "norm"):
        assert distance(arm_of(module, arm, own)[0], plain) < 1e-4


def test_verdicts_can_be_yes_no_and_open(script):  # noqa: F811
    module = script("decay_mechanism")
    noise = np.array([0.0, 0.001, -0.001])
    losses = {
        "none": 4.0 + noise, "decay": 3.9 + 2 * noise, "step": 3.91 - noise, "norm": 3.99 + noise,
        "late": 3.95 + 20 * noise, "readout": 4.05 + noise,
    }  # fmt: skip
    told = module.verdicts({arm: list(values) for arm, values in losses.items()})
    words = {arm: one["verdict"].split(":")[0] for arm, one in told["arms"].items()}
    assert words == {"step": "explains it", "norm": "no", "late": "open", "readout": "no"}
    assert told["arms"]["step"]["share"] == pytest.approx(0.9)
    assert told["gain"]["mean"] == pytest.approx(0.1)
    none = module.verdicts({arm: list(4.0 + 0.1 * noise * k) for k, arm in enumerate(losses)})
    assert {one["verdict"] for one in none["arms"].values()} == {"no gain beyond error: nothing to explain"}


def test_the_mechanism_is_resumed_and_written_down(script, monkeypatch, tmp_path):  # noqa: F811
    module = script("decay_mechanism")
    words = ["run", "--model", "builtin:tiny?layers=1&width=8&context=16", "--text", "builtin", "--block", "16",
             "--train-blocks", "20", "--held-out-blocks", "4", "--steps", "3", "--batch", "2",
             "--seeds", "2"]  # fmt: skip
    run(module, monkeypatch, *words)
    first = json.loads((tmp_path / "run" / "mechanism.json").read_text())
    assert {arm: len(values) for arm, values in first["held_out"].items()} == dict.fromkeys(module.ARMS, 2)
    monkeypatch.setattr(module, "train_arm", None)  # all is kept
    run(module, monkeypatch, *words)
    assert json.loads((tmp_path / "run" / "mechanism.json").read_text()) == first


def test_a_study_that_is_broken_off_says_what_it_has(script, monkeypatch, tmp_path, capsys):  # noqa: F811
    module = script("unfinished_study")
    calls = []

    def stops(*args, **named):
        calls.append(named)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return train(*args, **named)

    write(GRIDS + "[grids]\nadamw = [0.0, 0.5, 2.0]\n")
    with monkeypatch.context() as patch:
        patch.setattr(training, "train", stops)
        with pytest.raises(KeyboardInterrupt):
            execute(PaperOptions(config="study.toml"), tmp_path / "run")
    run(module, monkeypatch, "run", "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["status"] == "unfinished, 7 of 10 cells"
    assert [(p["optimizer"], p["weight_decay"], p["seeds"]) for p in told["points"]] == [
        ("sgd", 0.0, [0, 1]), ("sgd", 0.1, [0, 1]), ("adamw", 0.0, [0]), ("adamw", 0.5, [0]), ("adamw", 2.0, [0]),
    ]  # fmt: skip
    _, record = execute(PaperOptions(config="study.toml"), tmp_path / "run")
    run(module, monkeypatch, "run", "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["status"] == "finished"
    for known, point in zip(record.training, told["points"], strict=True):
        assert point["held_out"] == pytest.approx(known.held_out.value, rel=1e-5)
        assert point["train"] == pytest.approx(known.train_loss.value, rel=1e-5)
        assert (point["interval"] is None) == (known.held_out_change is None)
        if known.held_out_change:
            assert point["change"] == pytest.approx(known.held_out_change.value, rel=1e-3)
            assert point["interval"] == pytest.approx(known.held_out_change.interval, rel=1e-3)
    run(module, monkeypatch, "run")
    assert capsys.readouterr().out.startswith("finished; ")
