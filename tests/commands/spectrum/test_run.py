"""`villani spectrum` from a model to a page: resume, kills, what the records say, deflation from a run, bad input."""

import json
import os
import random
import signal
import time

import numpy as np
import pytest
import torch

from tests.conftest import SHARING
from villani.commands.content import run_records
from villani.commands.pages import page
from villani.commands.running import execute
from villani.commands.spectrum.record import SpectrumRecord
from villani.commands.spectrum.settings import SpectrumSettings
from villani.commands.subject import load_subject
from villani.curvature.operators import Curvature
from villani.errors import InputError
from villani.work.work import Work

SETTINGS = SpectrumSettings(
    model="builtin:tiny?layers=1&width=8", groups=2, sequences=1, block=16, top=3, bottom=2, tolerance=1e-4, basis=12,
    density_probes=2, density_steps=6, held_out=3, layers=True, layer_steps=3, learning_rate=0.1, threads=1,
)  # fmt: skip
SMALL = ["--groups", "2", "--sequences", "1", "--block", "16", "--top", "2", "--bottom", "1", "--threads", "1"]
NOTHING = ["--density-probes", "0"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("spectrum") / "whole"
    return execute(SETTINGS, run)


def test_the_record_is_what_its_vectors_say(whole):
    """Rayleigh quotients and residuals anew, from the files that the run left and a matrix made afresh."""
    run, record = whole
    subject = load_subject(SETTINGS, Work(), 0.1, groups=5)
    operator = Curvature(subject.objective, groups=[0, 1])
    assert record.converged
    assert [e.rank for e in record.eigenvalues] == [1, 2, 3, -1, -2]
    largest = max(abs(e.value) for e in record.eigenvalues)
    for i, e in enumerate(record.eigenvalues):
        u = torch.from_numpy(np.load(run / f"vector-{i:02d}.npy"))
        w = operator(u)
        assert float(u @ w) == pytest.approx(e.value, rel=1e-5)
        residual = float(torch.linalg.vector_norm(w - e.value * u))
        assert residual == pytest.approx(e.residual, rel=1e-2, abs=1e-6 * largest)
        assert e.residual <= 1.1e-4 * largest
        assert e.residual < e.bound
        assert e.status == "estimated"
        assert e.rank_limit == pytest.approx(e.value - record.rounding * np.sign(e.rank))
        assert sum(e.shares) == pytest.approx(1)
        assert e.held_out.n == 3
        fresh = [float(u @ Curvature(subject.objective, groups=[g])(u)) for g in (2, 3, 4)]
        assert e.held_out.value == pytest.approx(np.mean(fresh), rel=1e-4)  # groups of equal size
    assert record.eigenvalues[0].value > record.eigenvalues[1].value > record.eigenvalues[3].value
    sharp = record.sharpness
    assert sharp.threshold == 20
    assert sharp.low == pytest.approx(record.eigenvalues[0].value + 0.1, abs=1e-3)
    assert sharp.unstable == (sharp.low > 20)
    first = record.eigenvalues[0]
    assert max(b.largest for b in record.layers) <= first.value + first.bound + 1e-5  # interlacing
    assert not (run / "basis").exists()
    shown = (run / "report.html").read_text()
    assert "which one is not proved" in shown
    assert "hold all that the quadrature leaves open" in shown
    density = record.density
    assert (density.trace.status, density.effective_rank.status) == ("statistical", "statistical")
    rank = density.effective_rank
    assert 1 <= rank.interval[0] <= rank.value <= rank.interval[1] <= record.objective.parameters
    low, high = density.negative_share.interval
    assert 0 <= low <= density.negative_share.value <= high <= 1
    kept = SpectrumRecord.model_validate(json.loads((run / "records.json").read_text())["records"][0])
    assert kept == record.model_copy(update={"cost": None})


def test_a_run_resumes_without_work_and_refuses_other_settings(whole, monkeypatch):
    run, record = whole
    monkeypatch.setattr(Curvature, "__call__", lambda self, v: pytest.fail("a product"))
    again = execute(SETTINGS.model_copy(update={"learning_rate": 1.0, "memory": 3.0}), run)[1]
    assert again.eigenvalues == record.eigenvalues
    assert again.sharpness.threshold == 2
    with pytest.raises(InputError, match="was begun with tolerance"):
        execute(SETTINGS.model_copy(update={"tolerance": 1e-3}), run)
    execute(SETTINGS, run)


@pytest.mark.thorough
def test_kills_and_a_resume_give_the_same_bytes(whole, tmp_path, monkeypatch):
    SHARING.refuse(monkeypatch)  # or it is over before it is killed
    chance = random.Random(1)
    kills = 0
    for _ in range(60):
        child = os.fork()
        if child == 0:
            execute(SETTINGS, tmp_path / "killed")
            os._exit(0)
        time.sleep(chance.uniform(0.05, 1.2))
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        if kills == 4:
            break
    assert kills == 4
    execute(SETTINGS, tmp_path / "killed")
    assert (tmp_path / "killed" / "records.json").read_bytes() == (whole[0] / "records.json").read_bytes()


def test_the_objective_s_matrix_under_a_mask(tmp_path):
    """Weyl: every eigenvalue of ∇²F lies between that of ∇²L and λ more; under a full mask it is λ more."""
    plain = SETTINGS.model_copy(update={"density_probes": 0, "held_out": 0, "layers": False, "learning_rate": None})
    found = {}
    for decay in ("all", "hf"):
        settings = plain.model_copy(update={"matrix": "objective", "decay": decay, "weight_decay": 2.0})
        found[decay] = [e.value for e in execute(settings, tmp_path / decay)[1].eigenvalues]
    loss = [e.value for e in execute(plain, tmp_path / "loss")[1].eigenvalues]
    assert np.allclose(np.array(found["all"]) - 2, loss, atol=1e-3)
    assert all(low - 1e-3 <= value <= low + 2 + 1e-3 for low, value in zip(loss, found["hf"], strict=True))
    assert any(value < low + 1.99 for low, value in zip(loss, found["hf"], strict=True))


def test_measure_deflates_with_a_run_s_vectors(villani, whole, tmp_path):
    words = ["measure", SETTINGS.model, "--trace", "hutchinson", "--groups", "4", "--sequences", "1", "--block", "16"]
    code, out, err = villani(*words, "--deflate", whole[0], "--run", tmp_path / "run", "--json")
    assert code == 0, err
    assert len(json.loads(out)["design"]["deflated"]) == 64
    code, out, err = villani(*words, "--run", tmp_path / "run")
    assert code == 2
    assert "deflation_checksum" in err
    code, _, err = villani(*words, "--deflate", tmp_path / "nowhere")
    assert code == 2
    assert "no eigenvectors there" in err
    code, _, err = villani("measure", SETTINGS.model, "--deflate", whole[0])
    assert code == 2
    assert "deflate goes with trace='hutchinson'" in err


def test_the_command_prints_a_table_or_a_record(villani, tmp_path):
    words = ["spectrum", "builtin:tiny?layers=1&width=8", *SMALL, *NOTHING, "--run", tmp_path / "run"]
    code, out, err = villani(*words)
    assert code == 0, err
    assert "That none was missed beyond is not proved" in out
    assert "of that rank" in out
    code, out, err = villani(*words, "--json")
    record = json.loads(out)
    assert (code, record["kind"], record["density"]) == (0, "spectrum", None)
    assert record["cost"]["seconds"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--weight-decay", "-1"], "weight_decay=-1"),
        (["--top", "0", "--bottom", "0"], "at least one eigenpair"),
        (["--tolerance", "2"], "tolerance=2"),
        (["--density-probes", "1"], "density_probes=1"),
        (["--density-shares", "5"], "density_shares=5"),
        (["--held-out", "2"], "held_out=2"),
        (["--finite", "--held-out", "3"], "no other data"),
        (["--learning-rate", "0"], "learning_rate=0"),
        (["--learning-rate", "1", "--operator", "gauss-newton"], "threshold for the Hessian"),
        (["--memory", "0"], "memory=0"),
        (["--memory", "0.01"], "one product took"),
        (["--basis", "4"], "basis=4"),
        (["--most", "2"], "most=2"),
        (["--operator", "fisher"], "fisher"),
    ],
)
def test_bad_input_is_told_in_one_line(villani, tmp_path, words, message):
    code, out, err = villani(
        "spectrum", "builtin:tiny?layers=1&width=8", *SMALL, *NOTHING, *words, "--run", tmp_path / "run"
    )
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    assert message in err.splitlines()[-1]


def test_hostile_names_are_escaped(whole):
    _, record = whole
    names = ["<script>alert(1)</script>", *record.layer_names[1:]]
    hostile = record.model_copy(update={"layer_names": names, "model": record.model.model_copy(update={"spec": "<b>"})})
    shown = page(run_records()(villani="0", title="<i>", records=[hostile]), {})
    assert "<script>alert" not in shown
    assert "<b> (" not in shown
