"""Commands as Python calls: the record that the command line writes, and refusals in a line."""

import json

import numpy as np
import pytest

import villani as package

TINY = "builtin:tiny?layers=1&width=8&context=32"


def plain(record):
    """A record as JSON has it, without its clock readings."""
    content = json.loads(record if isinstance(record, str) else record.model_dump_json())
    return {name: value for name, value in content.items() if name != "cost"}


def test_certify_takes_arrays_and_paths(tmp_path):
    record = package.certify(
        TINY, run=tmp_path / "call", weight_decay=0.5, alpha=np.array([0.1]), block=16, blocks=64, steps=2, batch=4,
    )  # fmt: skip
    assert [point.weight_decay for point in record.points] == [0.5]
    assert record.alphas == [0.1]
    assert (tmp_path / "call" / "report.html").exists()


def test_certify_in_one_pass_has_the_commands_default_rates(villani, tmp_path):
    options = {"kind": "prequential", "block": 16, "blocks": 64, "batch": 16}
    record = package.certify(TINY, run=str(tmp_path / "call"), direction="adam", **options)
    words = [w for name, value in options.items() for w in (f"--{name}", value)]
    code, out, _ = villani("certify", TINY, *words, "--direction", "adam", "--run", tmp_path / "command", "--json")
    assert code == 0
    assert plain(record) == plain(out)


def test_recommend_takes_one_optimiser_and_one_rate(tmp_path):
    record = package.recommend(
        TINY, run=tmp_path / "call", weight_decay=[0, 0.1], optimizers="adamw", held_out_blocks=8, train_blocks=16,
        rules="ema", learning_rate=1e-3, seeds=1, steps=2, batch=4, block=16,
    )  # fmt: skip
    assert [(o.optimizer, o.learning_rate) for o in record.optimizers] == [("adamw", 1e-3)]
    assert [point.weight_decay for point in record.optimizers[0].points] == [0, 0.1]
    assert {rule.id for rule in record.optimizers[0].rules} >= {"ema"}


def test_recommend_fills_what_the_command_fills(monkeypatch, tmp_path):
    from villani.commands import calls

    seen = []

    def remembered(settings, *_):
        seen.append(settings)
        return tmp_path, settings

    monkeypatch.setattr(calls, "execute", remembered)
    package.recommend(TINY)
    assert seen[-1].learning_rate == {"sgd": 0.1, "noisy-sgd": 0.5, "adamw": 2e-3}
    assert seen[-1].temperature == 1e-6
    package.recommend(TINY, optimizers=["sgd", "adamw"], learning_rate={"adamw": 1.0})
    assert seen[-1].learning_rate == {"sgd": 0.1, "adamw": 1.0}
    assert seen[-1].temperature is None


def test_converge_does_what_the_command_does(villani, tmp_path):
    options = {"steps": 40, "chains": 2, "walkers": 4}
    record = package.converge("exact:tied", run=tmp_path / "call", weight_decay=0.1, temperature=[0.2], **options)
    words = [w for name, value in options.items() for w in (f"--{name}", value)]
    code, out, _ = villani(
        "converge", "exact:tied", *words, "--weight-decay", 0.1, "--temperature", 0.2, "--run", tmp_path / "command",
        "--json",
    )  # fmt: skip
    assert code == 0
    assert plain(record) == plain(out)


@pytest.mark.parametrize("call", ["certify", "recommend", "converge"])
def test_bad_options_are_refused_in_a_line(call, tmp_path):
    for options, words in (
        ({"weight_decays": 1.0}, "weight_decays: no such option; there are: model,"),
        ({"steps": "many"}, "steps='many'"),
        ({"weight_decay": "much"}, "weight_decay.0='much'"),
        ({"weight_decay": [-1.0, 1.0]}, "weight_decay"),
        ({"device": "abacus", "steps": 1}, "device 'abacus'"),
    ):
        with pytest.raises(package.InputError, match=words) as caught:
            getattr(package, call)(TINY, run=tmp_path / "run", **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(package.InputError, match="kind='bound'"):
        package.certify(TINY, kind="bound")
