"""Rules against their formulas worked out by hand, and their domains."""

import math
from dataclasses import replace

import pytest

from villani.choice.rules import (
    Pair,
    Training,
    certified_constant,
    claimed_constant,
    constants,
    ema_timescale,
    guard,
    least_certified,
    loshchilov_hutter,
    power_lines,
)
from villani.theory.constants import Smoothing, preprint, smoothed_cross_entropy
from villani.theory.conventions import memory

ADAM = Training("adamw", 1e-3, 0.5, 1000, 8, 128, 2000, 10**6, True, True)
NOISY = replace(ADAM, optimizer="noisy-sgd", learning_rate=0.1, time=50.0, temperature=1.0)
SGD = replace(ADAM, optimizer="sgd", momentum=0.9)


def test_constants_are_what_they_are():
    assert [rule.weight_decay for rule in constants()] == [0.0, 0.01, 0.1]


def test_ema_timescale():
    rule = ema_timescale(ADAM)  # 4 epochs; B/(ηN) = 4
    assert rule.interval == pytest.approx((1.0, 4.0))
    assert rule.weight_decay == pytest.approx(2.0)
    assert memory(1.0, 1e-3) == pytest.approx(ADAM.steps)  # τ = epochs: the whole run is remembered
    short = ema_timescale(replace(ADAM, blocks=16000))
    assert short.interval == pytest.approx((1.0, 1.0))
    assert "leave no τ" in short.flags[0]


def test_power_lines():
    tokens = 1000 * 8 * 128
    expected = 1 / (1e-3 * 1.084 * (tokens / 1e6) ** -0.527 * 1000)
    rule = power_lines(ADAM)
    assert rule.weight_decay == pytest.approx(expected)
    assert any("111M" in flag for flag in rule.flags)
    assert any("one epoch" in flag for flag in rule.flags)
    assert power_lines(replace(ADAM, parameters=2 * 10**8, blocks=10**6)).flags == ()


def test_loshchilov_hutter_is_converted_to_a_decay_that_is_multiplied_by_the_learning_rate():
    # b = 8, B = 2000, T = 4 epochs: √(8/8000) = √(1/1000)
    rule = loshchilov_hutter(ADAM, 0.05)
    assert rule.weight_decay == pytest.approx(0.05 * math.sqrt(8 / (2000 * 4)) / 1e-3)


@pytest.mark.parametrize("make", [ema_timescale, power_lines, loshchilov_hutter])
def test_rules_for_adamw_from_scratch_refuse_all_else_and_say_what_they_would_give(make):
    value = make(ADAM).weight_decay
    tuned = make(replace(ADAM, from_scratch=False))
    assert tuned.weight_decay is None
    assert tuned.would_be == pytest.approx(value)
    assert "not for fine-tuning" in tuned.refused
    other = make(SGD)
    assert other.weight_decay is None
    assert other.would_be == pytest.approx(value * 0.1)  # the same memory under momentum 0.9
    assert memory(other.would_be, 1e-3, 0.9) == pytest.approx(memory(value, 1e-3))


def test_the_claimed_constant_makes_its_rate_fit_the_run():
    small = replace(NOISY, parameters=1000)
    rule = claimed_constant(small)
    beta = 2 / NOISY.temperature
    claimed = preprint(rule.weight_decay, beta, small.parameters).value
    assert 2 * NOISY.time / (beta * claimed) == pytest.approx(1.0)
    assert rule.status == "as-claimed"
    assert any("refuted" in flag for flag in rule.flags)
    assert claimed_constant(NOISY).would_be == pytest.approx(1 / 100 * (1 + math.sqrt(1 + 2e8)) / 2)


def test_the_certified_constant_does_so_too_or_says_what_it_would_take():
    smoothing = Smoothing(4, 0.5)
    rule = certified_constant(NOISY, smoothing)
    certified = smoothed_cross_entropy(rule.weight_decay, 2.0, smoothing).value
    assert 2 * NOISY.time / (2.0 * certified) == pytest.approx(1.0)
    assert rule.status == "certified"
    huge = certified_constant(replace(NOISY, temperature=1e-4), smoothing)
    assert huge.weight_decay is None
    assert "10^" in huge.refused
    large = certified_constant(NOISY, Smoothing(2048, 0.1))
    assert large.would_be > 1e4
    assert "diverges from λ = 20" in large.refused


def test_theory_needs_decay_everywhere_and_noise():
    assert "some parameters do not decay" in claimed_constant(replace(NOISY, covered=False)).refused
    for make in (claimed_constant, lambda run: certified_constant(run, Smoothing(4, 0.5)), lambda r: guard(r, [], "")):
        assert "no gradient descent on F" in make(ADAM).refused
        assert "no temperature" in make(SGD).refused


def test_the_guard_is_the_largest_necessary_decay():
    pairs = [Pair("a", 5.0, 1.0, 4.0), Pair("b", 10.0, 1.0, 1.0), Pair("c", -1.0, 0.0, 1.0), Pair("d", 1.0, 0.0, 0.0)]
    rule = guard(NOISY, pairs, "somewhere")  # √((10 − 1)/1)
    assert rule.weight_decay == pytest.approx(3.0)
    assert "along d (Theorem D)" in rule.flags[-1]
    assert "asks for any decay" in guard(NOISY, pairs[2:3], "").refused
    assert "no rescaling pair" in guard(NOISY, [], "").refused
    # Ψ along Lemma A at t = 0, balanced: s* = 4λ² where Δ_B L = R²/4, ‖A‖² = R²
    lemma = guard(replace(NOISY, temperature=0.04), [Pair("lemma", 0.25, 0.0, 1.0)], "")
    assert lemma.weight_decay == pytest.approx(0.1)


def test_the_certificate_names_the_least_bound_unless_it_is_vacuous():
    assert least_certified(NOISY, [(0.1, 5.0), (1.0, 4.0)], 7.0).weight_decay == 1.0
    vacuous = least_certified(NOISY, [(0.1, 9.0), (1.0, 8.0)], 7.0)
    assert vacuous.would_be == 1.0
    assert "vacuous" in vacuous.refused
    assert least_certified(ADAM, [(0.1, 5.0)], 7.0).weight_decay is None
    assert "no certificate" in least_certified(NOISY, [], 7.0).refused


def test_a_decay_that_no_step_survives_is_refused():
    rule = ema_timescale(replace(ADAM, batch=8000, blocks=8000, steps=1, learning_rate=0.4, time=0.4))
    assert rule.weight_decay == pytest.approx(2.5)  # below 2/η = 5
    wild = loshchilov_hutter(replace(ADAM, steps=1), 2.5)
    assert wild.weight_decay is None
    assert "diverges from λ = 2e+03" in wild.refused
