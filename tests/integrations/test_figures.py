import pytest

from tests.conftest import make_model, make_pool
from villani.integrations.figures import PREFIX, figures_of, logged
from villani.measurement.measure import measure
from villani.objective.objective import Objective


def test_figures_are_the_measurements_own_and_loggers_get_eight():
    measurement = measure(Objective(make_model("gpt2"), make_pool(), weight_decay=0.3), probes=2)
    figures = figures_of(measurement, 0.2, 0.5)
    psi = measurement.psi(0.2, temperature=0.5)
    assert (figures["psi"], figures["psi_sem"]) == (psi.value, psi.sem)
    assert sum(figures[f"psi_{name}"] for name in psi.parts) == pytest.approx(psi.value)
    account = {"overhead": 0.02, "seconds": 9.0, "measurements": 2.0, "measuring_seconds": 0.1}
    named = {PREFIX + name: value for name, value in (figures | account).items()}
    assert logged(named, verbose=True) == named
    brief = logged(named, verbose=False)
    assert brief.items() <= named.items()
    assert {name.removeprefix(PREFIX) for name in brief} == {
        "loss", "gradient_norm_squared", "gradient_norm_squared_sem", "hessian_trace", "hessian_trace_sem", "psi",
        "psi_sem", "overhead",
    }  # fmt: skip
    assert logged({PREFIX + "failed": 1.0}, verbose=False) == {PREFIX + "failed": 1.0}
