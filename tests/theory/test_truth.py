"""What is told of a law: when a constant is certified, and which differences are refused."""

import pytest

from villani.errors import InputError
from villani.theory.truth import Verified, relative_difference, settled


@pytest.mark.parametrize(
    ("verified", "tolerance", "asked", "status", "error", "words"),
    [
        (Verified(2e-9, ""), 1e-8, True, "certified", 3e-9, ""),
        (Verified(2e-8, ""), 1e-8, True, "estimated", 1e-9, "intervals close to 2e-08, not to the digits asked for"),
        (Verified(2e-8, ""), 1e-8, False, "certified", 2.1e-8, ""),
        (Verified(1e-6, ""), 1e-8, False, "estimated", 1e-9, "intervals close to 1e-06"),
        (Verified(0.0, "a tail"), 1e-8, False, "estimated", 1e-9, "a tail"),
    ],
)
def test_what_intervals_leave_open_counts(verified, tolerance, asked, status, error, words):
    found = verified.judge(1e-9, tolerance, asked)
    assert found[:2] == (pytest.approx(error), status)
    assert found[2].startswith(words)
    assert bool(found[2]) == bool(words)


def test_solutions_that_differ_are_refused():
    assert settled(2.0, 2.0002, 1e-3) == relative_difference(2.0, 2.0002) == pytest.approx(1e-4)
    for value, other in ((2.0, 2.1), (-1.0, -1.0), (float("nan"), 1.0)):
        with pytest.raises(InputError, match="more than the 1e-03 asked for"):
            settled(value, other, 1e-3)
