import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.commands.strategies import settings_of
from villani import cli
from villani.commands.compare.settings import CompareSettings
from villani.errors import InputError

NAMES = st.sampled_from(["a", "runs/b", "/tmp/x y", "it's", "x,y", "-dash", "ψ", "none", "*", "--run"])


@settings(max_examples=40, deadline=None)
@given(settings_of(CompareSettings, runs=st.lists(NAMES, min_size=2, max_size=4, unique=True)))
def test_the_command_reads_back(asked):
    assert cli.parse(shlex.split(asked.command())[1:])[1] == asked


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        (["a"], "1 run to compare: give two or more"),
        ([], "0 run to compare"),
        (["a", "b", "./a"], "./a is given twice"),
        (["a", "\0"], "embedded null byte"),
    ],
)
def test_what_cannot_be_compared_is_refused(runs, words):
    with pytest.raises(InputError, match=words) as caught:
        CompareSettings.given(runs=runs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("runs", "labels"),
    [
        (["runs/before", "runs/after"], ["before", "after"]),
        (["one/run", "two/run"], ["one/run", "two/run"]),
        (["a", "b/a"], ["a", "b/a"]),
        (["/x/a", "a"], ["x/a", "a"]),
        (["a", "b\x1b[2J"], ["a", "run 2"]),
    ],
)
def test_names_are_as_short_as_tells_them_apart(runs, labels):
    assert CompareSettings(runs=runs).labels == labels
