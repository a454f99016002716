"""What a reader of chains sees: the trap first, what equilibrium rests on, and who diverged."""

import pytest

from tests.commands.synthetic import estimate, made, told
from villani.commands.converge.record import (
    ChainsRecord,
    ConvergenceRecord,
    DivergenceRecord,
    DynamicsRecord,
    FitRecord,
    GradientNoiseRecord,
    RateRecord,
)


def chains(**changes):
    return made(ChainsRecord, **{"trap": "", "sentence": "It settled.", "diverged": []} | changes)


def run(*points, **changes):
    return told(made(ConvergenceRecord, points=list(points), **{"undecayed": 0} | changes))


def test_what_the_loss_does_not_see_goes_first():
    trap = "The loss does not see the slow mode."
    assert run(chains(trap=trap)).headline == f"{trap} It settled."
    other = run(chains(trap="u·θ has not moved."))
    assert other.headline == "It settled."
    assert other.findings["What the loss does not see"] == "u·θ has not moved."


def test_other_points_are_told_of_below():
    section = run(chains(), chains(sentence="Here too."), chains(sentence="Not here."))
    assert section.findings["Elsewhere"] == "Here too. Not here."


@pytest.mark.parametrize(
    ("state", "words"), [("not contradicted", "Nothing contradicts it"), ("contradicted", "No."), ("unknown", "cannot")]
)
def test_equilibrium_is_never_shown(state, words):
    section = run(chains(equilibrium=state))
    assert words in section.findings["Has it reached equilibrium?"]
    assert "No constant, claimed or certified, is confirmed by anything here" in section.limits[0]


def test_chains_that_left_are_counted_with_the_step_that_is_advised():
    left = [made(DivergenceRecord, step=step, curvature=40.0, learning_rate=0.025) for step in (70, 30)]
    section = run(chains(diverged=left), chains(), design=made(DynamicsRecord, chains=4))
    text = section.findings["Diverged"]
    assert "2 of 8 chains left, the first at step 30" in text
    assert "Try --learning-rate 0.025, from a curvature of about 40" in text
    assert not run(chains()).findings["Diverged"]


def test_what_does_not_decay_has_no_law():
    text = run(chains(), undecayed=12345).findings["Without decay"]
    assert text.startswith("12,345 coordinates do not decay")
    assert "there may be no law to converge to" in text


def test_noise_of_batches_is_a_bound_rounded_up():
    noise = GradientNoiseRecord(isotropic=0.0301, worst_direction=1.21)
    text = run(chains(gradient_noise=noise), design=made(DynamicsRecord, batch=4, blocks=32)).findings["Mini-batches"]
    assert "gradients of 4 of 32 blocks" in text
    assert "at most 0.031 of s" in text
    assert "at most 1.3 of s" in text


@pytest.mark.parametrize("fitted", [True, False])
def test_a_fit_is_of_one_observable_and_proves_no_constant(fitted):
    fit = made(FitRecord, name="loss", rate=estimate(0.5) if fitted else None)
    text = run(chains(fits=[fit])).findings["What the loss curve proves"]
    assert ("went down at the fitted rate" in text) == fitted
    assert "no confirmation of a log-Sobolev constant" in text


def test_every_rate_stands_with_its_verdict_and_why():
    rates = [
        made(
            RateRecord, name="C8 claimed", side="at least", log10=-2.0, verdict="refuted", sentence="Seen to be less."
        ),
        made(RateRecord, name="autocorrelation", side="at most", log10=-3.0, limit_log10=-2.5),
    ]
    tables = run(chains(rates=rates)).tables
    for words in ("C8 claimed", "refuted", "Seen to be less.", "autocorrelation"):
        assert words in tables
