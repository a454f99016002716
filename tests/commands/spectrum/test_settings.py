"""`villani spectrum`'s settings: the command that they write is read back to them."""

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.commands.strategies import settings_of
from villani.cli import parse
from villani.commands.spectrum.settings import SpectrumSettings
from villani.errors import InputError

NUMBERS = {
    "top": st.integers(1, 9), "bottom": st.integers(0, 9), "tolerance": st.floats(1e-9, 0.99),
    "basis": st.none() | st.integers(21, 400), "most": st.integers(20, 10**9), "density_shares": st.integers(1, 18),
    "held_out": st.integers(3, 9), "operator": st.just("hessian"),
}  # fmt: skip


@given(settings_of(SpectrumSettings, **NUMBERS))
@settings(max_examples=100, deadline=None)
def test_the_command_is_read_back(asked):
    command, again, _ = parse(shlex.split(asked.command())[1:])
    assert (command.name, again) == ("spectrum", asked)


def test_what_would_do_nothing_is_refused_and_left_out_of_the_command():
    for given_, flag in (
        ({"layer_steps": 5}, "--layer-steps"),
        ({"density_probes": 0, "density_steps": 9}, "--density-st"),
    ):
        with pytest.raises(InputError, match=f"{flag}.* is not used"):
            SpectrumSettings.given(model="builtin:tiny", **given_)
        assert flag not in SpectrumSettings(model="builtin:tiny", **given_).command()
    with pytest.raises(InputError, match="No such option"):
        parse(["spectrum", "builtin:tiny", "--probes", "2"])
