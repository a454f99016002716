"""What pictures share: axes of many sizes, bars as far as intervals reach, ladders in order."""

import math
from itertools import pairwise

import pytest

from tests.records import estimate
from villani.report import figures


def test_signed_log_is_odd_and_increasing():
    scale = figures.SignedLog(3e6)
    values = [-3e6, -1e3, -1.0, 0.0, 1.0, 1e3, 3e6]
    assert [scale(v) for v in values] == sorted(scale(v) for v in values)
    assert scale(-1e3) == -scale(1e3)
    assert scale(0.0) == 0
    ticks = scale.ticks([-3e6, 2e4])
    assert ticks["ticktext"][0] == "−10<sup>6</sup>"
    assert ticks["ticktext"][-1] == "10<sup>4</sup>"


@pytest.mark.parametrize("value", [0.5, -12.0, 1e9])
def test_a_signed_axis_can_be_read_back(value):
    """sign·c(10^|y| − 1)."""
    scale = figures.SignedLog(1e9)
    height = scale(value)
    assert math.copysign(scale.threshold * (10 ** abs(height) - 1), height) == pytest.approx(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-2, "0.01"),
        (100.0, "100"),
        (0.0, "0"),
        (1e6, "10<sup>6</sup>"),
        (-1e5, "−10<sup>5</sup>"),
        (1e-3, "10<sup>-3</sup>"),
    ],
)
def test_decades_as_labels(value, text):
    assert figures.decade(value) == text


@pytest.mark.parametrize(("low", "high"), [(-3.2, 4.1), (0.0, 0.0), (-2000.0, 5.0), (11308.6, 11309.0)])
def test_a_logarithmic_axis_holds_its_range_with_few_ticks(low, high):
    axis = figures.log_axis(low, high)
    ticks, (left, right) = axis["tickvals"], axis["range"]
    assert left < low <= high < right
    assert 2 <= len(ticks) <= 10
    assert len({round(b - a, 9) for a, b in pairwise(ticks)}) == 1
    for tick, text in zip(ticks, axis["ticktext"], strict=True):
        assert text == ("1" if tick == 0 else f"10<sup>{tick}</sup>".replace("-", "−"))


def test_bars_reach_to_the_ends_of_intervals():
    given = [estimate(2.0, 0.5), estimate(-1.0, 0.25)]
    bars = figures.interval_bars(given, scale=lambda x: 10 * x)
    for e, minus, plus in zip(given, bars["arrayminus"], bars["array"], strict=True):
        assert 10 * e.value - minus == pytest.approx(10 * e.interval[0])
        assert 10 * e.value + plus == pytest.approx(10 * e.interval[1])


def test_a_ladder_has_the_least_on_top_and_says_what_each_is():
    large = figures.Rung(5.0, "large", "1e5", "", "#111", "circle", 1)
    rungs = [large, figures.Rung(-2.0, "small", "0.01", "why", "#222", "x", 1)]
    drawn = figures.ladder(rungs, "sizes").to_dict()
    assert list(drawn["data"][0]["x"]) == [-2.0, 5.0]
    assert [a["text"] for a in drawn["layout"]["annotations"]] == ["small: <b>0.01</b> (why)", "large: <b>1e5</b>"]
    assert drawn["layout"]["xaxis"]["title"]["text"] == "sizes"


def test_a_curve_tells_values_with_their_errors():
    drawn = figures.curve([0, 1], [estimate(2.0, 0.5), estimate(3.0, 0.1)], "loss", "#123")
    assert list(drawn.y) == [2, 3]
    assert drawn.text[0] == "loss: 2.0 ± 0.5"
    low, high = figures.band([0, 1], [1, 2], [3, 4])[::-1]
    assert list(low.y) == [1, 2]
    assert list(high.y) == [3, 4]
    assert low.fill == "tonexty"
