import pytest

from villani.errors import InputError
from villani.measurement.design import Design, check_temperature, chosen_groups


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": 2}, "groups=2"),
        ({"probes": 0}, "probes=0: expected at least 1"),
        ({"probes": 1, "finite": True}, "at least 2 with finite"),
        ({"probes": 1.5}, "probes=1.5: expected a whole number"),
        ({"probes": True}, "probes=True"),
        ({"seed": -1}, "seed=-1"),
        ({"shares": -1}, "shares=-1: expected at least 0"),
        ({"sketch": 0}, "sketch=0: expected at least 1"),
    ],
)
def test_a_design_without_an_interval_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Design(**{"groups": 16, **arguments})


def test_a_whole_data_set_may_be_one_group():
    assert Design(1, 2, finite=True).groups == 1


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan"), None])
def test_temperatures_are_positive(temperature):
    with pytest.raises(InputError, match="temperature"):
        check_temperature(temperature)


def test_groups_are_chosen_once_and_from_those_that_there_are():
    assert chosen_groups((4, 0, 2), 5) == [4, 0, 2]
    for groups, message in (((0, 5), "group=5: the objective has 5"), ((1, 1), "more than once"), ((-1,), "group=-1")):
        with pytest.raises(InputError, match=message):
            chosen_groups(groups, 5)
