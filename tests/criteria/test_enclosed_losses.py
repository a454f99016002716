"""Ranges of softmax, normalisations and losses over boxes, against their extremes in closed form."""

import math

import pytest
import torch
from torch.nn import functional as F

from tests.criteria.models import closed
from villani.criteria.intervals import UNKNOWN, Range
from villani.criteria.ranges import ranges
from villani.objective.graph import trace_loss

TARGET = torch.tensor([1, -100, 3])


def ranges_of(functions, *boxes):
    """Of losses of w (3, 4), traced together: a row for each box."""
    start = [0.1 * k for k in range(12)]
    graph = trace_loss(closed(lambda w: torch.stack([f(w.view(3, 4)) for f in functions]).sum(), *start), 0.0)
    joined = [n for n in graph.nodes if n.target is torch.ops.aten.cat.default][-1]
    nodes = [n.args[0] for n in joined.args[0]]  # each with a dimension for cat
    for box in boxes:
        known = ranges(graph, {0: Range(*box)})
        yield [known[n] for n in nodes]


def range_of(function, low, high):
    [[found]] = ranges_of([function], (low, high))
    return found


def test_cross_entropy_is_bounded_by_its_worst_logits():
    """Largest where the target has −h and all others h: log(1 + (V − 1)e^{2h}); the bound log V + 2h is just above."""
    losses = [
        lambda w: F.cross_entropy(w, TARGET), lambda w: F.cross_entropy(w, TARGET, reduction="sum"),
        lambda w: F.cross_entropy(w, TARGET, label_smoothing=0.3),
    ]  # fmt: skip
    halves = (0.25, 1.0, 6.0)
    for half, (mean, total, smooth) in zip(halves, ranges_of(losses, *((-h, h) for h in halves)), strict=True):
        worst, bound = math.log1p(3 * math.exp(2 * half)), (math.log(4) + 2 * half) * (1 + 1e-5)
        assert mean.low == total.low == smooth.low == 0
        assert worst <= mean.high <= bound
        assert 2 * worst <= total.high <= 3 * bound  # one of three targets counts nothing
        assert 0.7 * worst <= smooth.high <= bound


def test_targets_that_all_count_nothing_leave_no_number():
    ignored = torch.full((3,), -100)
    losses = [lambda w: F.cross_entropy(w, ignored), lambda w: F.cross_entropy(w, ignored, reduction="sum")]
    [[mean, total]] = ranges_of(losses, (-1.0, 1.0))
    assert mean == UNKNOWN
    assert total.bounded


def test_log_probabilities_and_their_sum():
    """log softmax ≥ −log(1 + (V − 1)e^{2h}), reached; log Σ exp ∈ [−h, h + log V], above reached."""
    functions = [
        lambda w: F.log_softmax(w, 1).amin(), lambda w: w.logsumexp(1).amax(), lambda w: F.nll_loss(w, TARGET),
    ]  # fmt: skip
    halves = (0.5, 3.0)
    for half, (found, joined, likelihood) in zip(halves, ranges_of(functions, *((-h, h) for h in halves)), strict=True):
        reached = -math.log1p(3 * math.exp(2 * half))
        assert found.high == 0
        assert -math.log(4) - 2 * half - 1e-4 <= found.low <= reached
        assert half + math.log(4) <= joined.high <= half + math.log(12) + 1e-5  # of 4 in a row, or of all
        assert joined.low <= -half + math.log(4)
        assert (likelihood.low, likelihood.high) == pytest.approx((-half, half), rel=1e-5)


def test_softmax_is_a_share_unless_a_row_may_be_masked_as_a_whole():
    barred = torch.tensor([[False, True, True, True]] * 3)
    whole = barred | torch.tensor([[False], [True], [False]])
    functions = [
        lambda w: w.softmax(1).amax(), lambda w: w.masked_fill(barred, -math.inf).softmax(1).amax(),
        lambda w: w.masked_fill(whole, -math.inf).softmax(1).amax(),
    ]  # fmt: skip
    [[plain, partly, void]] = ranges_of(functions, (-math.inf, math.inf))
    assert plain == Range(0.0, 1.0, True)
    assert (partly.low, partly.high, partly.positive) == (0.0, 1.0, False)
    assert void == UNKNOWN


def test_normalised_features_reach_the_root_of_their_number():
    """RMS norm of (big, 0, 0, 0) is √4 in its first entry, times the gain; no ε, no bound."""
    weight = torch.full((4,), 3.0)
    functions = [
        lambda w: F.layer_norm(w, (4,), weight, torch.ones(4)).amax(),
        lambda w: F.rms_norm(w, (4,), weight, 1e-6).amax(),
        lambda w: F.layer_norm(w, (4,), eps=0.0).amax(),
    ]  # fmt: skip
    [[layer, root, void]] = ranges_of(functions, (-math.inf, math.inf))
    reached = float(F.rms_norm(torch.tensor([1e4, 0, 0, 0]), (4,), weight, 1e-6)[0])
    assert root.high == pytest.approx(6, rel=1e-5)
    assert root.high >= reached == pytest.approx(6)
    assert (layer.low, layer.high) == pytest.approx((-5, 7), rel=1e-5)
    assert void == UNKNOWN


def test_squared_error_and_binary_entropy_in_closed_form():
    target = torch.linspace(0, 1, 12).view(3, 4)
    functions = [
        lambda w: torch.ops.aten.mse_loss.default(w, target, 2),
        lambda w: F.binary_cross_entropy_with_logits(w, target),
        lambda w: F.binary_cross_entropy_with_logits(w, 2 * target),
    ]  # fmt: skip
    [[square, entropy, soft]] = ranges_of(functions, (-2.0, 3.0))
    assert square.low == 0
    assert square.high == pytest.approx(12 * 9, rel=1e-4)  # (−2 − 1)² and (3 − 0)²
    assert entropy.low == 0
    assert entropy.high == pytest.approx(math.log1p(math.exp(3)), rel=1e-4)
    assert soft == UNKNOWN, "targets beyond 1 have no lower bound"
