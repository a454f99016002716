"""What a reader of exact truths sees: the verdict of the last point, the sweep, and reference values that fail."""

import pytest

from tests.commands.exact.test_ladder import constant
from tests.commands.synthetic import made, told
from villani.commands.exact.record import CheckRecord, ExactRecord, MissingRecord, PointRecord, ReferenceRecord


def point(dimension=1, **changes):
    bounds = [constant("C3", 1.5), constant("C8", 0.5, status="refuted"), constant("truth", 1.0)]
    fields = {"dimension": dimension, "constants": bounds, "verdict": f"verdict at {dimension}", "poincare": 10.0,
              "gaps": [0.1], "weight_decay": 0.25, "temperature": 2.0, "beta": 1.0}  # fmt: skip
    return made(PointRecord, **fields | changes)


@pytest.mark.parametrize("varied", [None, "dimension"])
def test_the_last_point_is_the_answer(varied):
    points = [point(1), point(2), point(3)] if varied else [point(1)]
    section = told(made(ExactRecord, potential="tied", varied=varied, points=points))
    assert section.headline.endswith(f"verdict at {len(points)}.")
    assert bool(section.findings["Along the sweep"]) == bool(varied)
    assert section.pictures["truth"][1].data


def test_every_point_has_its_bounds_and_what_does_not_apply():
    missing = [MissingRecord(id="C2", reason="the loss is not convex")]
    tables = told(made(ExactRecord, varied=None, points=[point(missing=missing)])).tables
    assert "C2" in tables
    assert "the loss is not convex" in tables
    assert "refuted" in tables
    assert "C8 name of C8" in tables


def test_what_is_certified_only_is_said_to_be():
    for proved, words in (("", ""), ("L is convex", "L is convex.")):
        section = told(made(ExactRecord, varied=None, points=[point()], proved=proved))
        assert section.findings["What makes inputs certified"] == words


def test_reference_values_that_fail_are_named():
    checks = [CheckRecord(row=f"T{i}", quantity="C_P", printed="1", computed=1.0, passes=i != 2) for i in range(4)]
    section = told(ReferenceRecord(passed=3, failed=1, checks=checks))
    assert section.headline == "3 of 4 reference values are reproduced to the printed digits."
    assert section.findings == {"Not reproduced": "T2, C_P."}
    assert section.tables.count("NOT REPRODUCED") == 1
    whole = told(ReferenceRecord(passed=1, failed=0, checks=checks[:1]))
    assert not whole.findings
    assert "NOT REPRODUCED" not in whole.tables
