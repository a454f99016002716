"""`villani certify --iid-documents`: the mixture against a plain loop, its folder, kills, and what is refused."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.commands.certify.conftest import SMALL
from villani.commands.certify import prequential
from villani.dynamics.mixture import Mixture
from villani.inputs.corpora import load_corpus
from villani.inputs.models import load_model
from villani.inputs.text import cut_corpus
from villani.inputs.tokenizers import load_tokenizer
from villani.theory.pac_bayes import bernstein, bernstein_rates, linear, linear_rates
from villani.work import stretches

FILES = 24
WORDS = ["--kind", "prequential", "--iid-documents", "--iterates", "4", "--block", "16", "--batch", "3"]


@pytest.fixture
def documents(tmp_path, monkeypatch):
    """Files of random sentences, drawn alike; their names joined with commas."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    words = ["the", "of", "a", "in", "to", "model", "weight", "loss", "decay", "noise", "step", "token", "and", "text"]
    for number in range(FILES):
        count = int(generator.integers(12, 40))
        (tmp_path / f"d{number:02}.txt").write_text(" ".join(generator.choice(words, size=count)), encoding="utf-8")
    return ",".join(f"d{number:02}.txt" for number in range(FILES))


def plain_loop(text, rate, decay, batch, iterates):
    """Iterates and logs by hand: documents shuffled, the last tenth held out, rounds scored whole, then SGD steps."""
    model = load_model(SMALL, dtype=torch.float64).model.eval()
    blocks, owners = cut_corpus(load_corpus(text), load_tokenizer("builtin"), 16, 2048)
    key = np.random.SeedSequence(7, spawn_key=(24,))
    order = np.random.Generator(np.random.Philox(key)).permutation(FILES)
    own = [(blocks.ids[owners == d], blocks.labels[owners == d]) for d in order]
    held, own = own[-2:], own[:-2]
    centre, members, losses = [p.detach().clone() for p in model.parameters()], [], []

    def probabilities(document):
        ids, labels = document
        with torch.no_grad():
            p = torch.softmax(model(input_ids=ids).logits[:, :-1], -1).gather(2, ids[:, 1:, None])[..., 0]
        return p[labels[:, 1:] >= 0].numpy()

    mixed, edges = [0.0] * len(held), np.linspace(0, len(own), iterates + 1).round().astype(int)
    for first, last in pairwise(edges):
        part = own[first:last]
        members.append([p.detach().clone() for p in model.parameters()])
        losses += [-np.log(0.9 * probabilities(d) + 0.1 / 2048).mean() for d in part]
        mixed = [m + len(part) / len(own) * probabilities(d) for m, d in zip(mixed, held, strict=True)]
        ids, labels = (torch.cat([d[k] for d in part]) for k in (0, 1))
        for start in range(0, len(ids), batch):
            targets = labels[start : start + batch, 1:]
            logits = model(input_ids=ids[start : start + batch]).logits[:, :-1]
            gradient = torch.autograd.grad(
                torch.nn.functional.cross_entropy(logits[targets >= 0], targets[targets >= 0]), list(model.parameters())
            )
            with torch.no_grad():
                for p, c, g in zip(model.parameters(), centre, gradient, strict=True):
                    p.copy_(p - rate * decay * (p - c) - rate * g)
    held_losses = [-np.log(0.9 * m + 0.1 / 2048).mean() for m in mixed]
    return np.array(losses), np.array(held_losses), held, members


def test_the_mixture_is_what_a_plain_loop_and_the_formulas_give(villani, documents, tmp_path):
    code, out, err = villani(
        "certify", SMALL, *WORDS, "--text", documents, "--tokenizer", "builtin", "--dtype", "float64", "--seed", "7",
        "--learning-rate", "0.5", "--weight-decay", "0.2", "--clip", "none", "--alpha", "0.1", "--run", "r", "--json",
    )  # fmt: skip
    assert code == 0, err
    record = json.loads(out)
    mixture = record["prequential"]["points"][0]["mixture"]
    losses, held_losses, held, members = plain_loop(documents, 0.5, 0.2, 3, 4)
    n, highest, span = len(losses), math.log(20480), math.log1p(9 * 2048)
    assert (mixture["documents"], mixture["held_out_documents"], n) == (22, 2, 22)
    assert mixture["shares"] == pytest.approx([6 / 22, 5 / 22, 5 / 22, 6 / 22], abs=0.05)
    assert sum(mixture["shares"]) == pytest.approx(1)
    bound = mixture["certificate"]
    assert bound["empirical"] == pytest.approx(losses.mean(), rel=1e-9)
    one, two = losses.mean(), (losses**2).mean()
    wanted = min(
        linear(one, n, 0.0, 0.05 / 2 / 32, b, span=span, lowest=highest - span).value for b in linear_rates(n, span)
    )
    for share in range(2, 10):
        c = share / 10 * math.log(2048)
        wanted = min(
            wanted,
            *(
                bernstein(
                    one, two - 2 * c * one + c * c, n, 0.0, 0.05 / 2 / 256, t, reach=highest - c, highest=highest
                ).value for t in bernstein_rates(highest - c)
            ),
        )  # fmt: skip
    assert bound["value"] == pytest.approx(wanted, rel=1e-9)
    assert mixture["held_out_loss"]["value"] == pytest.approx(held_losses.mean(), rel=1e-9)
    assert mixture["held_out_loss"]["value"] < mixture["held_out_iterates"]  # Jensen
    for words in ("a new document", "independent documents of one law, n = 22"):
        assert words in bound["about"] + bound["hypotheses"]
    assert "as you say they are" in record["sentence"]
    assert "in an order drawn beforehand" in record["prequential"]["points"][0]["certificate"]["hypotheses"]
    page = (tmp_path / "r/report.html").read_text(encoding="utf-8")
    assert "Mixtures on new documents" in page
    assert "That they are is your word" in page
    called = Mixture(load_model(SMALL, dtype=torch.float64).model, tmp_path / "r" / mixture["folder"])
    assert (called.certified, called.alpha, called.shares) == (bound["value"], 0.1, mixture["shares"])
    assert (called.delta, called.documents) == (0.05, 22)
    assert Mixture(SMALL, tmp_path / "r" / mixture["folder"]).loss(*held[0]) == called.loss(*held[0])
    assert [called.loss(*document) for document in held] == pytest.approx(held_losses, rel=1e-9)
    assert len(members) == len(called) == 4


def test_a_killed_mixture_resumes_to_the_same_bytes(villani, documents, tmp_path, monkeypatch):
    words = [
        *WORDS, "--text", documents, "--tokenizer", "builtin", "--direction", "adam", "--learning-rate", "1e-3,1e-2",
        "--prior", "text", "--prior-share", "0.3", "--prior-steps", "2",
    ]  # fmt: skip
    assert villani("certify", SMALL, *words, "--run", "a")[0] == 0
    monkeypatch.setattr(stretches, "PATIENCE", 0.0)  # a unit is one step
    advance, calls = prequential.advance, []

    def dies(*args, **named):
        calls.append(1)
        if len(calls) in (14, 17, 40):
            raise KeyboardInterrupt
        return advance(*args, **named)

    monkeypatch.setattr(prequential, "advance", dies)
    codes = []
    while not codes or codes[-1]:
        codes.append(villani("certify", SMALL, *words, "--run", "b")[0])
        assert len(codes) < 6
    assert codes == [1] * 3 + [0]
    names = [
        "records.json",
        *(f"mixture-{k}/{name}" for k in (0, 1) for name in ("mixture.json", "iterate-3.safetensors")),
    ]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["--blocks", "20"], "would depend on their lengths"),
        (["--text", "d00.txt"], "1 documents"),
        (["--iterates", "30"], "30 iterates need 30"),
        (["--iterates", "0"], "iterates=0"),
    ],
)
def test_texts_without_such_a_certificate_are_refused(villani, documents, words, fragment):
    code, _, err = villani("certify", SMALL, *WORDS, "--text", documents, "--tokenizer", "builtin", *words)
    assert code == 2
    assert fragment in err
    assert "Traceback" not in err


def test_neighbours_that_resemble_each_other_are_refused(villani, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f"d{number:02}" for number in range(60)]
    for number, name in enumerate(names):  # one subject after another
        (tmp_path / name).write_text(" ".join([["rain", "graph"][number // 30]] * (9 + number % 7)))
    code, _, err = villani("certify", SMALL, *WORDS, "--text", ",".join(names), "--tokenizer", "builtin")
    assert code == 2
    assert "neighbouring documents resemble each other" in err


def test_options_that_would_do_nothing_are_refused(villani):
    for words in (["--iid-documents"], ["--kind", "prequential", "--iterates", "3"]):
        code, _, err = villani("certify", SMALL, *words)
        assert code == 2
        assert "without" in err
