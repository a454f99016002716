"""`villani certify --kind prequential`: the record against its own arithmetic, kills, and what is refused."""

import json
import math
import shlex

import numpy as np
import pytest
import torch

from tests.commands.certify.conftest import QUICK, SMALL
from villani.commands.certify import prequential
from villani.commands.certify.record import CertificateRecord
from villani.inputs.corpora import load_corpus
from villani.inputs.models import load_model
from villani.inputs.text import cut_corpus
from villani.inputs.tokenizers import load_tokenizer
from villani.theory.pac_bayes import bernstein, bernstein_rates, linear, linear_rates
from villani.work import stretches

WORDS = [*QUICK, "--kind", "prequential", "--batch", "3"]


@pytest.fixture
def certified(certified):
    """The record of a pass."""
    return lambda *words: certified("--kind", "prequential", "--batch", "3", *words)


def losses_by_hand(rate, decay, dtype=torch.float32):
    """ln p of the certified tokens in order, from a plain torch loop of SGD with decay towards the start."""
    model = load_model(SMALL, dtype=dtype).model.eval()
    blocks, _ = cut_corpus(load_corpus("builtin"), load_tokenizer("builtin"), 16, 2048)
    centre, scores = [p.detach().clone() for p in model.parameters()], []
    for first in range(0, 40, 3):
        rows = slice(first, min(first + 3, 40))
        targets = blocks.labels[rows, 1:]
        logits = model(input_ids=blocks.ids[rows]).logits[:, :-1]
        logs = torch.log_softmax(logits[targets >= 0], -1).gather(1, targets[targets >= 0][:, None])[:, 0]
        scores.append(logs.detach())
        if not rate:
            continue
        gradient = torch.autograd.grad(-logs.mean(), list(model.parameters()))
        with torch.no_grad():
            for p, c, g in zip(model.parameters(), centre, gradient, strict=True):
                p.copy_(p - rate * decay * (p - c) - rate * g)
    return torch.cat(scores).double().numpy()


def test_the_record_is_what_a_plain_loop_and_the_formulas_give(villani, certified):
    record = certified(
        "--learning-rate", "0.5,1", "--weight-decay", "0.2", "--clip", "none", "--alpha", "0.1,0.01",
        "--candidates", "2", "--run", "r",
    )  # fmt: skip
    start = losses_by_hand(0.0, 0.0)
    assert record["tokens"] == len(start)
    assert record["points"] == []
    level = 0.05 / 2 / 2 / 2  # candidates, η, α
    points = record["prequential"]["points"]
    assert [p["learning_rate"] for p in points] == [0.5, 1]
    for point in points:
        logs = losses_by_hand(point["learning_rate"], 0.2)
        assert point["loss"] == pytest.approx(-logs.mean(), rel=1e-5)
        bound, gain = point["certificate"], point["gain"]
        losses, before = (-np.log(0.9 * np.exp(x) + 0.1 / 2048) for x in (logs, start))
        assert bound["alpha"] == gain["alpha"] == 0.1
        assert bound["empirical"] == pytest.approx(losses.mean(), rel=1e-5)
        assert (bound["complexity"], bound["monte_carlo"]) == (0, 0)
        m, highest, span = len(logs), math.log(20480), math.log1p(9 * 2048)
        rates = linear_rates(m, span)
        wanted = min(
            linear(losses.mean(), m, 0.0, level / 2 / 32, b, span=span, lowest=highest - span, tokens=True).value
            for b in rates
        )
        for share in range(2, 10):
            c = share / 10 * math.log(2048)
            values = [
                bernstein(
                    losses.mean(), ((losses - c) ** 2).mean(), m, 0.0, level / 2 / 256, t, reach=highest - c,
                    highest=highest,
                ).value for t in bernstein_rates(highest - c)
            ]  # fmt: skip
            wanted = min(wanted, *values)
        assert bound["value"] == pytest.approx(wanted, rel=1e-5)
        d = losses - before
        worst = min(
            bernstein(d.mean(), (d**2).mean(), m, 0.0, level / 32, t, reach=span, highest=span).value
            for t in bernstein_rates(span)
        )
        assert gain["value"] == pytest.approx(-worst, rel=1e-4)
        assert point["below_start"] == pytest.approx(record["prior_bound"] - bound["value"])
        assert point["held_out_bound"] > point["held_out_loss"]["value"]
    segments = record["prequential"]["segments"]
    assert segments[-1]["tokens"] == record["tokens"]
    assert segments[0]["start"] == segments[0]["iterates"][0]  # nothing is learned yet
    page = open("r/report.html", encoding="utf-8").read()  # noqa: SIM115
    for words in ("frozen start, certified", "not about the last weights", "one λ, one η and one α", "Along the text"):
        assert words in page
    assert villani(*shlex.split(record["provenance"]["command"])[1:], "--run", "r")[0] == 0  # it resumes what it names


def test_a_pass_in_float64_is_that_of_a_float64_loop(certified):
    words = ("--dtype", "float64", "--learning-rate", "0.5", "--weight-decay", "0.2", "--clip", "none")
    record = certified(*words)
    assert record["model"]["dtype"] == "float64"
    start, pass_ = (losses_by_hand(rate, 0.2, torch.float64) for rate in (0.0, 0.5))
    assert record["prior_loss"] == pytest.approx(-start.mean(), rel=1e-12)
    assert record["prequential"]["points"][0]["loss"] == pytest.approx(-pass_.mean(), rel=1e-12)


def test_training_gains_and_says_so(villani, certified):
    words = ("--direction", "adam", "--learning-rate", "1e-2", "--blocks", "600")
    record = certified(*words)
    gain = record["prequential"]["points"][0]["gain"]
    assert 0.2 < gain["value"] < gain["empirical"]
    assert "A certified gain from training of" in record["sentence"]
    assert "without complexity" in record["sentence"]
    code, out, _ = villani("certify", SMALL, *WORDS, *words)
    assert code == 0
    assert "A certified gain" in out
    assert "excess" in out
    idle = certified("--learning-rate", "1e-9")
    assert idle["prequential"]["points"][0]["gain"]["value"] < 0
    assert "No gain from training is certified" in idle["sentence"]


def test_decay_to_zero_and_to_the_centre(certified):
    moved = [
        certified("--weight-decay", "5", "--learning-rate", "0.1", "--towards", place)["prequential"]["points"][0][
            "moved"
        ]
        for place in ("centre", "zero")
    ]
    assert moved[1] > 2 * moved[0]


def test_a_pass_that_is_killed_anywhere_resumes_to_the_same_bytes(villani, text, monkeypatch, tmp_path):
    words = [*WORDS, "--direction", "adam", "--prior", "text", "--prior-steps", "3", "--learning-rate", "1e-3,1e-2"]
    assert villani("certify", SMALL, *words, "--run", "a")[0] == 0
    monkeypatch.setattr(stretches, "PATIENCE", 0.0)  # a unit is one step
    write_state, advance, calls = stretches.write_state, prequential.advance, []

    def dies(*args, **named):
        calls.append(1)
        if len(calls) in (3, 4, 16, 31):
            raise KeyboardInterrupt
        return advance(*args, **named)

    def dies_after_writing(path, tensors):
        write_state(path, tensors)
        if len(calls) == 23:
            calls.append(1)
            raise KeyboardInterrupt

    monkeypatch.setattr(prequential, "advance", dies)
    monkeypatch.setattr(stretches, "write_state", dies_after_writing)
    codes = []
    while not codes or codes[-1]:
        codes.append(villani("certify", SMALL, *words, "--run", "b")[0])
        assert len(codes) < 9
    assert codes == [1] * 5 + [0]
    assert (tmp_path / "a/records.json").read_bytes() == (tmp_path / "b/records.json").read_bytes()
    assert not list((tmp_path / "b/states").iterdir())
    CertificateRecord.model_validate(json.loads((tmp_path / "b/records.json").read_text())["records"][0])


def test_a_state_that_is_gone_or_changed_is_refused(villani, text, monkeypatch, tmp_path):
    monkeypatch.setattr(stretches, "PATIENCE", 0.0)
    advance, calls = prequential.advance, []

    def dies(*args, **named):
        calls.append(1)
        if len(calls) == 18:
            raise KeyboardInterrupt
        return advance(*args, **named)

    monkeypatch.setattr(prequential, "advance", dies)
    assert villani("certify", SMALL, *WORDS, "--run", "b")[0] == 1
    (state,) = (tmp_path / "b/states").iterdir()
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    code, _, err = villani("certify", SMALL, *WORDS, "--run", "b")
    assert code == 2
    assert "not the file that the run left" in err
    state.unlink()
    assert villani("certify", SMALL, *WORDS, "--run", "b")[0] == 2
