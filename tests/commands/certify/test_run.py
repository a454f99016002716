"""`villani certify MODEL`: certificates, what they compete with, and resuming to the same bytes."""

import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.commands.certify.conftest import QUICK, SMALL
from villani.commands import subject
from villani.commands.certify import path as path_kind
from villani.commands.certify.certified_text import moments
from villani.commands.certify.path import Spending
from villani.commands.certify.record import CertificateRecord
from villani.commands.certify.results import ScoredModel
from villani.commands.certify.settings import CertifySettings
from villani.commands.running import perform
from villani.dynamics.certificate import Moments, token_bound
from villani.inputs.corpora import load_corpus
from villani.inputs.models import load_model
from villani.inputs.text import cut_corpus
from villani.inputs.tokenizers import load_tokenizer
from villani.theory.complexity import NoisyDescent
from villani.theory.constants import Smoothing
from villani.work.work import Work

WORDS = [*QUICK, "--steps", "4", "--batch", "2"]


@pytest.fixture
def certified(certified):
    """The record of a few steps."""
    return lambda *words: certified("--steps", "4", "--batch", "2", *words)


def test_a_record_with_all_that_it_competes_with(certified):
    record = certified("--weight-decay", "0.5,2", "--chains", "3", "--run", "r")
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


def test_one_chain_has_the_path_certificate_alone(certified):
    record = certified("--weight-decay", "0", "--start", "centre", "--clip", "none")
    assert "--clip none" in record["provenance"]["command"]
    point = record["points"][0]
    assert point["chain"] is None
    assert point["clip_complexity"] is None
    assert "one chain tells nothing" in point["refusals"][0]
    refused = certified("--weight-decay", "1", "--start", "centre", "--chains", "2")["points"][0]
    assert refused["chain"] is None
    assert "start at the centre" in refused["refusals"][0]


def test_the_prior_learns_from_the_part_that_is_not_certified(certified):
    record = certified("--prior", "text", "--prior-steps", "30", "--temperature", "1e-8")
    plain = certified("--temperature", "1e-8")
    assert record["prior_loss"] < plain["prior_loss"] - 0.05
    assert record["cost"]["peak_memory_bytes"] > 2**20
    assert "comes before all certified tokens" in record["prior"]
    assert record["text"]["token_checksum"] != plain["text"]["token_checksum"]


def test_a_killed_run_resumes_to_the_same_bytes(villani, text, monkeypatch, tmp_path):
    words = [*WORDS, "--chains", "2", "--prior", "text", "--prior-steps", "3"]
    assert villani("certify", SMALL, *words, "--run", "a")[0] == 0
    run_chain, calls = path_kind.run_chain, []

    def dies(*args, **named):
        calls.append(named["index"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run_chain(*args, **named)

    monkeypatch.setattr(path_kind, "run_chain", dies)
    assert villani("certify", SMALL, *words, "--run", "b")[0] == 1
    monkeypatch.setattr(path_kind, "run_chain", run_chain)
    assert villani("certify", SMALL, *words, "--run", "b")[0] == 0
    assert calls == [0, 1]
    assert (tmp_path / "a/records.json").read_bytes() == (tmp_path / "b/records.json").read_bytes()
    CertificateRecord.model_validate(json.loads((tmp_path / "b/records.json").read_text())["records"][0])
    code, _, err = villani("certify", SMALL, *words, "--run", "b", "--steps", "5")
    assert code == 2
    assert "was begun with" in err


def test_a_search_is_paid_for(certified):
    plain = certified()["points"][0]["path"]
    paid = certified("--candidates", "1000000")["points"][0]["path"]
    assert paid["delta"] == pytest.approx(plain["delta"] / 1e6)
    assert paid["complexity"] == plain["complexity"]
    assert paid["excess"] >= plain["excess"]


def test_delta_is_never_overspent():
    for chains in (1, 2, 50):
        spent = Spending.of(0.05, 3, 2, chains)
        each = spent.path + spent.chain + spent.monte_carlo + spent.measured_complexity
        assert each * 3 * 2 == pytest.approx(0.05)


def test_the_losses_of_a_float64_model_are_not_rounded(certified):
    record = certified("--dtype", "float64", "--temperature", "1e-8")
    model = load_model(SMALL, dtype=torch.float64).model.eval()
    blocks, _ = cut_corpus(load_corpus("builtin"), load_tokenizer("builtin"), 16, 2048)
    with torch.no_grad():
        logs = torch.log_softmax(model(input_ids=blocks.ids[:40]).logits[:, :-1], -1)
    targets = blocks.labels[:40, 1:]
    mean = -logs[targets >= 0].gather(1, targets[targets >= 0][:, None]).mean()
    assert record["model"]["dtype"] == "float64"
    assert record["prior_loss"] == pytest.approx(float(mean), rel=1e-13)


@pytest.mark.parametrize("kind", ["path", "prequential"])
def test_model_and_text_are_loaded_once_and_come_back_as_they_were(kind, text, monkeypatch, tmp_path):
    calls, loaded = Counter(), []

    def counted(name, function):
        def call(*args, **named):
            calls[name] += 1
            return function(*args, **named)

        return call

    def model_loader(*args, **named):
        assert named["trust_remote_code"] is True
        made = load_model(*args, **named)
        loaded.append(made.model)
        return made

    def tokenizer_loader(*args, **named):
        tokenizer = load_tokenizer(*args, **named)
        return replace(tokenizer, encode=counted("encode", tokenizer.encode))

    monkeypatch.setattr(subject, "load_model", counted("model", model_loader))
    monkeypatch.setattr(subject, "load_corpus", counted("corpus", load_corpus))
    monkeypatch.setattr(subject, "load_tokenizer", counted("tokenizer", tokenizer_loader))
    own = {"chains": 2, "steps": 2, "weight_decay": [0.5, 1]} if kind == "path" else {"learning_rate": [0.1, 0.2]}
    settings = CertifySettings(
        model=SMALL, kind=kind, held_out="README.md", block=16, blocks=12, prior="text", prior_share=0.01,
        prior_steps=2, batch=3, trust_remote_code=True, **own,
    )  # fmt: skip
    with Work(tmp_path / "both") as work:
        work.open("both", SMALL, {}, {})
        first, second = (perform(settings, work.inner(name))[1] for name in ("first", "second"))
    assert calls == {"model": 1, "corpus": 2, "tokenizer": 1, "encode": 2}  # there are two texts
    assert first.model_copy(update={"cost": None}) == second.model_copy(update={"cost": None})
    again, fresh = subject.load(settings, work).model, load_model(SMALL).model
    assert again is loaded[0]  # whoever loads it next has it as it was
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), fresh.parameters(), strict=True))


def test_the_held_out_bound_of_as_many_tokens_is_that_bound_at_their_number(certified):
    logs, counts = np.log(np.random.default_rng(0).uniform(0.01, 0.9, 40)), np.full(4, 10.0)
    scored = ScoredModel(moments("held_out", logs, counts, [0.1], 50), [0.1])
    losses = -np.log(0.9 * np.exp(logs) + 0.1 / 50)
    one = Moments(Smoothing(50, 0.1), losses.mean(), (losses**2).mean())
    assert scored.bound(0.05) == pytest.approx(token_bound(one, 40, 0.0, 0.05).value)
    assert scored.bound(0.05, tokens=4000) == pytest.approx(token_bound(one, 4000, 0.0, 0.05).value)
    record = certified("--steps", "2", "--batch", "2", "--alpha", "0.1", "--blocks", "90")
    (point,) = record["points"]
    assert record["held_out_tokens"] < record["tokens"]
    assert point["held_out_loss"]["value"] < point["held_out_bound_of_as_many"] < point["held_out_bound"]
