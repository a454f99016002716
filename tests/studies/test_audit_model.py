"""`villani audit` as a user types it: verdicts, witness, replay, resume, page, and every kind of bad input."""

import json
import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from villani.landscape.models import load_model
from villani.report.audit import outcomes
from villani.runs.content import RunRecords
from villani.studies.audit_model import AuditSettings, audit_model
from villani.studies.replay import replay

MODEL = "builtin:tiny?layers=1&width=8&context=32"
SMALL = ["--groups", "9", "--sequences", "1", "--block", "16", "--ray-groups", "3"]
SETTINGS = AuditSettings(
    model=MODEL, groups=9, sequences=2, block=16, temperature=10.0, ray_groups=3, rays=["random"], threads=1
)


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """A run directory and its record."""
    return audit_model(SETTINGS, tmp_path_factory.mktemp("audits") / "run")


def test_the_record_says_what_was_found(audited):
    directory, record = audited
    kept = RunRecords.model_validate_json((directory / "records.json").read_text())
    assert kept.records[0] == record.model_copy(update={"cost": None})
    assert [o.verdict for o in outcomes(record).values()][:3] == ["holds", "holds", "holds"]
    assert record.differential_growth.verdict in ("refuted", "not refuted")
    assert record.villani is (False if record.differential_growth.verdict == "refuted" else None)
    assert [ray.direction for ray in record.differential_evidence.rays] == ["random 0", "random 1"]
    assert record.differential_evidence.rays[0].radii[0] == 0
    assert all(orbit.theorem in "CD" for orbit in record.differential_evidence.orbits)
    walk = record.differential_evidence.orbits[0].walk
    assert walk[0].scale == 1
    assert all(step.loss_change == 0 for step in walk)


def test_the_same_settings_are_answered_from_the_ledger(audited):
    directory, _ = audited
    before = (directory / "records.json").read_bytes()
    start = time.perf_counter()
    audit_model(SETTINGS, directory)
    assert (directory / "records.json").read_bytes() == before
    again, _ = audit_model(SETTINGS.model_copy(update={"temperature": 1.0}), directory)  # s enters no measurement
    assert again == directory
    assert time.perf_counter() - start < 600
    audit_model(SETTINGS, directory)


def test_a_killed_audit_resumes_to_the_same_bytes(audited, tmp_path):
    assert torch.get_num_threads() == 1, "forking is only safe without a thread pool"
    directory, _ = audited
    for seconds in (2.0, 3.0):
        child = os.fork()
        if child == 0:
            audit_model(SETTINGS, tmp_path / "killed")
            os._exit(0)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    audit_model(SETTINGS, tmp_path / "killed")
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


def test_a_witness_of_an_orbit_is_evaluated_again(audited, tmp_path):
    directory, record = audited
    if record.witness is None:
        pytest.skip("nothing was refuted on this little text")
    _, again = replay(directory / "witness.safetensors", tmp_path / "again")
    assert again.orbit == record.differential_evidence.orbits[0].name
    assert again.found is not None
    assert [step.scale for step in again.walk] == [step.scale for step in record.differential_evidence.orbits[0].walk]
    assert all(step.loss_change == 0 for step in again.walk)


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
    code, out, err = villani("audit", MODEL, *SMALL, "--rays", "none", "--search", "0", "--run", tmp_path / "run")
    assert code == 0, err
    assert "(iv)" in out
    assert "The page:" in out


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        ([], ["give a model"]),
        ([MODEL, "--weight-decay", "-1"], ["weight_decay=-1", "≥ 0"]),
        ([MODEL, "--weight-decay", "0.1,0.2"], ["one number"]),
        ([MODEL, "--temperature", "0"], ["temperature=0"]),
        ([MODEL, "--groups", "8"], ["groups=8", "at least 9"]),
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
    directory, record = audited
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"not a tensor file")
    assert villani("audit", "--replay", junk)[0] == 2
    save_file({"orbit/x": torch.zeros(1)}, junk)
    code, _, err = villani("audit", "--replay", junk)
    assert code == 2
    assert "not a witness" in err
    if record.witness is None:
        return
    other = tmp_path / "other"
    load_model(f"{MODEL}&seed=3").model.save_pretrained(other)
    code, _, err = villani("audit", other, "--replay", directory / "witness.safetensors", "--run", tmp_path / "run")
    assert code == 2
    assert "give the model that was audited" in err
    assert load_file(directory / "witness.safetensors")
