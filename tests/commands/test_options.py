"""Options of the command line: hostile values are one line with exit code 2, and none is ignored in silence."""

import pytest
import typer

from tests.test_cli import refused
from villani.cli import app
from villani.commands.options import IGNORED, assignments

TINY = "builtin:tiny"
CALLS = {  # a call of each mode, and for each type of option a value that it takes
    "without --target-error": ["measure", TINY],
    "without --trace hutchinson": ["measure", TINY],
    "without --trace taylor": ["measure", TINY],
    "with --replay, where the witness says": ["audit", "--replay", "w.safetensors"],
    "without --layers": ["spectrum", TINY],
    "with --density-probes 0": ["spectrum", TINY, "--density-probes", "0"],
    "for a potential": ["converge", "exact:tied"],
    "without --psi-every": ["converge", TINY],
    "without --prior text": ["certify", TINY],
    "with --kind prequential": ["certify", TINY, "--kind", "prequential"],
    "without --kind prequential": ["certify", TINY],
    "without sgd": ["recommend", TINY, "--optimizers", "adamw"],
    "without the rule guard": ["recommend", TINY, "--rules", "constants"],
}


def parameters_of(name):
    command = typer.main.get_command(app).commands[name]
    return {parameter.name: parameter for parameter in command.params}


def words_of(parameter):
    """The option with its default, or any value that it takes: even so it is not used."""
    flag = next(word for word in parameter.opts if word.startswith("--"))
    if parameter.is_flag:
        return [flag]
    value = parameter.default
    if value is None or callable(value):
        value = {"set_": "a=1"}.get(parameter.name, "1")
    return [flag, str(getattr(value, "value", value))]


def test_every_mode_is_tried_here():
    assert {mode.words for mode in IGNORED} == CALLS.keys()


@pytest.mark.parametrize(
    ("mode", "name"), [(mode, name) for mode in IGNORED for name in mode.ignored], ids=lambda x: str(x)[:40]
)
def test_an_option_that_would_be_ignored_is_refused_by_its_name(villani, mode, name):
    words = words_of(parameters_of(mode.command)[name])
    refused(villani(*CALLS[mode.words], *words), f"{words[0]} is not used {mode.words}: leave it out")


def test_options_of_a_potential_that_are_not_refused_change_its_settings(villani, tmp_path):
    """What `converge exact:` takes is what a mode does not list, and what every command has."""
    listed = {name for mode in IGNORED if mode.words == "for a potential" for name in mode.ignored}
    rest = parameters_of("converge").keys() - listed
    assert rest == {
        "model", "weight_decay", "temperature", "learning_rate", "steps", "chains", "walkers", "method", "momentum",
        "schedule", "start", "log_every", "psi_every", "set_", "dimension", "seed", "run", "json", "help",
    } - {"help"}  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ["measure", TINY, "--weight-decay", "1e308"],
        ["measure", TINY, "--temperature", "1e-320"],
        ["measure", TINY, "--seed", str(2**64)],
        ["measure", TINY, "--seed", "-1"],
        ["measure", TINY, "--device", "meta"],
        ["measure", TINY, "--threads", str(10**9)],
        ["measure", TINY, "--groups", str(10**9)],
        ["measure", TINY, "--sequences", str(10**9)],
        ["measure", TINY, "--block", str(10**9)],
        ["measure", TINY, "--max-groups", str(10**9), "--target-error", "0.1"],
        ["measure", TINY, "--target-error", "1e-320"],
        ["measure", TINY, "--text", "/dev/zero"],
        ["measure", TINY, "--text", "~nosuchuser/x"],
        ["measure", TINY, "--text", "x" * 300],
        ["measure", TINY, "--tokenizer", "x" * 300 + "/x"],
        ["measure", TINY, "--tokenizer", "~nosuchuser/x"],
        ["measure", TINY, "--data", "~nosuchuser/x"],
        ["measure", TINY, "--run", ""],
        ["measure", TINY, "--run", "x" * 300],
        ["measure", TINY, "--run", "~nosuchuser/x"],
        ["measure", TINY, "--allow-unused", "("],
        ["converge", TINY, "--steps", str(10**30)],
        ["converge", "exact:tied", "--chains", str(10**8)],
        ["converge", "exact:tied", "--set", "a=nan"],
        ["converge", "exact:tied", "--groups", "3"],
        ["certify", TINY, "--batch", str(10**9)],
        ["certify", TINY, "--kind", "prequential", "--learning-rate", "1e999"],
        ["certify", TINY, "--kind", "prequential", "--warm-up", str(10**30)],
        ["certify", TINY, "--steps", str(10**30)],
        ["recommend", TINY, "--seeds", str(10**8), "--optimizers", "sgd"],
        ["recommend", TINY, "--batch", str(10**9), "--optimizers", "sgd"],
        ["recommend", TINY, "--audit", "."],
        ["constants", TINY, "--variance", "inf"],
        ["constants", TINY, "--gradient-norms", "1e999"],
        ["exact", "tied", "--set", "a=inf"],
        ["exact", "tied", "--temperature", "1e-320"],
        ["exact", "tied", "--output", "/dev/full"],
        ["exact", "tied", "--output", "/dev"],
        ["demo", "--steps", str(10**30)],
        ["demo", "--run", ""],
        ["report", ""],
        ["report", "/dev/null"],
        ["study", "paper", "--config", "."],
        ["study", "paper", "--config", "/dev/zero"],
        ["audit", "--replay", "."],
    ],
    ids=lambda words: " ".join(words)[:60],
)
def test_hostile_values_are_one_line_and_leave_nothing(villani, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(villani(*words))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["a=nan", "a=inf", "a=-inf", "a=1e999"])
def test_a_parameter_is_a_finite_number(text):
    with pytest.raises(ValueError, match="expected a finite number"):
        assignments([text])
