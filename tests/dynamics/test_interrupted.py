"""Training that goes on where a kill left it: the same bits whatever the optimiser, and no damaged state is used."""

import json

import pytest
import torch

from tests.dynamics.test_training import tokens
from villani.dynamics import interrupted
from villani.dynamics.interrupted import clear
from villani.dynamics.schedules import ConstantMemory, GuardFollowing
from villani.dynamics.training import train
from villani.errors import InputError
from villani.inputs.models import load_model
from villani.work.work import Work


class Killed(BaseException):
    """A kill amid the steps."""


class Dies(Work):
    """Work that a kill ends once so many steps are done."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def advance(self, done, total):
        if done == self.at:
            raise Killed


def trained(work=None, state=None, schedule=None, dropout=0.0, **changes):
    model = load_model("builtin:tiny?width=8&layers=1").model
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    torch.manual_seed(0)
    arguments = {
        "steps": 12, "batch": 4, "learning_rate": 1e-2, "seed": 0, "weight_decay": 0.1, "held_out": tokens(1),
        "evaluate_every": 3, "clip": 0.5,
    }  # fmt: skip
    schedules = {
        None: lambda: None, "memory": lambda: ConstantMemory(cap=5.0),
        "guard": lambda: GuardFollowing(lambda step: {"a": 0.01 * step, "b": 0.1}, every=2, cap=9.0),
    }  # fmt: skip
    arguments |= {"work": work, "state": state, "decay_schedule": schedules[schedule]()}
    return model, train(model, *tokens(), **arguments | changes)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(interrupted, "PATIENCE", -1.0)  # a state after every step


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"schedule": "memory"}, {"schedule": "guard"}, {"dropout": 0.3}, {"optimizer": "sgd", "momentum": 0.9},
        {"optimizer": "sgd"}, {"optimizer": "noisy-sgd", "temperature": 1e-4},
    ],
)  # fmt: skip
def test_a_killed_run_goes_on_to_the_same_bits(changes, tmp_path):
    state = tmp_path / "runs" / "adamw-0.1-[0]"  # no pattern
    whole, expected = trained(**changes)
    for at in (1, 7, 11):
        with pytest.raises(Killed):
            trained(Dies(at), state, **changes)
        assert len([*state.parent.iterdir()]) == 2  # one state, and what tells of it
    steps = []
    monitor = Work()
    monitor.advance = lambda done, total: steps.append(done)
    model, found = trained(monitor, state, **changes)
    assert steps == [12]
    assert found == expected
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters(), strict=True))
    clear(state)
    assert not [*state.parent.iterdir()]
    clear(state)


def test_a_state_is_written_no_oftener_than_its_patience(tmp_path, monkeypatch):
    monkeypatch.setattr(interrupted, "PATIENCE", 1e9)
    trained(None, tmp_path / "run")
    assert not [*tmp_path.iterdir()]


def damage_weights(folder):
    (file,) = folder.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def damage_words(folder):
    told = json.loads((folder / "run.json").read_text())
    del told["rest"]
    (folder / "run.json").write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_weights, "not the file that the run left"),
        (damage_words, "rest"),
        (lambda folder: next(folder.glob("*.safetensors")).unlink(), "No such file"),
        (lambda folder: (folder / "run.json").write_text("{"), "not JSON"),
    ],
)
def test_a_damaged_state_is_refused_in_a_line(damage, words, tmp_path):
    with pytest.raises(Killed):
        trained(Dies(5), tmp_path / "run")
    damage(tmp_path)
    with pytest.raises(InputError, match=words) as error:
        trained(None, tmp_path / "run")
    assert "\n" not in str(error.value)


def test_a_kill_between_the_two_files_leaves_the_state_before(tmp_path, monkeypatch):
    whole, _ = trained()
    real, calls = interrupted.write_atomically, []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise Killed
        real(*arguments)

    monkeypatch.setattr(interrupted, "write_atomically", dies)
    with pytest.raises(Killed):
        trained(None, tmp_path / "run")
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == ["run-3.safetensors", "run-4.safetensors"]
    monkeypatch.setattr(interrupted, "write_atomically", real)
    model, _ = trained(None, tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters(), strict=True))
