"""Criterion (iv) by orbits: thresholds in closed form, their scaling, what is refused before any work."""

import math

import pytest
import torch

from tests.criteria.models import closed, make
from tests.criteria.test_orbits import binary, factors
from villani.criteria.differential import audit_differential, check_search, short_batch
from villani.errors import InputError

ENOUGH = {"groups": 12, "probes": 1, "confirmed": 1, "search": 3, "finite": False}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"groups": 11}, "groups=11: expected at least 12"),
        ({"groups": 7, "search": 0}, "groups=7: expected at least 8"),
        ({"finite": True, "groups": 1, "parameters": 10**6}, "probes=1: expected at least 2 with finite=True"),
        ({"confirmed": 0}, "confirmed=0"),
        ({"probes": 0}, "probes=0"),
        ({"search": -1}, "search=-1"),
        ({"temperature": 0.0}, "temperature=0"),
        ({"temperature": math.nan}, "temperature=nan"),
    ],
)
def test_searches_that_could_not_be_told_from_chance_are_refused(change, words):
    given = {"temperature": 1.0, **ENOUGH, **change}
    with pytest.raises(InputError, match=words) as error:
        check_search(given.pop("temperature"), **given)
    assert "\n" not in str(error.value)


def test_searches_that_are_large_enough_pass():
    check_search(1.0, **ENOUGH)
    check_search(1.0, **ENOUGH | {"groups": 8, "search": 0})
    check_search(1.0, **ENOUGH | {"groups": 1, "finite": True, "parameters": 100})
    check_search(1.0, **ENOUGH | {"groups": 1, "finite": True, "parameters": 10**6, "probes": 2})


def test_a_short_piece_of_the_first_group_is_traced():
    batch = short_batch(make("gpt2"))
    assert tuple(batch.ids.shape) == (1, 4)
    own = closed(lambda w: w.sum(), groups=(7.0, 8.0))
    assert short_batch(own) == 7.0


def test_the_threshold_of_two_factors():
    """Lemma A at t = 0 with balanced labels: s* = 4λ², quadratic in λ, and whatever the place on the orbit."""
    for place, weight_decay in ((1.0, 0.05), (5.0, 0.4)):
        objective = factors(binary(0.5), 0.0, place, weight_decay=weight_decay)
        before = objective.parameters.checksum()
        found = audit_differential(objective, 1.0, search=0, scales=(2.0,))
        assert objective.parameters.checksum() == before
        assert found.refuted_above == pytest.approx(4 * weight_decay**2, rel=1e-9)
        assert found.outcome.verdict == "refuted"
        assert found.symmetries == 1
        assert found.findings[0].threshold.upper == found.refuted_above
        assert found.skipped == ()


def test_none_is_found_where_there_is_none():
    found = audit_differential(factors(lambda t: (t - 1) ** 2, 2.0, weight_decay=0.1), 0.1, search=0)
    assert (found.outcome.verdict, found.refuted_above, found.symmetries, found.findings) == (
        "not refuted", math.inf, 0, ()
    )  # fmt: skip
    assert "no rescaling symmetry was found" in found.outcome.reason


def test_what_cannot_be_traced_is_unknown():
    objective = closed(lambda w: w.sum() if w.sum() > 0 else torch.zeros(()), groups=[0.0] * 12)
    found = audit_differential(objective, 0.1)
    assert found.outcome.verdict == "unknown"
    assert found.refuted_above == math.inf
