import shlex

import pytest
from hypothesis import given, settings

from tests.commands.strategies import settings_of
from villani import cli
from villani.commands.measure.settings import MeasureSettings
from villani.commands.registry import COMMANDS
from villani.errors import InputError


@settings(max_examples=100, deadline=None)
@given(settings_of(MeasureSettings))
def test_the_command_reads_back(asked):
    assert cli.parse(shlex.split(asked.command())[1:])[1] == asked


def test_options_that_do_nothing_are_refused_from_python_too():
    with pytest.raises(InputError, match="--max-groups is not used without --target-error: leave it out"):
        MeasureSettings.given(model="builtin:tiny", max_groups=64)


@pytest.mark.parametrize("command", ["measure", "constants"])
@pytest.mark.parametrize("name", ["weight_decay", "temperature"])
def test_lists_without_a_number_are_refused(command, name):
    flag = "--" + name.replace("_", "-")
    (kind,) = [one.settings for one in COMMANDS if one.name == command]
    for refuse in (
        lambda: kind.given(model="builtin:tiny", **{name: []}),
        lambda: cli.parse([command, "builtin:tiny", flag, "none"]),
    ):
        with pytest.raises(InputError, match=rf"{name}=\[\]: expected at least one number"):
            refuse()
