"""What a page and a terminal say of the cost of work."""

from villani.report.origin import cost_words
from villani.work.records import Cost


def cost(**more):
    return Cost(seconds=41.2, seconds_per_group=2.575, peak_memory_bytes=812 * 2**20, tokens=1, probes=1, **more)


def test_what_work_cost_is_said_with_its_plan():
    assert cost_words(None) == "not recorded"
    assert cost_words(cost()) == "41.2 s, 812 MiB at the peak"
    planned = cost(pilot_seconds=1.2, predicted_seconds=50.0)
    assert cost_words(planned) == "41.2 s, 812 MiB at the peak; predicted 50 s, took 40 s, pilot 1.2 s"
