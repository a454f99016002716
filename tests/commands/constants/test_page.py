"""What a reader of a model's constants sees: claimed beside certified, how far apart, and what smoothing costs."""

import pytest

from tests.commands.exact.test_ladder import constant
from tests.commands.synthetic import made, told
from villani.commands.constants.record import ModelConstantsRecord, ModelPointRecord, SpectralGapRecord


def point(claimed, certified, decay=0.1, temperature=0.01, status="as-claimed", **changes):
    bounds = [constant("C8", claimed, status=status), constant("C3", certified)]
    return made(ModelPointRecord, weight_decay=decay, temperature=temperature, constants=bounds, **changes)


def constants(*points):
    return told(
        made(ModelConstantsRecord, points=list(points), alpha=0.1, vocabulary=50257, smoothing_cost=0.10536, time=None)
    )


@pytest.mark.parametrize(
    ("certified", "words"),
    [(11000.0, "10,996.5 orders of magnitude above"), (1.0, "2.5 orders of magnitude below")],
)
def test_claimed_and_certified_are_as_far_apart_as_their_logarithms(certified, words):
    headline = constants(point(3.5, certified)).headline
    assert words in headline
    assert headline.startswith("At λ = 0.1, s = 0.01 the preprint claims")


def test_a_claim_that_a_lower_bound_refutes_is_marked():
    assert "refuted by the lower bound given" in constants(point(3.5, 90.0, status="refuted")).headline
    assert "refuted" not in constants(point(3.5, 90.0)).headline


def test_smoothing_costs_at_most_what_is_shown():
    text = constants(point(3.5, 90.0)).findings["What it costs"]
    assert "α = 0.1 over V = 50,257" in text
    assert "at most 0.106 nats" in text, "rounded up"


def test_every_lambda_and_s_has_a_row_and_its_own_sentence():
    points = [point(1.0, 2.0, decay, sentence=f"At {decay}.") for decay in (0.1, 1.0, 10.0)]
    tables = constants(*points).tables
    assert all(f"At {decay}." in tables for decay in (0.1, 1.0, 10.0))
    assert tables.count("1.0 more") == 3


def test_without_smoothing_stands_what_is_known():
    gap = made(SpectralGapRecord, text="A gap is known (C10).", constant=None)
    assert constants(point(1.0, 2.0, spectral_gap=gap)).findings["Without smoothing"] == "A gap is known (C10)."
    assert constants(point(1.0, 2.0)).findings["Without smoothing"] == ""
