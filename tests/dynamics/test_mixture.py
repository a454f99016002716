"""Mixtures of iterates: the promise on new documents by simulation, Jensen, and what a folder of members gives back."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from tests.conftest import BLOCK, VOCABULARY, make_model
from villani.dynamics.certificate import Moments, document_bound
from villani.dynamics.mixture import Mixture, MixtureContent, mix, write_member, write_mixture
from villani.errors import InputError
from villani.theory.constants import Smoothing

# Documents of 5 letters, from a chain that lasts or alternates: which of the two is drawn for each document


SETS, DOCUMENTS, ROUNDS, LENGTH, DELTA, ALPHA = 2000, 960, 6, 5, 0.1, 0.05
SMOOTHING = Smoothing(2, ALPHA)
ALL = np.array(list(itertools.product((0, 1), repeat=LENGTH)))  # (32, 5)


def law():
    """(32,) probabilities of all documents."""
    changes = (ALL[:, 1:] != ALL[:, :-1]).sum(1)
    lasts, alternates = (p ** (LENGTH - 1 - changes) * (1 - p) ** changes for p in (0.9, 0.3))
    return np.asarray(0.4 * lasts + 0.1 * alternates)


def document_losses(tables):
    """(…, 32) mean smoothed losses of all documents under tables (…, 2, 2) of p(next | letter)."""
    smoothed = -np.log((1 - ALPHA) * tables + ALPHA / 2)
    return smoothed[..., ALL[:, :-1], ALL[:, 1:]].mean(-1)


def games(copies, sets=SETS, seed=0):
    """Per data set: moments of the documents' losses, the mixture's risk on a new one, and the mean of its members'."""
    generator, probability = np.random.default_rng(seed), law()
    assert probability.sum() == pytest.approx(1)
    drawn = generator.choice(len(ALL), size=(sets, DOCUMENTS // copies), p=probability)
    documents = generator.permuted(np.repeat(drawn, copies, axis=1), axis=1)  # (S, n), in an order drawn beforehand
    pairs = np.zeros((len(ALL), 2, 2))
    for number, letters in enumerate(ALL):
        np.add.at(pairs[number], (letters[:-1], letters[1:]), 1)
    counts, scores, tables = np.ones((sets, 2, 2)), [], []
    for part in np.split(documents, ROUNDS, axis=1):
        table = counts / counts.sum(-1, keepdims=True)
        scores.append(np.take_along_axis(document_losses(table), part, axis=1))
        tables.append(table)
        counts = counts + pairs[part].sum(1)  # after it was scored
    losses = np.concatenate(scores, axis=1)
    members = np.array([document_losses(table) @ probability for table in tables])
    mixed = document_losses(np.mean(tables, axis=0)) @ probability
    return losses.mean(1), (losses**2).mean(1), mixed, members.mean(0)


def bounds(first, second):
    return np.array([
        document_bound(Moments(SMOOTHING, f, s), DOCUMENTS, DELTA).value for f, s in zip(first, second, strict=True)
    ])  # fmt: skip


def violations(first, second, risk):
    """Share of data sets whose bound is below a risk; it is never below the empirical one."""
    close = risk > first
    return (bounds(first[close], second[close]) < risk[close]).sum() / len(risk)


@pytest.mark.thorough
def test_coverage_on_new_documents_and_jensen():
    first, second, mixed, members = games(copies=1)
    assert (mixed <= members + 1e-12).all()
    assert (members > first).mean() > 0.2  # the empirical risk alone is no bound
    allowed = DELTA + 4 * math.sqrt(DELTA * (1 - DELTA) / SETS)
    assert violations(first, second, members) <= allowed  # of the mean of the members, and so of the mixture
    few = bounds(first[:20], second[:20])
    assert (few > first[:20]).all()
    assert few.max() < math.log(2)  # and not for nothing


def test_documents_that_are_copies_of_few_lose_the_coverage():
    """960 documents, but 4 draws: what is learned by heart is certified on documents that were never drawn."""
    first, second, mixed, _ = games(copies=240, sets=300)
    assert violations(first, second, mixed) > 3 * DELTA


def test_a_bound_of_documents_says_so():
    bound = document_bound(Moments(SMOOTHING, 0.6, 0.4), 100, 0.05)
    assert bound.about.startswith("a new document")
    assert "n = 100" in bound.hypotheses
    assert "causality" not in bound.hypotheses


def test_mix_is_the_mean_of_smoothed_probabilities():
    generator = np.random.default_rng(0)
    p, shares = generator.uniform(size=(3, 7)), [0.5, 0.3, 0.2]
    expected = np.log(0.95 * (np.array(shares) @ p) + 0.05 / 2)
    assert mix(np.log(p), shares, SMOOTHING) == pytest.approx(expected, rel=1e-12)


# Files


SHARES = [0.5, 0.25, 0.25]


def models():
    """Three members of one shape."""
    out = []
    for seed in range(len(SHARES)):
        torch.manual_seed(seed)
        model = make_model("gpt2")
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.3 * torch.randn_like(p))
        out.append(model.eval())
    return out


@pytest.fixture
def folder(tmp_path):
    """A mixture of them, written."""
    members = models()
    checksums = [write_member(tmp_path / "m", k, model).tobytes().hex() for k, model in enumerate(members)]
    names = [name for name, _ in members[0].named_parameters()]
    content = MixtureContent(
        alpha=0.1, vocabulary=VOCABULARY, shares=SHARES, checksums=checksums, dtype="float64", names=names,
        certified=2.0, delta=0.05, documents=9,
    )  # fmt: skip
    write_mixture(tmp_path / "m", content)
    return tmp_path / "m"


def batch():
    ids = torch.randint(0, VOCABULARY, (3, BLOCK), generator=torch.Generator().manual_seed(5))
    labels = ids.clone()
    labels[1, 3:] = -100
    return ids, labels


def test_log_probabilities_are_those_of_the_mean_of_the_members(folder):
    model = make_model("gpt2").train()
    before = [p.detach().clone() for p in model.parameters()]
    ids, labels = batch()
    with torch.no_grad():
        mean = sum(
            s * torch.softmax(m(input_ids=ids).logits[:, :-1], -1) for s, m in zip(SHARES, models(), strict=True)
        )
    p = mean.gather(2, ids[:, 1:, None])[..., 0].double().numpy()
    expected = np.log(0.9 * p + 0.1 / VOCABULARY)
    mixture = Mixture(model, folder)
    assert (len(mixture), mixture.shares, mixture.certified, mixture.documents) == (3, SHARES, 2.0, 9)
    assert mixture.log_probabilities(ids) == pytest.approx(expected, abs=1e-9)
    assert mixture.log_probabilities(ids.numpy(), micro_tokens=BLOCK) == pytest.approx(expected, abs=1e-9)
    found = mixture.log_probabilities(ids, labels)
    wanted = (labels[:, 1:] >= 0).numpy()
    assert np.isnan(found[~wanted]).all()
    assert found[wanted] == pytest.approx(expected[wanted], abs=1e-9)
    assert mixture.loss(ids, labels) == pytest.approx(-expected[wanted].mean(), abs=1e-9)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_what_is_not_a_mixture_of_this_model_is_refused(folder):
    ids, labels = batch()
    mixture = Mixture(make_model("gpt2"), folder)
    for given, fragment in (
        ((ids[0],), "expected whole numbers"), ((ids.double(),), "expected whole numbers"), ((ids[:, :1],), "T ≥ 2"),
        ((ids + VOCABULARY,), f"the model knows {VOCABULARY}"), ((ids, labels[:2]), "that of ids"),
        ((ids, (labels + 1) % VOCABULARY), "the ids themselves"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=fragment):
            mixture.log_probabilities(*given)
    with pytest.raises(InputError, match="give the model that the run was of"):
        Mixture(torch.nn.Linear(2, 2), folder)
    with pytest.raises(InputError, match="weights are float64"):
        Mixture(make_model("gpt2").float(), folder)
    with pytest.raises(InputError, match="no such file"):
        Mixture(make_model("gpt2"), folder / "absent")
    content = json.loads((folder / "mixture.json").read_text())
    with pytest.raises(InputError, match="nothing is predicted"):
        mixture.loss(ids, torch.full_like(ids, -100))
    for changed in (
        {"checksums": ["x"] * 3},
        {"shares": [0.5, 0.25, 0.5]},
        {"checksums": content["checksums"][:2]},
        {"alpha": 2.0},
    ):
        (folder / "mixture.json").write_text(json.dumps(content | changed))
        with pytest.raises(InputError, match="mixture"):
            Mixture(make_model("gpt2"), folder)
    path = folder / "iterate-1.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="not the file that the run left"):
        mixture.log_probabilities(ids)
    path.unlink()
    with pytest.raises(InputError, match="the iterate is not there any more"):
        write_mixture(folder, MixtureContent.model_validate(content))
