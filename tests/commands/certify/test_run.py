"""`villani certify MODEL`: certificates, what they compete with, and resuming to the same bytes."""

import json
import math

import numpy as np
import pytest

from villani.commands.certify import run as study
from villani.commands.certify.record import CertificateRecord
from villani.commands.certify.results import Spending
from villani.theory.complexity import NoisyDescent

SMALL = "builtin:tiny?layers=1&width=8&context=16"
QUICK = ["--block", "16", "--blocks", "40", "--steps", "4", "--batch", "2", "--held-out", "README.md"]


@pytest.fixture
def text(tmp_path, monkeypatch):
    """A text to hold out, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("The quick brown fox jumps over the lazy dog. " * 30)


def certified(villani, *words):
    code, out, err = villani("certify", SMALL, *QUICK, *words, "--json")
    assert code == 0, err
    return json.loads(out)


def test_a_record_with_all_that_it_competes_with(villani, text):
    record = certified(villani, "--weight-decay", "0.5,2", "--chains", "3", "--run", "r")
    assert record["kind"] == "certificate"
    assert 500 < record["tokens"] < 40 * 15  # some documents end within a block
    assert record["log_vocabulary"] == pytest.approx(math.log(2048))
    assert [p["weight_decay"] for p in record["points"]] == [0.5, 2]
    for point in record["points"]:
        path, law = point["path"], point["chain"]
        assert path["value"] == pytest.approx(path["empirical"] + path["excess"])
        assert path["bits"] == pytest.approx(path["value"] / math.log(2))
        assert path["value"] > point["training_loss"]
        assert path["monte_carlo"] == 0
        assert law["monte_carlo"] > 0
        assert law["complexity"] <= point["clip_complexity"] * (1 + 1e-9)
        assert (path["status"], law["status"]) == ("certified", "statistical")
        assert path["delta"] + law["delta"] <= 0.05 / 2
        assert point["held_out_bound"] > point["held_out_loss"]["value"]
        rates = np.full(4, 0.1)
        chain = NoisyDescent(point["weight_decay"], 1e-4 / (2 * point["weight_decay"]), rates)
        assert point["clip_complexity"] == pytest.approx(chain.clipped(1.0).value)
        assert point["path_cost"] <= chain.path_cost(np.ones(4)) * (1 + 1e-6)
    page = open("r/report.html", encoding="utf-8").read()  # noqa: SIM115
    for words in ("Certified, and what it competes with", "not a statement about new documents", "How δ is spent"):
        assert words in page
    assert "vacuous" in record["sentence"]


def test_one_chain_has_the_path_certificate_alone(villani, text):
    record = certified(villani, "--weight-decay", "0", "--start", "centre", "--clip", "none")
    assert "--clip none" in record["provenance"]["command"]
    point = record["points"][0]
    assert point["chain"] is None
    assert point["clip_complexity"] is None
    assert "one chain tells nothing" in point["refusals"][0]
    refused = certified(villani, "--weight-decay", "1", "--start", "centre", "--chains", "2")["points"][0]
    assert refused["chain"] is None
    assert "start at the centre" in refused["refusals"][0]


def test_the_prior_learns_from_the_part_that_is_not_certified(villani, text):
    record = certified(villani, "--prior", "text", "--prior-steps", "30", "--temperature", "1e-8")
    plain = certified(villani, "--temperature", "1e-8")
    assert record["prior_loss"] < plain["prior_loss"] - 0.05
    assert record["cost"]["peak_memory_bytes"] > 2**20
    assert "comes before all certified tokens" in record["prior"]
    assert record["text"]["token_checksum"] != plain["text"]["token_checksum"]


def test_a_killed_run_resumes_to_the_same_bytes(villani, text, monkeypatch, tmp_path):
    words = [*QUICK, "--chains", "2", "--prior", "text", "--prior-steps", "3"]
    assert villani("certify", SMALL, *words, "--run", "a")[0] == 0
    run_chain, calls = study.run_chain, []

    def dies(*args, **named):
        calls.append(named["index"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run_chain(*args, **named)

    monkeypatch.setattr(study, "run_chain", dies)
    assert villani("certify", SMALL, *words, "--run", "b")[0] == 1
    monkeypatch.setattr(study, "run_chain", run_chain)
    assert villani("certify", SMALL, *words, "--run", "b")[0] == 0
    assert calls == [0, 1]
    assert (tmp_path / "a/records.json").read_bytes() == (tmp_path / "b/records.json").read_bytes()
    CertificateRecord.model_validate(json.loads((tmp_path / "b/records.json").read_text())["records"][0])
    code, _, err = villani("certify", SMALL, *words, "--run", "b", "--steps", "5")
    assert code == 2
    assert "was begun with" in err


def test_a_search_is_paid_for(villani, text):
    plain = certified(villani)["points"][0]["path"]
    paid = certified(villani, "--candidates", "1000000")["points"][0]["path"]
    assert paid["delta"] == pytest.approx(plain["delta"] / 1e6)
    assert paid["complexity"] == plain["complexity"]
    assert paid["excess"] >= plain["excess"]


def test_delta_is_never_overspent():
    for chains in (1, 2, 50):
        spent = Spending.of(0.05, 3, 2, chains)
        each = spent.path + spent.chain + spent.monte_carlo + spent.measured_complexity
        assert each * 3 * 2 == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["--weight-decay", "-1"], "weight_decay=-1"),
        (["--weight-decay", "0"], "no prior to start in"),
        (["--weight-decay", "1,1"], "different numbers"),
        (["--weight-decay", "50"], "η < 2/λ"),
        (["--temperature", "0"], "needs noise"),
        (["--learning-rate", "0"], "learning_rate=0"),
        (["--steps", "0"], "steps=0"),
        (["--delta", "1"], "delta=1"),
        (["--alpha", "0"], "alpha=0"),
        (["--clip", "x"], "expected numbers"),
        (["--clip", "-1"], "clip=-1"),
        (["--train", "nothing"], "matches no parameter"),
        (["--prior", "text", "--prior-share", "0"], "prior_share=0"),
        (["--block", "99"], "accepts at most 16"),
        (["--held-out", "absent.txt"], "no such file"),
        (["--chains", "0"], "chains=0"),
    ],
)
def test_bad_input_is_one_line(villani, text, words, fragment):
    code, out, err = villani("certify", SMALL, *QUICK, *words)
    assert code == 2
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("villani: ")]
    assert len(lines) == 1
    assert fragment in lines[0]


def test_a_checkpoint_needs_the_users_word(villani, text, checkpoint):
    code, _, err = villani("certify", checkpoint, *QUICK, "--tokenizer", "builtin")
    assert code == 2
    assert "may have seen the text" in err
    code, out, _ = villani("certify", checkpoint, *QUICK, "--tokenizer", "builtin", "--prior", "given", "--json")
    assert code == 0
    assert "on the user's word" in json.loads(out)["prior"]
