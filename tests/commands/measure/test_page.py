"""What a reader of a measurement sees beyond report/test_page: which point is told of, and every λ and s."""

import pytest

from tests.commands.synthetic import told
from tests.records import build_measurement, build_training


def test_without_a_measurement_there_is_nothing_to_say_of_psi():
    section = told(build_training())
    assert section.headline == "This run holds no measurement of Ψ yet."
    assert set(section.pictures) == {"training0"}


def test_the_point_itself_is_told_first_wherever_it_stands():
    far = build_measurement(ray=("random", 8.0), loss=9.0)
    here = build_measurement(loss=4.0)
    assert told(far, here).headline == told(here).headline
    assert [name for name in told(far, here).pictures if name.startswith("ray")]


@pytest.mark.parametrize("grid", [[(0.1, 1e-3)], [(0.1, 1e-3), (1.0, 1e-3), (0.1, 0.5)]])
def test_every_lambda_and_s_has_a_row(grid):
    record = build_measurement(grid=grid)
    section = told(record)
    for psi in record.psi:
        assert f"{psi.temperature:g}" in section.tables
    assert (section.pictures["grid"][1] is not None) == (len(grid) > 1)
