"""`villani converge`'s settings: the command that they write is read back to them, and what is filled in."""

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.commands.strategies import settings_of
from villani.cli import parse
from villani.commands.converge.settings import ConvergeSettings
from villani.errors import InputError

OF_MODELS = {"psi_groups": st.integers(3, 9), "parameters": st.just({}), "dimension": st.none(), "walkers": st.none()}
OF_POTENTIALS = {
    "model": st.sampled_from(["exact:a*w**4 + c*w", "exact:-a*w + c*w**2"]),
    "parameters": st.fixed_dictionaries({"a": st.floats(0.1, 9), "c": st.floats(0.1, 9)}),
    "dimension": st.none() | st.integers(1, 4), "weight_decay": st.lists(st.floats(0.1, 2), min_size=1, max_size=2),
    "temperature": st.lists(st.floats(0.1, 2), min_size=1, max_size=2), "learning_rate": st.floats(1e-6, 1e-1),
}  # fmt: skip


@given(settings_of(ConvergeSettings, **OF_MODELS))
@settings(max_examples=50, deadline=None)
def test_the_command_of_a_model_is_read_back(asked):
    """Also of settings with every number filled in, as a record's provenance names them."""
    for one in (asked, asked.filled()):
        command, again, _ = parse(shlex.split(one.command())[1:])
        assert command.name == "converge"
        assert again.filled() == asked.filled()


@given(st.fixed_dictionaries(OF_POTENTIALS))
@settings(max_examples=50, deadline=None)
def test_the_command_of_a_potential_is_read_back(fields):
    asked = ConvergeSettings(**fields)
    assert parse(shlex.split(asked.command())[1:])[1] == asked


def test_what_is_given_stays_and_the_rest_is_filled_in():
    filled = ConvergeSettings(model="builtin:tiny", steps=7, temperature=[0.5]).filled()
    assert (filled.steps, filled.temperature, filled.weight_decay) == (7, [0.5], [0.1])
    assert (filled.chains, filled.learning_rate, filled.log_every, filled.walkers) == (4, 1e-3, 5, 1)
    assert filled.filled() == filled
    potential = ConvergeSettings(model="exact:tied", steps=2000, walkers=3).filled()
    assert (potential.steps, potential.walkers, potential.chains, potential.log_every) == (2000, 3, 8, 5)
    assert potential.filled() == potential


def test_what_would_do_nothing_is_refused():
    with pytest.raises(InputError, match="--groups is not used for a potential"):
        ConvergeSettings.given(model="exact:tied", groups=3)
    with pytest.raises(InputError, match="go with exact:"):
        ConvergeSettings.given(model="builtin:tiny", walkers=3)
    for wrong in ({"finite": False}, {"probes": 2}):  # no options: fields that it shares with other commands
        with pytest.raises(InputError, match="does not apply"):
            ConvergeSettings.given(model="builtin:tiny", **wrong)


def test_a_parameter_that_no_expression_could_name_is_refused():
    with pytest.raises(InputError, match=r"--set 'a b=0.30000000000000004': expected NAME=VALUE"):
        ConvergeSettings.given(model="exact:-a*w + w**2", parameters={"a b": 0.1 + 0.2})
