"""Constants for people: beyond floats, rounded outwards, in order."""

import math

import pytest

from tests.commands.synthetic import made
from villani.commands.exact.ladder import constant_rows, ladder, power, sign, value
from villani.commands.exact.record import ConstantRecord


def constant(id_, log10, direction="upper", status="certified"):
    return made(ConstantRecord, id=id_, log10=log10, direction=direction, status=status, name=f"name of {id_}")


@pytest.mark.parametrize("log10", [-1.2, 0.0, 2.71828, 4.4])
def test_a_power_of_ten_reads_back(log10):
    assert math.log10(float(power(log10).replace(",", ""))) == pytest.approx(log10, abs=0.03)


def test_beyond_floats_the_exponent_is_told():
    assert power(6.5) == "3.16228·10⁶"
    assert power(250.0) == "1·10²⁵⁰"
    assert power(11308.61) == "4·10¹¹³⁰⁸"  # 10^0.61 = 4.07
    assert (power(11308.61, way=1), power(11308.61, way=-1)) == ("5·10¹¹³⁰⁸", "4·10¹¹³⁰⁸")
    assert (power(-4000.0), power(400.97)) == ("10⁻⁴⁰⁰⁰", "9·10⁴⁰⁰")
    assert power(400.999, way=1) == "10⁴⁰¹"


@pytest.mark.parametrize("log10", [0.30103, 1.23456, -1.2, 500.26, 11308.64])
def test_bounds_round_away_from_safety(log10):
    """An upper bound is not printed below itself, a lower one not above."""

    def shown(text):
        mantissa, _, exponent = text.partition("·10") if "·" in text else ("1", "", text[2:])
        powers = exponent.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
        return math.log10(float(mantissa)) + int(powers) if log10 > 300 else math.log10(float(text))

    slack = 1e-9
    assert shown(value(constant("C3", log10))) >= log10 - slack
    assert shown(value(constant("C9", log10, "lower"))) <= log10 + slack


def test_rows_say_what_a_bound_is_and_rests_on():
    truth = constant("truth", 1.0, "lower")
    rows = constant_rows([constant("C3", 2.0), truth, constant("C9", 0.0, "lower")])
    assert [row["value"][0] for row in rows] == ["≤", "=", "≥"]
    assert rows[0]["bound"] == "C3 name of C3"
    assert rows[1]["bound"] == "name of truth"
    assert rows[1]["if"] == "—"
    assert sign(truth) == "="


def test_a_picture_has_the_least_on_top_and_marks_among_them():
    drawn = ladder([constant("C8", 9.0), constant("C3", 400.0)], {"decay alone": 2.0}).to_dict()
    assert list(drawn["data"][0]["x"]) == [2.0, 9.0, 13.0]  # what is far beyond stands as an arrow at the edge
    assert drawn["data"][0]["marker"]["symbol"][2] == "triangle-right"
    texts = [a["text"] for a in drawn["layout"]["annotations"]]
    assert [t.split(":")[0] for t in texts] == ["decay alone", "C8 name of C8", "C3 name of C3"]
