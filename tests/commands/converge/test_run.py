"""`villani converge` as a user types it: potentials, models, kills, divergence, and bad input."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from transformers import Trainer

from villani.commands.converge.record import ConvergenceRecord
from villani.commands.converge.settings import ConvergeSettings
from villani.commands.pages import write_report
from villani.commands.running import execute, perform
from villani.commands.subject import load_subject
from villani.dynamics.langevin import advance
from villani.dynamics.network import NetworkTarget
from villani.errors import InputError
from villani.inputs.models import load_model
from villani.work import stretches
from villani.work.work import Work

MODEL = "builtin:tiny?width=8&layers=1"
SMALL = ["--groups", "6", "--sequences", "2", "--block", "16"]
FEW = {"groups": 6, "sequences": 2, "block": 16, "threads": 1}


def test_the_trap_is_seen_and_said(villani, tmp_path):
    """THEORY.md §4: the loss of the tied double well settles 200 times faster than the gap."""
    words = ["exact:tied", "--weight-decay", "0.1", "--temperature", "0.2", "--steps", "1500", "--walkers", "50"]
    code, out, err = villani("converge", *words, "--log-every", "10", "--run", tmp_path / "r", "--json")
    assert code == 0, err
    record = ConvergenceRecord.model_validate_json(out)
    point = record.points[0]
    assert point.exact_gap == pytest.approx(1.1593e-3, rel=1e-4)
    assert point.trap.startswith("The loss does not see the slow mode")
    fit = next(fit for fit in point.fits if fit.name == "objective")
    assert fit.rate.value / point.exact_gap > 100
    promised = next(rate for rate in point.rates if rate.name.startswith("as read at β = 1"))
    assert promised.verdict == "refuted"
    assert promised.status == "refuted"
    certified = next(rate for rate in point.rates if rate.name.startswith("C3"))
    assert (certified.verdict, certified.status) == ("consistent", "certified")
    page = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    shown = page[page.index("<main>") : page.index("</main>")]
    assert "The loss does not see the slow mode" in shown
    assert "confirmed by anything here" in shown
    before = (tmp_path / "r" / "report.html").read_bytes()
    assert write_report(tmp_path / "r").read_bytes() == before
    assert villani("converge", *words, "--log-every", "10", "--run", tmp_path / "r", "--json")[1] == out
    assert not (tmp_path / "r" / "state").exists()


def test_a_model_s_run_is_one_record_with_a_page(villani, tmp_path):
    words = ["converge", MODEL, *SMALL, "--steps", "12", "--chains", "3", "--log-every", "1", "--psi-every", "6"]
    words += ["--psi-groups", "3", "--coupled", "--weight-decay", "0.1,1", "--run", tmp_path / "r", "--json"]
    code, out, err = villani(*words)
    assert code == 0, err
    record = ConvergenceRecord.model_validate_json(out)
    assert [(p.weight_decay, p.temperature) for p in record.points] == [(0.1, 1e-3), (1.0, 1e-3)]
    point = record.points[0]
    assert [i.name for i in point.identities if i.ratio is None] == []
    assert {rate.verdict for rate in point.rates} <= {None, "not identifiable"}  # 12 steps prove nothing
    assert point.gradient_noise.worst_direction > point.gradient_noise.isotropic
    assert len(point.coupled.times) == 12
    assert record.cost.observing_seconds > 0
    assert record.design.batch == 2
    kept = json.loads((tmp_path / "r" / "records.json").read_text())["records"][0]
    assert kept["cost"] is None


@pytest.mark.parametrize("method", ["matched", "mala"])
def test_other_kernels_on_a_model(villani, tmp_path, method):
    words = ["converge", MODEL, *SMALL, "--steps", "3", "--chains", "1", "--method", method, "--start", "spread"]
    code, out, err = villani(*words, "--run", tmp_path / "r", "--json")
    assert code == 0, err
    record = ConvergenceRecord.model_validate_json(out)
    assert record.design.batch == (None if method == "mala" else 2)
    assert (record.points[0].acceptance is not None) == (method == "mala")


def test_undecayed_coordinates_have_no_law(villani, tmp_path, monkeypatch):
    words = ["converge", MODEL, *SMALL, "--steps", "4", "--chains", "1", "--decay", "hf", "--run", tmp_path / "r"]
    code, out, err = villani(*words, "--json")
    assert code == 0, err
    record = ConvergenceRecord.model_validate_json(out)
    assert record.undecayed > 0
    claimed = next(rate for rate in record.points[0].rates if "C8" in rate.name)
    assert claimed.verdict == "not identifiable"
    assert "do not decay" in claimed.sentence
    monkeypatch.setattr(Trainer, "get_decay_parameter_names", lambda *_: ["transformer.wte.weight"])
    code, _, err = villani(*words)  # the same words, but the Trainer has come to decay something else
    assert code == 2
    assert "was begun with decay = 'hf " in err


def test_divergence_keeps_what_was_measured_and_exits_with_0(villani, tmp_path):
    words = ["converge", MODEL, *SMALL, "--steps", "60", "--chains", "2", "--learning-rate", "15", "--log-every", "1"]
    code, out, err = villani(*words, "--run", tmp_path / "r", "--json")
    assert code == 0, err
    point = ConvergenceRecord.model_validate_json(out).points[0]
    assert {d.chain for d in point.diverged} == {0, 1}
    assert all(0 < d.learning_rate < 15 and d.step > 0 for d in point.diverged)
    assert point.sentence.endswith(f"the first at step {min(d.step for d in point.diverged)}.")
    loss = next(curve for curve in point.curves if curve.name == "loss")
    assert all(chain[0] is not None for chain in loss.chains)
    assert "--learning-rate" in (tmp_path / "r" / "report.html").read_text(encoding="utf-8")


def test_sigkill_and_resume_give_the_same_bytes(tmp_path):
    assert torch.get_num_threads() == 1, "forking is only safe without a thread pool"
    settings = ConvergeSettings(model=MODEL, steps=100, chains=2, momentum=0.5, **FEW)
    child = os.fork()
    if child == 0:
        try:
            stretches.PATIENCE = 0.15
            execute(settings, tmp_path / "killed")
        finally:
            os._exit(0)
    deadline, ended = time.monotonic() + 120, (0, 0)
    while time.monotonic() < deadline and not ended[0]:
        if [p for p in tmp_path.glob("killed/state/*-*.safetensors") if not p.name.startswith(".")]:
            break
        time.sleep(0.02)
        ended = os.waitpid(child, os.WNOHANG)
    time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL  # it was still at work
    assert not (tmp_path / "killed" / "records.json").exists()
    execute(settings, tmp_path / "killed")
    execute(settings, tmp_path / "whole")
    assert (tmp_path / "killed" / "records.json").read_bytes() == (tmp_path / "whole" / "records.json").read_bytes()


def test_every_chain_begins_at_rest(tmp_path):
    """The second of two chains with momentum is the one that is walked by itself."""
    settings = ConvergeSettings(model=MODEL, steps=6, chains=2, momentum=0.9, log_every=1, **FEW)
    point = execute(settings, tmp_path / "r")[1].points[0]
    settings = settings.filled()
    objective = load_subject(settings, Work(), 0.1).objective
    target = NetworkTarget(objective, batch=settings.batch, seed=settings.seed)
    velocity = [torch.zeros_like(tensor) for tensor in target.tensors]
    with target.running():
        piece = advance(target, settings.kernel(0.1, 1e-3), seed=settings.seed, chain=1, velocity=velocity)
    loss = next(curve for curve in point.curves if curve.name == "loss")
    assert loss.chains[1] == [row[0, 0] for row in piece.rows]


@pytest.mark.parametrize("where", ["before the row", "after the row"])
def test_a_stop_at_any_moment_of_a_checkpoint_resumes(tmp_path, monkeypatch, where):
    settings = ConvergeSettings(model=MODEL, steps=8, chains=1, **FEW)
    execute(settings, tmp_path / "whole")
    monkeypatch.setattr(stretches, "PATIENCE", -1.0)  # a unit a step
    write, count = stretches.write_state, 0

    def stopped(path, tensors):
        nonlocal count
        write(path, tensors)
        count += path.name != "start.safetensors"
        if count == 4:
            raise KeyboardInterrupt

    def unlinked(path, missing_ok=False):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "before the row":
            patch.setattr(stretches, "write_state", stopped)
        else:
            patch.setattr(stretches.Path, "unlink", unlinked)
        with pytest.raises(KeyboardInterrupt):
            execute(settings, tmp_path / "r")
    execute(settings, tmp_path / "r")
    assert (tmp_path / "r" / "records.json").read_bytes() == (tmp_path / "whole" / "records.json").read_bytes()


def test_lost_weights_are_told(tmp_path, monkeypatch):
    settings = ConvergeSettings(model=MODEL, steps=8, chains=1, **FEW)
    monkeypatch.setattr(stretches, "PATIENCE", -1.0)
    put = Work.put

    def stopped(self, key, arrays, **cost):
        put(self, key, arrays, **cost)
        if key == "3":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Work, "put", stopped)
        with pytest.raises(KeyboardInterrupt):
            execute(settings, tmp_path / "r")
    for path in (tmp_path / "r" / "state").glob("*-4.safetensors"):
        path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="the weights that the chain stopped at are not there"):
        execute(settings, tmp_path / "r")


def test_another_weight_decay_shares_the_run_and_another_step_does_not(tmp_path):
    settings = ConvergeSettings(model=MODEL, steps=4, chains=1, **FEW)
    first = execute(settings, tmp_path / "r")[1].points[0]
    both = execute(settings.model_copy(update={"weight_decay": [0.1, 1.0], "chains": 2}), tmp_path / "r")[1]
    loss = [next(c for c in p.curves if c.name == "loss").chains[0] for p in (first, *both.points)]
    assert loss[0] == loss[1]
    assert not np.array_equal(loss[1][1:], loss[2][1:]) or len(loss[0]) == 1
    with pytest.raises(InputError, match="was begun with steps"):
        execute(settings.model_copy(update={"steps": 5}), tmp_path / "r")


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["exact:nosuch"], ["'nosuch'"]),
        (["exact:tied", "--weight-decay", "-1"], ["weight_decay=-1"]),
        (["exact:tied", "--temperature", "0"], ["temperature=0"]),
        (["exact:tied", "--set", "b=1"], ["no such parameter"]),
        (["exact:tied", "--psi-every", "3"], ["leave it out"]),
        (["exact:tied", "--walkers", "0"], ["walkers=0"]),
        (["exact:tied", "--learning-rate", "-1"], ["learning_rate=-1"]),
        (["exact:tied", "--learning-rate", "nan"], ["learning_rate=nan"]),
        (["exact:tied", "--momentum", "2"], ["momentum=2"]),
        ([MODEL, "--weight-decay", "-1"], ["weight_decay=-1"]),
        ([MODEL, "--temperature", "x"], ["--temperature", "expected numbers"]),
        ([MODEL, "--learning-rate", "30"], ["ηλ ≥ 2"]),
        ([MODEL, "--steps", "0"], ["steps=0"]),
        ([MODEL, "--chains", "0"], ["chains=0"]),
        ([MODEL, "--log-every", "0"], ["log_every=0"]),
        ([MODEL, "--psi-groups", "2"], ["psi_groups=2"]),
        ([MODEL, "--method", "sgd"], ["sgd"]),
        ([MODEL, "--method", "mala", "--momentum", "0.5"], ["not with mala"]),
        ([MODEL, "--set", "a=1"], ["go with exact:"]),
        ([MODEL, "--walkers", "3"], ["go with exact:"]),
        ([MODEL, "--start", "spread", "--weight-decay", "0"], ["no prior"]),
        ([MODEL, "--seed", "-1"], ["seed=-1"]),
        ([MODEL, "--psi-groups", "7"], ["--psi-groups is not used without --psi-every"]),
        ([MODEL, "--finite"], ["--finite"]),
        (["no/such/folder"], ["no/such/folder"]),
    ],
)
def test_bad_input_is_one_line(villani, tmp_path, monkeypatch, words, fragments):
    monkeypatch.chdir(tmp_path)
    code, out, err = villani("converge", *words)
    lines = [line for line in err.splitlines() if line.startswith("villani: ")]
    assert code == 2, (code, err)
    assert out == ""
    assert len(lines) == 1
    assert "Traceback" not in err
    for fragment in fragments:
        assert fragment in lines[0], lines[0]
    assert list(tmp_path.iterdir()) == []


OF_A_MODEL = [
    ["--text", "ptb"], ["--tokenizer", "gpt2"], ["--special-tokens", "bos"], ["--decay", "hf"], ["--groups", "3"],
    ["--sequences", "3"], ["--block", "9"], ["--dtype", "float64"], ["--device", "cpu"], ["--threads", "1"],
    ["--micro-tokens", "9"], ["--full"], ["--coupled"], ["--psi-groups", "9"], ["--trust-remote-code"],
    ["--allow-unused", "x"], ["--data", "."],
]  # fmt: skip


@pytest.mark.parametrize("words", OF_A_MODEL, ids=lambda words: words[0])
def test_a_potential_takes_no_option_of_a_model(villani, tmp_path, words):
    code, out, err = villani("converge", "exact:tied", *words, "--run", tmp_path / "r")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == f"villani: {words[0]} is not used for a potential: leave it out"
    assert not (tmp_path / "r").exists()


def test_settings_of_a_potential_are_checked_without_torch():
    code = """
import sys
from villani.commands.converge.settings import ConvergeSettings
print(ConvergeSettings.given(model="exact:tied").filled().steps, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4000", "False"]


def test_a_model_shared_with_another_command_gets_its_weights_back(tmp_path):
    settings = ConvergeSettings(model=MODEL, steps=4, chains=1, learning_rate=0.1, **FEW)
    with Work(tmp_path / "r") as work:
        _, record = perform(settings, work)
        (loaded,) = [value for key, value in work.shared.items() if key[0] == "model"]
    fresh = load_model(MODEL).model.state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in loaded.model.state_dict().items())
    loss = next(curve for curve in record.points[0].curves if curve.name == "loss")
    assert len(loss.chains[0]) == 1  # 4 steps were made, of which the first is logged


def test_the_status_of_a_gap_is_carried_on(tmp_path):
    """A spike that points miss: the gap is certified and refutes; a plane's is estimated, and its floor refutes."""
    small = {"steps": 40, "chains": 2, "walkers": 4}
    spike = ConvergeSettings(
        model="exact:14*exp(-(w-0.7077)**2/(2*0.001**2))", weight_decay=[0.1], temperature=[2.0], learning_rate=1e-8,
        **small,
    )  # fmt: skip
    point = execute(spike, tmp_path / "spike")[1].points[0]
    assert point.exact_gap == pytest.approx(1 / 1639.0313, rel=1e-7)
    assert point.exact_gap_status == "certified"
    rates = {rate.name: rate for rate in point.rates}
    claim = next(rate for name, rate in rates.items() if "C8" in name)
    assert (claim.verdict, claim.status) == ("refuted", "refuted")
    assert all(rate.verdict != "refuted" for name, rate in rates.items() if "C8" not in name)
    plane = ConvergeSettings(model="exact:ce2", **small)
    point = execute(plane, tmp_path / "plane")[1].points[0]
    assert point.exact_gap_status == "estimated"
    rates = {rate.name: rate for rate in point.rates}
    assert rates["exact gap"].status == "estimated"
    assert rates["gap, by intervals"].status == "certified"
    claim = next(rate for name, rate in rates.items() if "C8" in name)
    assert claim.verdict == "refuted"
    assert "at most" in claim.sentence
