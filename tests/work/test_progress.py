"""Seconds for people."""

import pytest

from villani.work.progress import duration


def test_durations_are_for_people():
    assert [duration(s) for s in (0.123, 42.0, 600.0, 9000.0)] == ["0.12 s", "42 s", "10 min", "2.5 h"]


@pytest.mark.parametrize("seconds", [0.4, 7.0, 80.0, 95.0, 4000.0, 20_000.0, 100_000.0, 2e6])
def test_a_duration_reads_back_to_two_digits(seconds):
    number, unit = duration(seconds).split()
    size = {"s": 1, "min": 60, "h": 3600, "days": 86400}[unit]
    assert float(number) * size == pytest.approx(seconds, rel=0.05)
    assert float(number) >= 1.5 or unit == "s"
