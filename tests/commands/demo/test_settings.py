import shlex

from hypothesis import given, settings

from tests.commands.strategies import settings_of
from villani import cli
from villani.commands.demo.settings import DemoSettings


@settings(max_examples=100, deadline=None)
@given(settings_of(DemoSettings))
def test_the_command_reads_back(asked):
    assert cli.parse(shlex.split(asked.command())[1:])[1] == asked
