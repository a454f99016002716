"""What is measured at one trained model, against dense Hessians and by hand."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.commands.paper.test_settings import QUICK, empty_folder, write  # noqa: F401
from tests.conftest import dense, make_model, make_pool
from villani.commands.paper import points as paper_points
from villani.commands.paper.parts import EstimatorsPart, SpectraPart
from villani.commands.paper.settings import read_settings
from villani.commands.recommend.sweep import sweep
from villani.commands.recommend.sweep_text import read_sweep_text
from villani.objective.objective import Objective
from villani.work.work import Work


def test_the_exact_reference_is_the_trace_of_the_dense_hessian():
    model, pool = make_model("gpt2"), make_pool(2)
    for name, p in model.named_parameters():
        p.requires_grad_("ln_" in name)  # 48 coordinates are enough
    objective = Objective(model, pool, finite=True)
    subject = SimpleNamespace(objective=objective)
    study = SimpleNamespace(subject=lambda *_, **__: subject)
    found = paper_points.reference_trace(study, EstimatorsPart(groups=2, sequences=2, exact=10_000), None)
    chosen = np.concatenate([np.full(p.numel(), "ln_" in name) for name, p in model.named_parameters()])
    each = [dense(model, group, second=True) for group in pool]
    truth = sum(np.diag(d.hessian)[chosen].sum() for d in each) / sum(d.tokens for d in each)
    assert chosen.sum() == objective.parameters.size
    assert float(found["value"]) == pytest.approx(truth, rel=1e-8)
    assert float(found["sem"]) == 0


def test_an_estimator_is_judged_by_its_errors_and_its_intervals():
    rows = [{"value": np.array(v), "sem": np.array(0.5), "freedom": np.array(1e6)} for v in (9.0, 10.0, 11.5, 8.0)]
    found = paper_points.estimator_point("hutchinson", rows, 10.0, 0.0)
    assert found.relative_error.value == pytest.approx(math.sqrt((1 + 0 + 2.25 + 4) / 4) / 10)
    assert found.covered == 1  # ± 0.98
    assert found.relative_sem == pytest.approx(0.05)
    assert paper_points.estimator_point("hutchinson", rows, 10.0, 1.0).covered == 4  # ± 2.19


def test_the_landscape_at_one_model(tmp_path):
    text = QUICK + '[landscape]\ngroups = 8\nsequences = 1\nray_groups = 3\nrays = ["parameters"]\nconfirmed = 1\n'
    settings = read_settings(Path(write(text)), None)
    with Work(tmp_path / "r") as work:
        work.open("sweep", "", {}, {})
        trained = paper_points.Study(settings, read_sweep_text(settings.sweep, work), work)
        (one,) = sweep(settings.sweep, work, [("sgd", 0.1, 0)])
        found = paper_points.landscape_point(trained, settings.landscape, one)
    assert [r.psi[0].temperature for r in found.rays] == [1e-3, 1.0]
    assert found.rays[0].exact_quadratic == pytest.approx(0.1**2 / 1e-3)
    for psi, ray in zip(found.psi, found.rays, strict=True):
        assert psi == ray.psi[0]
        norm = psi.parts.decay_norm.value * psi.temperature / 0.1**2
        assert norm == pytest.approx(found.norm**2)
    walk = found.orbit.walk
    assert [step.scale for step in walk][:3] == [1.0, 2.0, 4.0]
    assert max(step.loss_change for step in walk) < 1e-5
    for step in walk[:4]:  # the same groups and probes: what differs is rounding
        assert step.measured.value == pytest.approx(step.predicted.value, rel=0.01, abs=0.05 * step.measured.sem)
    assert (found.refuted_above is None) == (found.orbit.threshold.upper is None)


def test_a_limit_of_memory_is_on_spectra_alone(monkeypatch):
    """Not on a peak that the process had in another part: that is forgotten, or is no part of the limit."""
    part, cpu = SpectraPart(memory=6.0), torch.device("cpu")
    taken = bytearray(64 << 20)
    del taken
    assert paper_points.spectrum_limit(part, cpu) == pytest.approx(6.0, abs=0.03)
    monkeypatch.setattr(paper_points, "forget_peak", lambda _: None)
    monkeypatch.setattr(paper_points, "peak_memory", lambda _: 9 * 2**30)
    monkeypatch.setattr(paper_points, "resident", lambda: 2 * 2**30)
    assert paper_points.spectrum_limit(part, cpu) == 13.0
