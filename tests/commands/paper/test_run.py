"""`villani study paper`: its settings, what it averages, its verdicts, and a study that is stopped half-way."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.commands.paper.test_settings import PARTS, QUICK, empty_folder, write  # noqa: F401
from tests.conftest import dense, make_model, make_pool
from villani.commands.paper import points as paper_points
from villani.commands.paper import run as study
from villani.commands.paper.claims import (
    Found,
    claims,
    counterexample,
    linear_gaussian_bound,
    loosening_bound,
    sentence,
)
from villani.commands.paper.record import PaperRecord, TrendRecord
from villani.commands.paper.settings import PaperOptions, PaperSettings, read_settings
from villani.commands.recommend.settings import SweepSettings
from villani.commands.recommend.sweep import read_sweep_text, run_cells
from villani.commands.running import execute
from villani.errors import InputError
from villani.inputs.models import load_model
from villani.objective.objective import Objective
from villani.objective.parameters import ParameterSpace
from villani.statistics import over_seeds, resolved_sign
from villani.theory.catalogue import named
from villani.theory.exact import relative_entropy, solve
from villani.work.records import EstimateRecord
from villani.work.work import Work


def test_over_seeds_has_the_standard_error_of_a_mean():
    found = over_seeds([1.0, 2.0, 6.0])
    assert (found.value, found.n) == (3.0, 3)
    assert found.sem == pytest.approx(math.sqrt(7.0 / 3))
    low, high = found.interval()
    assert high - 3 == pytest.approx(4.302653 * found.sem, rel=1e-5)
    assert low == pytest.approx(6 - high)
    with pytest.raises(ValueError, match="at least 2"):
        over_seeds([1.0])


def test_signs_hold_all_at_once():
    generator = np.random.default_rng(0)
    draws = generator.standard_normal((2000, 20, 5))
    wrong = 0
    for family in draws:
        wrong += any(resolved_sign(*_mean(row), freedom=4, comparisons=20) for row in family)
    assert wrong < 2000 * 0.05 + 4 * math.sqrt(2000 * 0.05 * 0.95)
    assert wrong > 2000 * 0.02  # and not by refusing to say anything
    assert resolved_sign(-1.0, 0.1, 4) == -1
    assert resolved_sign(1.0, 0.1, 4) == 1


def _mean(row):
    return float(row.mean()), float(row.std(ddof=1)) / len(row) ** 0.5


def record(value, sem, n=3):
    return EstimateRecord(value=value, sem=sem, n=n, interval=(value - 2 * sem, value + 2 * sem), status="statistical")


def nothing(**given):
    empty = dict.fromkeys(
        ("criteria", "landscape", "spectra", "learned", "convergence", "training", "certificates"), ()
    )
    return Found(**({"parameters": 100, "estimators": None} | empty | given))


def bounds(*values):
    return [SimpleNamespace(weight_decay=d, path=SimpleNamespace(value=v)) for d, v in values]


def verdict_of(found, words):
    (one,) = [c for c in claims(found) if words in c.claim]
    return one.verdict


def test_the_claimed_constant_is_refuted_on_a_line():
    found = counterexample()
    assert (found.verdict, found.status) == ("refuted", "certified")
    assert "the claim is 2." in found.measured
    assert "86.2588" in found.measured  # THEORY.md §9, T14


@pytest.mark.parametrize("decay", [0.01, 0.1, 1.0, 10.0])
def test_an_exact_bound_that_loosens(decay):
    """E_ρL + KL/β from the exact law, against the closed form."""
    one = named("linear-gaussian", weight_decay=decay, beta=100.0)
    theta = np.linspace(-2, 4, 200_001)
    weights = np.exp(-100 * (0.5 * (theta - 1) ** 2 + decay / 2 * theta**2 - 0.5 * decay / (1 + decay)))
    risk = (0.5 * (theta - 1) ** 2 * weights).sum() / weights.sum()
    entropy = relative_entropy(one.potential, solve(one.potential, sobolev=False)).value
    assert linear_gaussian_bound(decay, 100.0) == pytest.approx(risk + entropy / 100, rel=1e-6)
    assert loosening_bound().verdict == "refuted"


def test_verdicts_follow_what_was_measured():
    assert verdict_of(nothing(certificates=bounds((0.1, 6.0), (1.0, 6.5))), "λ increases.") == "refuted"
    assert verdict_of(nothing(certificates=bounds((1.0, 6.0), (0.1, 6.5))), "λ increases.") == "consistent"
    assert verdict_of(nothing(certificates=bounds((0.1, 6.0), (1.0, 6.01))), "λ increases.") == "not identifiable"

    def learned(change):
        return [
            TrendRecord(optimizer="sgd", weight_decay=0.5, seeds=3, value=record(1, 0.1), change=change),
        ]

    assert verdict_of(nothing(learned=learned(record(-0.4, 0.01))), "spectrum") == "consistent"  # the shift wins
    assert verdict_of(nothing(learned=learned(record(-0.6, 0.01))), "spectrum") == "refuted"
    assert verdict_of(nothing(learned=learned(record(-0.6, 0.1))), "spectrum") == "not identifiable"
    assert [c.experiment for c in claims(nothing())] == ["exact", "exact"]  # what was not measured is not judged
    assert "confirmed" not in sentence(claims(nothing()))


def test_the_exact_reference_is_the_trace_of_the_dense_hessian(monkeypatch):
    model, pool = make_model("gpt2"), make_pool(2)
    for name, p in model.named_parameters():
        p.requires_grad_("ln_" in name)  # 48 coordinates are enough
    objective = Objective(model, pool, finite=True)
    monkeypatch.setattr(paper_points, "subject_at", lambda *_, **__: SimpleNamespace(objective=objective))
    settings = SimpleNamespace(estimators=SimpleNamespace(groups=2, sequences=2, exact=10_000), sweep=None)
    found = paper_points.reference_trace(settings, None, None, None)
    chosen = np.concatenate([np.full(p.numel(), "ln_" in name) for name, p in model.named_parameters()])
    each = [dense(model, group, second=True) for group in pool]
    truth = sum(np.diag(d.hessian)[chosen].sum() for d in each) / sum(d.tokens for d in each)
    assert chosen.sum() == objective.parameters.size
    assert float(found["value"]) == pytest.approx(truth, rel=1e-8)
    assert float(found["sem"]) == 0


def test_an_estimator_is_judged_by_its_errors_and_its_intervals():
    rows = [{"value": np.array(v), "sem": np.array(0.5), "freedom": np.array(1e6)} for v in (9.0, 10.0, 11.5, 8.0)]
    found = paper_points._estimator_point("hutchinson", rows, 10.0, 0.0)
    assert found.relative_error.value == pytest.approx(math.sqrt((1 + 0 + 2.25 + 4) / 4) / 10)
    assert found.covered == 1  # ± 0.98
    assert found.relative_sem == pytest.approx(0.05)
    assert paper_points._estimator_point("hutchinson", rows, 10.0, 1.0).covered == 4  # ± 2.19


def test_the_landscape_at_one_model(tmp_path):
    text = QUICK + '[landscape]\ngroups = 8\nsequences = 1\nray_groups = 3\nrays = ["parameters"]\nconfirmed = 1\n'
    settings = read_settings(Path(write(text)), None)
    with Work(tmp_path / "r") as work:
        work.open("sweep", "", {}, {})
        read = read_sweep_text(settings.sweep, work)
        (one,) = run_cells(settings.sweep, [("sgd", 0.1, 0)], work)
        found = paper_points.landscape_point(settings, one, read, work)
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


def test_a_study_that_is_stopped_goes_on_to_the_same_bytes(villani, monkeypatch, tmp_path):
    words = ["study", "paper", "--config", write(QUICK + PARTS), "--json", "--run"]
    code, out, err = villani(*words, "whole")
    assert code == 0, err
    found = PaperRecord.model_validate_json(out)
    assert found.cost.parts["estimators/hutchinson"] > 0
    assert {c.experiment for c in found.claims} == {"exact", "E2", "E3", "E4", "E5"}
    assert found.landscape == []
    assert len(found.spectra) == 4
    shifted = [p for p in found.spectra if p.objective_largest]
    assert [(p.weight_decay, p.seed) for p in shifted] == [(0.1, 0)]
    (twice,) = shifted
    slack = sum((e.interval[1] - e.interval[0]) / 2 for e in (twice.largest, twice.objective_largest))
    assert abs(twice.objective_largest.value - twice.largest.value - 0.1) <= slack
    assert {of.optimizer for of in found.choices} == {"sgd"}
    assert len(found.pathologies) == 4

    assert [p.weight_decay for p in found.spectra if p.density] == [0.0, 0.1]  # of the first training seed
    named = [rule for of in found.choices for rule in of.rules if rule.margin and rule.id != "held-out"]
    assert named
    assert all(f"{rule.name} +{rule.margin.value:.3g} " in found.choice_sentence for rule in named)

    start = ParameterSpace(load_model("builtin:tiny?layers=1&width=8&context=16").model, "all").checksum()
    nested = [*(tmp_path / "whole").glob("c*-*/records.json")]  # chains and certificates begin where training began
    assert len(nested) == 2
    for path in nested:
        (record,) = json.loads(path.read_text())["records"]
        assert record["provenance"]["parameter_checksum"] == start

    page = (tmp_path / "whole" / "report.html").read_text(encoding="utf-8")
    assert "E2: spectra of ∇²L and ∇²F" in page
    assert page.rindex("claim by claim") > page.rindex("What went in")

    calls = []

    def stopping(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return paper_points.pathology_point(*arguments)

    monkeypatch.setattr(study, "pathology_point", stopping)
    code, out, err = villani(*words, "stopped")
    assert (code, out) == (1, "")
    assert "resumes" in err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["villani"])
    done = []
    monkeypatch.setattr(study, "spectrum_point", lambda *a, **k: done.append(a))
    monkeypatch.setattr("villani.work.work.peak_memory", lambda _: 1)  # a process that did little
    directory, again = execute(PaperOptions(config="study.toml"), Path("stopped"))
    assert not done  # what was finished is not done again
    assert again.cost.peak_memory_bytes > 2**20  # what was measured before it was stopped
    whole, resumed = (tmp_path / name / "records.json" for name in ("whole", "stopped"))
    assert whole.read_bytes() == resumed.read_bytes()
    assert json.loads(resumed.read_text())["records"][0]["kind"] == again.kind

    other = read_settings(Path(write(QUICK.replace("batch = 2", "batch = 3") + PARTS)), None)
    with pytest.raises(InputError, match=r"was begun with sweep\.batch = 2, now 3"):
        execute(PaperOptions(study=other), directory)
    changed = read_settings(Path(write(QUICK + PARTS.replace("blocks = 3", "blocks = 4"))), None)
    looked = []
    monkeypatch.setattr(study, "pathology_point", lambda *a: looked.append(a) or paper_points.pathology_point(*a))
    execute(PaperOptions(study=changed), directory)
    assert (len(done), len(looked)) == (0, 4)  # what was changed is done again, and nothing else
    kept = read_settings(directory / "settings.toml", None)
    assert kept.model_dump() == changed.model_dump()


def test_what_is_left_is_told_over_everything(tmp_path):
    settings = PaperSettings(
        sweep=SweepSettings(
            model="builtin:tiny", weight_decay=[0.0, 0.1], seeds=3, steps=1, batch=1, optimizers=["sgd"],
            learning_rate={"sgd": 0.1},
        ),
        temperature=[1.0],
    )  # fmt: skip
    counts = study.units(settings)
    assert counts["sweep"] == 6
    with Work(tmp_path / "r") as work:
        work.open("study-paper", "", {}, {})
        overall = study.Overall(work, counts)
        work.put("sweep/sweep", {})
        work.put("sweep/cell/a", {}, seconds=2.0)
        assert overall.left() == pytest.approx(5 * 2.0 + 2.0 * study._NOMINAL["choice"] / study._NOMINAL["sweep"])
