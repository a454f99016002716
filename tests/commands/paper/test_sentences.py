"""What decay did and where rules landed, in words whose numbers are worked out by hand."""

import re

import pytest
from scipy.stats import t as student

from tests.commands.synthetic import estimate, made
from villani.commands.paper.record import EffectRecord
from villani.commands.paper.sentences import (
    change_words,
    choice_sentence,
    decay_sentence,
    least_sentence,
    sign,
    tuning_sentence,
)
from villani.commands.recommend.record import MarginRecord, OptimizerRecord, RuleRecord


def test_what_decay_did_is_what_the_grid_says_of_each_optimiser():
    """E6 has errors over text as well as seeds, so that the study says the same there and here."""
    of = [
        made(OptimizerRecord, optimizer=name, effect=effect) for name, effect in (("sgd", "It falls."), ("adamw", ""))
    ]
    assert decay_sentence(of) == "Regulariser, or dynamics (D'Angelo et al.)? SGD with L2: It falls."
    assert decay_sentence([]) == decay_sentence(of[1:]) == ""


@pytest.mark.parametrize(("n", "comparisons"), [(3, 1), (3, 6), (9, 1), (9, 20)])
def test_signs_are_those_of_t_tests_at_the_level_of_all_comparisons(n, comparisons):
    critical = student.isf(0.025 / comparisons, n - 1)
    for factor, expected in ((1.01, 1), (0.99, 0)):
        value = 0.25 * critical * factor
        assert sign(estimate(value, 0.25, n), comparisons) == expected
        assert sign(estimate(-value, 0.25, n), comparisons) == -expected
        assert sign(estimate(value - 7.0, 0.25, n), comparisons, shift=7.0) == expected


def test_a_change_has_its_sign_and_an_interval_that_is_rounded_outwards():
    words = change_words(estimate(0.12345, 0.0111))  # ± 0.0222
    value, low, high = (float(number) for number in re.findall(r"[-+]?[0-9.]+", words))
    assert words.startswith("+0.123 [")
    assert value == pytest.approx(0.12345, abs=5e-4)
    assert 0.095 < low <= 0.10125
    assert 0.14565 <= high < 0.155
    assert change_words(estimate(2.5, 0.0)) == "2.5"
    assert change_words(None) == "unknown"


def effect(quantity, optimizer, decay, change=None, resolved=False, kept=True):
    return made(
        EffectRecord, quantity=quantity, optimizer=optimizer, weight_decay=decay, resolved=resolved, kept=kept,
        memory=None if decay == 0 else 2.0 / decay, detectable=None if change is None else 0.0123,
        change=None if change is None else estimate(change, 0.01, 3),
    )  # fmt: skip


def test_what_tuning_changed_is_told_or_what_would_have_been_seen():
    rows = [
        effect("held-out loss", "adamw", 0.0),
        effect("held-out loss", "adamw", 0.5),  # diverged: nothing is told of it
        effect("held-out loss", "adamw", 4.0, 0.25, resolved=True, kept=False),
        effect("held-out loss", "adamw-start", 0.0),
        effect("held-out loss", "adamw-start", 0.5, 0.001),
        effect("held-out loss", "adamw-start", 4.0, -0.002),
        effect("forgetting", "adamw", 4.0, 0.5, resolved=True),
        effect("forgetting", "adamw-start", 0.5, 0.003),
        effect("forgetting", "adamw-start", 4.0, -0.125, resolved=True),
        effect("‖θ‖", "adamw", 4.0, -1.0, resolved=True, kept=None),
    ]
    rows[1] = rows[1].model_copy(update={"kept": False})
    words = tuning_sentence(rows)
    assert (
        "AdamW, decay towards zero: held-out loss changes by +0.25 [0.23, 0.27] at λ = 4; forgetting changes by +0.5"
    ) in words
    assert (
        "AdamW, decay towards the start: held-out loss changes at no λ beyond its error; changes of 0.013 at λ = 0.5, "
        "0.013 at λ = 4 would have been seen with probability 80 %; forgetting changes by -0.125 [−0.15, −0.1] at "
        "λ = 4; changes of 0.013 at λ = 0.5 would"
    ) in words
    assert least_sentence(rows) == (
        "Least held-out loss, as far as can be told at 95%: no decay, λ = 0.5 towards the start, λ = 4 towards the "
        "start. At no λ does decay lower it beyond error."
    )
    gain = effect("held-out loss", "adamw-start", 4.0, -0.125, resolved=True)
    assert "It changes by -0.125 [−0.15, −0.1] with λ = 4 towards the start." in least_sentence([*rows, gain])
    assert "0.5 to 4 times the run" in words
    assert "‖θ‖" not in words
    assert tuning_sentence([]) == ""


def rule(name, value, decay=0.1, identity="of-it"):
    margin = None if value is None else made(MarginRecord, value=value, low=value - 0.1, high=value + 0.1)
    return made(RuleRecord, id=identity, name=name, weight_decay=decay, margin=margin, share=0.25)


def test_rules_are_ranked_by_their_margin():
    rules = [
        rule("worse", 0.5),
        rule("better", 0.25),
        rule("refuses", None, decay=None),
        rule("h", 0.0, 0.1, "held-out"),
    ]
    words = choice_sentence([made(OptimizerRecord, optimizer="sgd", rules=rules)])
    assert "SGD with L2: better +0.25 [" in words
    assert words.index("better +0.25") < words.index("worse +0.5 [")
    assert words.count("for 25%") == 2
    assert "; 1 more rules name no λ that can be used" in words
    assert choice_sentence([]) == ""
