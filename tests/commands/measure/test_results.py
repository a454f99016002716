"""Rows of a measurement and of a training run."""

from tests.records import build_measurement, build_training
from villani.commands.measure.results import STATISTICS, estimate_rows, rows


def test_a_row_holds_the_figures_of_its_estimate():
    record = build_measurement(grid=[(0.1, 1e-3), (0.2, 2.0)])
    made = {row["name"]: row for row in rows(record)}
    for name in STATISTICS:
        estimate = getattr(record, name)
        low, high = estimate.interval
        assert made[name] == {
            "name": name, "value": estimate.value, "sem": estimate.sem, "low": low, "high": high, "n": estimate.n,
            "status": estimate.status,
        }  # fmt: skip
    assert made["psi at λ = 0.2, s = 2"]["value"] == record.psi[1].value
    parts = [made[f"psi.{name} at λ = 0.1, s = 0.001"]["value"] for name in type(record.psi[0].parts).model_fields]
    assert parts == [getattr(record.psi[0].parts, name).value for name in type(record.psi[0].parts).model_fields]
    assert len(made) == len(rows(record)) == len(STATISTICS) + 2 * (1 + len(parts))


def test_a_statistic_that_was_not_taken_has_no_row():
    record = build_measurement().model_copy(update={"gauss_newton_trace": None})
    assert "gauss_newton_trace" not in {row["name"] for row in rows(record)}
    assert estimate_rows("loss", record.loss) == [rows(record)[0]]


def test_a_training_run_has_a_row_a_step():
    record = build_training()
    assert [(row["step"], row["loss"]) for row in rows(record)] == [*zip(record.steps, record.loss, strict=True)]
