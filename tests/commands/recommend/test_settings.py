import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.commands.strategies import settings_of
from villani import cli
from villani.choice.rules import RULES
from villani.commands.recommend.settings import ALL, GRID, RATES, RecommendSettings
from villani.errors import InputError

RATE = st.floats(1e-6, 10)
OPTIONS = {
    "optimizers": st.lists(st.sampled_from([*RATES]), min_size=1, unique=True),
    "learning_rate": st.dictionaries(st.sampled_from([*RATES]), RATE) | RATE,
    "weight_decay": st.lists(st.floats(0, 100), min_size=2, max_size=4, unique=True),
    "rules": st.lists(st.sampled_from([*RULES]), min_size=1, max_size=3, unique=True) | st.just([*RULES]),
}


@settings(max_examples=100, deadline=None)
@given(settings_of(RecommendSettings, **OPTIONS))
def test_the_command_reads_back(asked):
    assert cli.parse(shlex.split(asked.command())[1:])[1] == asked


@settings(max_examples=100, deadline=None)
@given(
    settings_of(
        RecommendSettings, model=st.sampled_from(["gpt2", "./folder", "builtin:tiny"]),
        steps=st.sampled_from([100, 300]), seeds=st.sampled_from([2, 3]),
        must=("steps", "seeds", "learning_rate"), **OPTIONS,
    )
)  # fmt: skip
def test_defaults_that_follow_from_the_model_read_back(asked):
    assert cli.parse(shlex.split(asked.command())[1:])[1] == asked


STRAY = "^--learning-rate 'sgd=0.2': expected NAME=VALUE with a name out of adamw$"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"learning_rate": {"sgd": 0.2}, "optimizers": "adamw"}, STRAY),
        ({"learning_rate": {"sgd": None}, "optimizers": ["adamw"]}, "^--learning-rate 'sgd=None': expected NAME=VALUE"),
        ({"learning_rate": {"sgd": "x"}}, "^learning_rate.sgd='x': input should be a valid number"),
        ({"learning_rate": None}, "^learning_rate='None'"),
        ({"optimizers": None}, "^optimizers='None'"),
        ({"optimizers": 3}, "^optimizers.0='3'"),
        ({"optimizers": [["sgd"]]}, r"^optimizers.0=.*: input should be"),
        ({"optimizers": []}, "^optimizers=.*: expected different ones"),
    ],
)
def test_what_is_wrong_from_python_is_a_line(values, line):
    with pytest.raises(InputError, match=line):
        RecommendSettings.given(model="builtin:tiny", **values)


def test_the_command_line_says_the_same():
    with pytest.raises(InputError, match=STRAY):
        cli.parse(["recommend", "builtin:tiny", "--optimizers", "adamw", "--learning-rate", "sgd=0.2"])


def test_names_of_whole_values_are_those_of_the_command_line():
    """`all` and `grid`, for the fields that have such a name and for no other."""
    asked = RecommendSettings.given(model="builtin:tiny", rules="all", weight_decay="grid")
    assert (asked.rules, asked.weight_decay) == (ALL, GRID)
    with pytest.raises(InputError, match="--rules 'grid': unknown"):
        RecommendSettings.given(model="builtin:tiny", rules="grid")
