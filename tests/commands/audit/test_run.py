"""`villani audit` as a user types it: verdicts, witness, replay, resume, page, and every kind of bad input."""

import json
import os
import shlex
import shutil
import signal
import sqlite3
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import SHARING
from villani import cli
from villani.commands.audit.settings import AuditSettings
from villani.commands.audit.tables import outcomes
from villani.commands.content import run_records
from villani.commands.pages import page as page_of
from villani.commands.running import execute
from villani.objective.parameters import ParameterSpace

MODEL = "builtin:tiny?layers=1&width=8&context=32"
SMALL = ["--groups", "12", "--sequences", "1", "--block", "16", "--ray-groups", "3"]
QUICK = AuditSettings(
    model=MODEL, groups=12, sequences=1, block=16, temperature=10.0, search=1, ray_groups=3,
    rays=["parameters", "gradient"], threads=1,
)  # fmt: skip
LOOKS = {"checksum": 0, "fingerprint": 0, "check": 0}  # at all of θ, in the quick audit


@pytest.fixture(scope="module")
def audited(trained, tmp_path_factory):
    """A run directory and its record."""
    settings = AuditSettings(
        model=str(trained), tokenizer="builtin", groups=12, probes=2, sequences=4, block=32, temperature=10.0, search=1,
        ray_groups=3, rays=["parameters"], threads=1,
    )  # fmt: skip
    return execute(settings, tmp_path_factory.mktemp("audits") / "run")


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The same of an audit too small to refute; counts how often it looks at all of θ."""

    def counted(name, method):
        def looking(space):
            LOOKS[name] += 1
            return method(space)

        return looking

    with pytest.MonkeyPatch.context() as patch:
        for name in LOOKS:
            patch.setattr(ParameterSpace, name, counted(name, getattr(ParameterSpace, name)))
        return execute(QUICK, tmp_path_factory.mktemp("audits") / "quick")


def test_theta_is_hashed_and_checked_as_often_as_needed(quick):
    """Once for the record; before and after, to see that it is what it was; when it is loaded, and audited."""
    assert LOOKS == {"checksum": 1, "fingerprint": 2, "check": 2}


def test_rays_share_their_origin(quick):
    directory, record = quick
    at_origin = [ray.psi[0] for ray in record.differential_evidence.rays]
    assert len(at_origin) == 2
    assert at_origin[0] == at_origin[1]
    with sqlite3.connect(directory / "ledger.sqlite") as connection:
        keys = [key for (key,) in connection.execute("SELECT key FROM units WHERE key LIKE 'rays/%'")]
    assert len(keys) == 3 * (1 + 2 * 3)  # groups × (the origin and, on each ray, three radii)


def test_the_record_says_what_was_found(audited):
    directory, record = audited
    kept = run_records().model_validate_json((directory / "records.json").read_text())
    assert kept.records[0] == record.model_copy(update={"cost": None})
    assert [o.verdict for o in outcomes(record).values()][:3] == ["holds", "holds", "holds"]
    assert record.differential_growth.verdict == "refuted"
    assert record.villani is False
    assert [ray.direction for ray in record.differential_evidence.rays] == ["parameters"]
    assert record.differential_evidence.rays[0].radii[0] == 0
    assert all(orbit.theorem in "CD" for orbit in record.differential_evidence.orbits)
    worst = record.differential_evidence.orbits[0]
    assert worst.threshold.directions >= 1
    assert f"has about {worst.threshold.directions:.0f} directions" in record.differential_growth.reason
    assert "directions of noise" in (directory / "report.html").read_text()
    walk = worst.walk
    assert walk[0].scale == 1
    assert all(step.loss_change == 0 for step in walk)


def test_another_temperature_is_answered_from_the_ledger(quick, tmp_path):
    directory, record = quick
    shutil.copytree(directory, tmp_path / "run")
    asked = QUICK.model_copy(update={"temperature": 1.0})  # s enters no measurement
    _, again = execute(asked, tmp_path / "run")
    assert again.temperature == 1.0
    assert again.smoothness_evidence == record.smoothness_evidence
    for was, now in zip(record.differential_evidence.rays, again.differential_evidence.rays, strict=True):
        assert [p.parts.hessian_trace for p in was.psi] == [p.parts.hessian_trace for p in now.psi]


def test_a_killed_audit_resumes_to_the_same_bytes(quick, tmp_path, monkeypatch):
    SHARING.refuse(monkeypatch)  # or it is over before it is killed
    assert torch.get_num_threads() == 1, "forking is only safe without a thread pool"
    directory, _ = quick
    for seconds in (1.0, 2.0):
        child = os.fork()
        if child == 0:
            execute(QUICK, tmp_path / "killed")
            os._exit(0)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    execute(QUICK, tmp_path / "killed")
    assert (tmp_path / "killed" / "records.json").read_bytes() == (directory / "records.json").read_bytes()


def test_decay_on_matrices_alone_is_refuted_and_replayed(villani, tmp_path):
    """Biases that nothing holds back: a flat direction, a witness, and its replay on other groups."""
    run = tmp_path / "run"
    words = ["audit", MODEL, *SMALL, "--decay", "hf", "--rays", "none", "--search", "0", "--temperature", "1"]
    code, out, err = villani(*words, "--run", run, "--json")
    assert code == 0, err
    record = json.loads(out)
    assert record["villani"] is False
    assert record["growth"]["verdict"] == record["tails"]["verdict"] == "refuted"
    flat = record["coverage_evidence"]["flat"][0]
    assert all(change <= tolerance for change, tolerance in zip(flat["changes"], flat["tolerance"], strict=True))
    assert record["constants"] is None
    code, out, err = villani(
        "audit", "--replay", run / "witness.safetensors", "--seed", "5", "--run", tmp_path / "r", "--json"
    )
    again = json.loads(out)
    assert code == (0 if again["reproduced"] else 1), err
    assert again["flat"]["tensor"] == flat["tensor"]
    assert again["seed"] == 5
    assert any("criteria (ii) and (iii) are refuted again" in sentence for sentence in again["sentences"])
    page = (tmp_path / "r" / "report.html").read_text()
    assert "What was claimed, and what came out" in page


def test_a_witness_of_an_orbit_is_evaluated_again(trained, audited, tmp_path):
    directory, record = audited
    witness = str(directory / "witness.safetensors")
    settings = AuditSettings(model=str(trained), tokenizer="builtin", replay=witness, threads=1)
    where, again = execute(settings, tmp_path / "again")
    assert again.sentences
    assert again.orbit == record.differential_evidence.orbits[0].name
    assert again.found is not None
    assert [step.scale for step in again.walk] == [step.scale for step in record.differential_evidence.orbits[0].walk]
    assert all(step.loss_change == 0 for step in again.walk)
    assert cli.parse(shlex.split(again.provenance.command)[1:])[1] == settings
    assert json.loads((where / "records.json").read_text())["title"] == "villani audit --replay witness.safetensors"


def test_what_people_see(villani, audited, tmp_path):
    directory, _ = audited
    page = (directory / "report.html").read_text()
    for words in (
        "(i) F is smooth",
        "Orbits, from",
        "On straight rays",
        "What this page does not",
        "How it was audited",
    ):
        assert words.lower() in page.lower()
    code, out, err = villani(
        "audit", MODEL, *SMALL, "--rays", "none", "--search", "0", "--groups", "8", "--run", tmp_path / "run"
    )
    assert code == 0, err
    assert "(iv)" in out
    assert "The page:" in out


def test_nothing_in_a_record_becomes_markup(audited):
    _, record = audited
    nasty = "<script>alert(1)</script>"
    evidence = record.differential_evidence
    orbits = [orbit.model_copy(update={"name": nasty, "moved": [nasty]}) for orbit in evidence.orbits]
    told = record.model_copy(
        update={
            "model": record.model.model_copy(update={"spec": nasty, "description": nasty}),
            "differential_growth": record.differential_growth.model_copy(update={"reason": nasty}),
            "differential_evidence": evidence.model_copy(update={"orbits": orbits}),
        }
    )
    page = page_of(run_records()(villani="0", title=nasty, records=[told]), {})
    assert nasty not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        ([], ["give a model"]),
        ([MODEL, "--weight-decay", "-1"], ["weight_decay=-1", "≥ 0"]),
        ([MODEL, "--weight-decay", "0.1,0.2"], ["--weight-decay '0.1,0.2'", "expected a number"]),
        ([MODEL, "--temperature", "0"], ["temperature=0"]),
        ([MODEL, "--groups", "11"], ["groups=11", "at least 12", "8 will do with search=0"]),
        ([MODEL, "--groups", "7", "--search", "0"], ["groups=7", "at least 8"]),
        ([MODEL, "--search", "-1"], ["search=-1"]),
        ([MODEL, "--ray-groups", "2"], ["ray_groups=2"]),
        ([MODEL, *SMALL, "--rays", "sideways"], ["sideways", "unknown"]),
        (["no/such/model"], ["no/such/model"]),
        (["--replay", "nowhere.safetensors"], ["nowhere.safetensors", "no such file"]),
        ([MODEL, *SMALL, "--finite"], ["probes=1"]),
    ],
)
def test_bad_input(villani, tmp_path, words, fragments):
    code, out, err = villani("audit", *words, "--run", tmp_path / "run")
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    for fragment in fragments:
        assert fragment in err


def test_bad_witnesses(villani, audited, tmp_path):
    directory, _ = audited
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"not a tensor file")
    assert villani("audit", "--replay", junk)[0] == 2
    save_file({"orbit/x": torch.zeros(1)}, junk)
    code, _, err = villani("audit", "--replay", junk)
    assert code == 2
    assert "not a witness" in err
    code, _, err = villani(
        "audit", "builtin:tiny?seed=3", "--replay", directory / "witness.safetensors", "--run", tmp_path / "run"
    )
    assert code == 2
    assert "give the model that was audited" in err
    assert load_file(directory / "witness.safetensors")
