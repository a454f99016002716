"""What a page proposes can be typed."""

import re
import shlex

import pytest

from villani.commands.next_steps import STEPS
from villani.commands.registry import COMMANDS

OPTIONS = {command.name: command.settings.model_fields for command in COMMANDS}


def test_every_command_that_makes_a_page_proposes_something():
    assert set(STEPS) == set(OPTIONS) - {"demo"}  # whose records are measurements


@pytest.mark.parametrize("name", STEPS)
def test_commands_and_options_are_there(name):
    for typed in re.findall(r"`([^`]*)`", " ".join(STEPS[name])):
        words = shlex.split(typed)
        own = words[1] if words[0] == "villani" else words[0] if words[0] in OPTIONS else name
        assert own in OPTIONS, typed
        for option in (word for word in words if word.startswith("--")):
            assert option.removeprefix("--").replace("-", "_") in OPTIONS[own], typed
