import shlex

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.commands.strategies import settings_of
from villani import cli
from villani.choice.rules import RULES
from villani.commands.recommend.settings import RATES, RecommendSettings

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
