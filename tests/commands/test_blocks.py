"""Settings in common: what calls from Python may give, what is refused, and what another command takes over."""

from typing import ClassVar

import numpy as np
import pytest

from villani.commands.audit.settings import AuditSettings
from villani.commands.blocks import DESIGN, Settings, SubjectSettings, Unused, shared
from villani.commands.option import option
from villani.commands.spectrum.settings import SpectrumSettings
from villani.errors import InputError


class Dice(Settings):
    """Throw dice."""

    name: ClassVar[str] = "dice"
    throws: list[int] = option([3], "how often", DESIGN)
    sides: int = option(6, "of a die", DESIGN)
    coins: bool = option(False, "coins instead", DESIGN)

    def unused(self):
        if self.coins:
            yield Unused("with coins", ("sides",))


@pytest.mark.parametrize("given", [4, [4], (4,), np.array([4]), np.array(4)], ids=repr)
def test_one_value_is_a_list_of_it(given):
    assert Dice.given(throws=given).throws == [4]


def test_an_option_that_would_do_nothing_is_refused_by_its_flag():
    with pytest.raises(InputError, match="--sides is not used with coins: leave it out"):
        Dice.given(coins=True, sides=7)
    assert Dice.given(coins=True).sides == 6
    assert Dice.given(sides=7).sides == 7
    assert "--sides" not in Dice(coins=True, sides=7).command()
    assert "--sides 7" in Dice(sides=7).command()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"thrown": 1}, "thrown: no such option; there are: throws, sides, coins"),
        ({"sides": "many"}, "sides='many'"),
        ({"sides": 2**70}, "sides="),
        ({"throws": [1, "x"]}, "throws"),
    ],
)
def test_what_is_wrong_is_one_line(given, words):
    with pytest.raises(InputError, match=words) as error:
        Dice.given(**given)
    assert "\n" not in str(error.value)


def test_numbers_have_a_least_and_lists_a_first():
    with pytest.raises(InputError, match="sides=1: expected at least 2"):
        Dice(sides=1).check_least(sides=2)
    with pytest.raises(InputError, match=r"throws=\[\]: expected at least one"):
        Dice(throws=[]).check_some("throws")
    with pytest.raises(InputError, match="block=1: expected at least 2"):
        SubjectSettings.model_construct(block=1).check_least()


@pytest.mark.parametrize(
    ("sequences", "block", "micro", "tokens"), [(4, 128, 512, 512), (4, 128, 100, 128), (1, 64, 512, 64)]
)
def test_blocks_are_never_split(sequences, block, micro, tokens):
    settings = SpectrumSettings(model="builtin:tiny", sequences=sequences, block=block, micro_tokens=micro)
    assert settings.at_once == tokens


def test_another_command_takes_over_which_model_text_and_seed():
    audit = AuditSettings(model="gpt2", text="ptb", seed=5, dtype="float64", groups=99)
    taken = shared(audit, SpectrumSettings)
    assert {k: taken[k] for k in ("model", "text", "seed", "dtype")} == {
        "model": "gpt2", "text": "ptb", "seed": 5, "dtype": "float64",
    }  # fmt: skip
    assert "groups" not in taken
    assert "temperature" not in taken
