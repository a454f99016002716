"""A reference that moves: its path's log-ratio by hand, what it may know, and what the bound promises."""

import math

import numpy as np
import pytest
import torch

from tests.conftest import BLOCK, VOCABULARY, make_model
from tests.dynamics.test_certificate import plan
from villani.dynamics.certificate import chain_complexity
from villani.dynamics.chain import Moving, batch_loss, run_chain
from villani.dynamics.drift import PriorDrift, Reference
from villani.errors import InputError
from villani.streams import Purpose, stream
from villani.theory.complexity import path
from villani.theory.constants import Smoothing
from villani.theory.pac_bayes import bernstein

RATES = np.array([0.2, 0.5, 0.1, 0.3, 0.2])


def blocks(count, seed):
    return torch.randint(0, VOCABULARY, (count, BLOCK), generator=torch.Generator().manual_seed(seed))


def drifting(moving, certified, prior, direction="sgd", clip=None, **settings):
    return Reference(PriorDrift(prior, prior, **settings), moving, certified, direction, clip, seed=1, index=0)


@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize(
    ("direction", "clip", "settings"),
    [
        ("sgd", None, {}), ("sgd", 0.3, {"batch": 3}), ("momentum", None, {"every": 2, "micro_tokens": BLOCK}),
        ("momentum", 0.2, {"every": 3, "batch": 2}),
    ],
)  # fmt: skip
def test_the_log_ratio_is_that_of_two_chains_of_gaussian_steps(direction, clip, settings, decay):
    """ln dQ/dP of the path from the densities of its steps, with gradients, averages, clips and noise by hand."""
    model, certified, prior = make_model("gpt_neo"), blocks(12, 0), blocks(7, 1)
    moving = Moving(model, "wte|ln_f")
    p = plan(
        temperature=1e-3, weight_decay=decay, start="centre", clip=clip, rates=RATES, moving_reference=True,
    )  # fmt: skip
    reference = drifting(moving, certified, prior, direction, clip, **settings)
    chain = run_chain(moving, certified, certified, p, batch=4, seed=1, direction=direction, reference=reference)

    def turned(gradients):
        g = gradients[-1]
        if direction == "momentum":
            weights = [0.1 * 0.9 ** (len(gradients) - 1 - j) for j in range(len(gradients))]
            g = sum(w * x for w, x in zip(weights, gradients, strict=True)) / sum(weights)
        return g * min(1.0, clip / float(g.norm())) if clip else g

    normals, w, expected, own, others = stream(1, Purpose.CHAIN_NOISE, 0), torch.zeros_like(moving.centre), 0.0, [], []
    squares = []
    for k, (rate, a, tau) in enumerate(zip(RATES, p.contractions, p.noises, strict=True)):
        moving.write(w)
        rows = torch.from_numpy(stream(1, Purpose.BATCHES, 0, k).integers(12, size=4))
        own.append(moving.gradient(batch_loss(model, certified[rows], certified[rows])))
        if k % settings.get("every", 1) == 0:
            size = settings.get("batch")
            drawn = prior if size is None else prior[stream(1, Purpose.DRIFT, 0, k).integers(7, size=size)]
            others.append(moving.gradient(batch_loss(model, drawn, drawn)))
        else:
            others.append(others[-1])
        after = a * w - rate * turned(own) + tau * torch.from_numpy(normals.standard_normal(len(w)))
        for sign, means in ((1, own), (-1, others)):
            expected -= sign * float((after - a * w + rate * turned(means)).square().sum()) / (2 * tau**2)
        squares.append(float(turned(own).square().sum()))
        w = after
    torch.testing.assert_close(chain.w, w, rtol=1e-9, atol=1e-12)
    assert chain.account.log_ratio == pytest.approx(expected, rel=1e-6)
    assert chain.squares == pytest.approx(squares)
    assert "prior's text alone" in chain.account.path().hypotheses


def test_a_reference_like_the_chain_itself_leaves_nothing_to_pay():
    """With g in the place of h the complexity is 0: which is why no certified token may come into it."""
    moving, certified = Moving(make_model("gpt_neo"), "ln_f"), blocks(6, 0)
    p = plan(start="centre", clip=None, rates=RATES, moving_reference=True)

    def leak(step):
        rows = torch.from_numpy(stream(1, Purpose.BATCHES, 0, step).integers(6, size=3))
        return moving.gradient(batch_loss(moving.model, certified[rows], certified[rows]))

    assert run_chain(moving, certified, certified, p, batch=3, seed=1, reference=leak).account.log_ratio == 0


def test_no_certified_token_moves_the_reference():
    """At the same weights its directions have the same bits, whatever is certified: memory, draws and all."""
    found = []
    for seed in (0, 3):
        moving = Moving(make_model("gpt_neo"), "wte|ln_f")
        reference, generator = drifting(moving, blocks(12, seed), blocks(7, 1), "adam", 0.3, batch=3, every=2), []
        walk = torch.Generator().manual_seed(9)
        for step in range(5):
            moving.write(0.1 * torch.randn(moving.size, generator=walk, dtype=torch.float64))
            generator.append(reference(step).clone())
        found.append(torch.stack(generator))
    assert torch.equal(*found)
    assert not torch.equal(found[0][0], found[0][1])


def test_what_has_no_drift_is_refused():
    moving, certified, prior = Moving(make_model("gpt_neo"), "ln_f"), blocks(6, 0), blocks(7, 1)
    with pytest.raises(InputError, match="6 of 6 certified blocks are among the prior's"):
        drifting(moving, certified, torch.cat([prior, certified]))
    drifting(moving, certified, torch.cat([prior, certified[:3]]))  # texts repeat themselves
    with pytest.raises(InputError, match="predicts no token"):
        PriorDrift(prior, torch.full_like(prior, -100))
    for name in ("batch", "every", "micro_tokens"):
        with pytest.raises(InputError, match=f"{name}=0"):
            PriorDrift(prior, prior, **{name: 0})
    reference = drifting(moving, certified, prior)
    for moves, given in ((False, reference), (True, None)):
        p = plan(start="centre", moving_reference=moves)
        with pytest.raises(InputError, match=f"moving_reference={moves}"):
            run_chain(moving, certified, certified, p, batch=2, seed=0, reference=given)
    with pytest.raises(InputError, match="no Gaussian"):
        chain_complexity(plan(moving_reference=True), [np.ones(len(plan().rates))] * 2, 0.1)


# Coverage: a table of logits, one for each of C contexts; every context has tokens that depend on the one before

SETS, CONTEXTS, VISITS, STEPS, RATE, HEAT, DELTA, ALPHA = 2000, 40, 6, 6, 1.0, 0.3, 0.1, 0.05
SMOOTHING = Smoothing(2, ALPHA)


def tokens(generator, before, bias, visits, clear):
    """(visits, S, C) tokens, and the probability of a one given the past."""
    drawn, ones = [], []
    for _ in range(visits):
        ones.append(0.5 + clear * (bias - 0.5) + 0.1 * (before - 0.5))
        before = (generator.random(bias.shape) < ones[-1]).astype(float)
        drawn.append(before)
    return np.array(drawn), np.array(ones)


def trained(kind, sets=SETS, contexts=CONTEXTS, heat=HEAT, steps=STEPS, clear=0.8):
    """Final logits (S, C), log-ratios (S,), tokens and their conditional probabilities."""
    generator = np.random.default_rng(0)
    bias = (generator.random((sets, contexts)) < 0.5).astype(float)
    prior, _ = tokens(generator, np.zeros((sets, contexts)), bias, 4 * VISITS, clear)
    certified, ones = tokens(generator, prior[-1], bias, VISITS, clear)
    w, ratio = np.zeros((sets, contexts)), np.zeros(sets)
    tau = math.sqrt(RATE * heat)
    for _ in range(steps):
        q = 1 / (1 + np.exp(-w))
        g = q - certified.mean(0)
        h = {"still": 0 * q, "informed": q - prior.mean(0), "leak": g}[kind]
        xi = generator.standard_normal(w.shape)
        ratio += (RATE**2 * (g - h) ** 2 / (2 * tau**2) - RATE * (g - h) * xi / tau).sum(1)
        w = w - RATE * g + tau * xi
    return w, ratio, certified, ones


def risks(w, certified, ones):
    """Empirical risk, its mean square about ½ ln 2 and the conditional risk, each (S,)."""
    q = 1 / (1 + np.exp(-w))
    one, zero = (-np.log((1 - ALPHA) * p + ALPHA / 2) for p in (q, 1 - q))
    losses = np.where(certified > 0, one, zero)
    mean = ones * one + (1 - ones) * zero
    centre = 0.5 * math.log(2)
    return losses.mean((0, 2)), ((losses - centre) ** 2).mean((0, 2)), mean.mean((0, 2))


def bounds(kind, **more):
    w, ratio, certified, ones = trained(kind, **more)
    empirical, spread, risk = risks(w, certified, ones)
    m, reach = CONTEXTS * VISITS, SMOOTHING.highest - 0.5 * math.log(2)
    values = [
        bernstein(e, s, m, path(r, 1).value, DELTA, 0.2 / reach, reach=reach, highest=SMOOTHING.highest).value
        for e, s, r in zip(empirical, spread, ratio, strict=True)
    ]
    return np.array(values), risk, ratio


def test_an_informed_reference_keeps_the_coverage_and_a_leak_loses_it():
    allowed = DELTA + 4 * math.sqrt(DELTA * (1 - DELTA) / SETS)
    (still, risk, whole), (informed, _, less) = map(bounds, ("still", "informed"))
    assert max((risk > still).mean(), (risk > informed).mean()) <= allowed
    assert less.mean() < 0.2 * whole.mean()
    assert informed.mean() < 0.4 * still.mean()
    noise = {"heat": 0.08, "steps": 25, "clear": 0.0}  # nothing to learn, much to learn by heart
    for kind, holds in (("still", True), ("informed", True), ("leak", False)):
        bound, risk, _ = bounds(kind, **noise)
        assert bool((risk > bound).mean() <= allowed) is holds


def test_the_ratio_of_the_two_laws_has_mean_one():
    _, ratio, *_ = trained("informed", sets=20000, contexts=2, heat=0.6, steps=4)
    weights = np.exp(-ratio)
    assert abs(weights.mean() - 1) < 4 * weights.std() / math.sqrt(len(weights))
    assert weights.std() > 0.3
