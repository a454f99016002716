"""Options of the command line: hostile values are one line with exit code 2, and none is ignored in silence."""

import pytest

from tests.test_cli import refused
from villani import cli
from villani.commands.option import forms
from villani.commands.registry import COMMANDS

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
    "without --prior-drift": ["certify", TINY],
    "without --learning-rate": ["constants", TINY],
    "by adamw": ["constants", TINY, "--learning-rate", "1e-3"],
    "without sgd": ["recommend", TINY, "--optimizers", "adamw"],
    "without the rule guard": ["recommend", TINY, "--rules", "constants"],
}


def modes():
    """(settings, words, field) of every option that a call of `CALLS` makes no use of."""
    for words, call in CALLS.items():
        try:
            _, settings, _ = cli.parse(call)
        except FileNotFoundError:
            continue
        for unused in settings.unused():
            if unused.words == words:
                yield from ((settings, words, name) for name in unused.fields)


def words_of(form):
    """The option with its default, or any value that it takes: even so it is not used."""
    if form.is_flag:
        return [form.flags[0]]
    if form.option.each:
        return [form.flags[0], "a=1"]
    value = form.default
    return [form.flags[0], "1" if value is None else form.write(value)[1] if form.write(value)[1:] else "1"]


def test_every_mode_is_tried_here():
    tried = {words for _, words, _ in modes()}
    assert tried == CALLS.keys()


@pytest.mark.parametrize("words", CALLS)
def test_an_option_that_would_be_ignored_is_refused_by_its_name(villani, words):
    for settings, own, name in modes():
        if own == words:
            option = words_of(forms(type(settings))[name])
            refused(villani(*CALLS[words], *option), f"{option[0]} is not used {words}: leave it out")


def test_options_of_a_potential_that_are_not_refused_change_its_settings():
    """What `converge exact:` takes is what a mode does not list, and what every command has."""
    _, settings, _ = cli.parse(["converge", "exact:tied"])
    listed = {name for unused in settings.unused() if unused.words == "for a potential" for name in unused.fields}
    assert forms(type(settings)).keys() - listed == {
        "model", "weight_decay", "temperature", "learning_rate", "steps", "chains", "walkers", "method", "momentum",
        "schedule", "start", "log_every", "psi_every", "parameters", "dimension", "seed",
    }  # fmt: skip


def test_every_field_of_every_command_is_an_option_with_help():
    for command in COMMANDS:
        for form in forms(command.settings).values():
            assert form.option.help, (command.name, form.name)


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
def test_a_parameter_is_a_finite_number(villani, text):
    refused(villani("exact", "tied", "--set", text), "expected a finite number")
