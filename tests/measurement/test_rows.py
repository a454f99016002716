"""What rows of groups say together: sums, token-weighted means with their errors, the norm of a mini-batch."""

import numpy as np
import pytest
import torch

from tests.conftest import make_model
from villani.curvature.group import GroupStatistics
from villani.measurement.rows import group_row, group_sums, naive_norm, samples, trace_estimates
from villani.objective.objective import Objective

RNG = np.random.default_rng(0)


def rows(objective, count=6, probes=2):
    size, tensors = 5, len(objective.parameters.tensors)
    statistics = [
        GroupStatistics(
            tokens=float(3 + g % 3), loss=float(RNG.normal()), gradient=RNG.normal(size=size),
            dots=RNG.normal(size=tensors), traces=RNG.normal(size=(probes, tensors)),
            gauss_newton=RNG.normal(size=(probes, tensors)),
        )
        for g in range(count)
    ]  # fmt: skip
    return statistics, [group_row(s) for s in statistics]


@pytest.fixture(scope="module")
def objective():
    return Objective(make_model("gpt2"), torch.zeros((6, 1, 6), dtype=torch.int64), decay="nanogpt")


def test_sums_are_over_decayed_tensors_where_decay_is_meant(objective):
    statistics, kept = rows(objective)
    sums = group_sums(objective.parameters.decayed, kept, sketched=True)
    mask = np.array([p.decayed for p in objective.parameters.parameters])
    assert 0 < mask.sum() < len(mask)
    assert sums.sketched
    for g, s in enumerate(statistics):
        assert sums.tokens[g] == s.tokens
        assert sums.loss[g] == s.loss
        assert sums.gradient_dot_parameters[g] == pytest.approx(s.dots[mask].sum())
        assert sums.hessian_trace[g] == pytest.approx(s.traces.sum(axis=1))
        assert sums.gradient[g].tolist() == s.gradient.tolist()


def test_traces_of_a_sample_are_ratios_of_sums(objective):
    """Σ t/Σ n by the jackknife, written out: its bias taken off, its error from leaving one group out."""
    _, kept = rows(objective)
    tokens, traces = samples(kept, "traces")
    assert traces.shape == (6, 2, len(objective.parameters.tensors))
    estimates = trace_estimates(tokens, traces, finite=False)
    for k, estimate in enumerate(estimates):
        t = traces[:, :, k].mean(axis=1)
        ratio = t.sum() / tokens.sum()
        others = [(t.sum() - t[g]) / (tokens.sum() - tokens[g]) for g in range(6)]
        assert estimate.value == pytest.approx(6 * ratio - 5 * np.mean(others))
        assert estimate.sem == pytest.approx(np.sqrt(5 * np.var(others)))
        assert (estimate.n, estimate.degrees_of_freedom) == (6, 5)


def test_of_all_the_data_only_probes_are_noise(objective):
    _, kept = rows(objective, probes=3)
    tokens, traces = samples(kept, "traces")
    estimate = trace_estimates(tokens, traces, finite=True)[0]
    per = traces[:, :, 0] / tokens.sum()
    assert estimate.value == pytest.approx(per.mean(axis=1).sum())
    assert estimate.sem == pytest.approx(np.sqrt((per.var(axis=1, ddof=1) / 3).sum()))
    assert estimate.degrees_of_freedom == 12


def test_the_norm_that_a_mini_batch_reports(objective):
    statistics, kept = rows(objective)
    estimate = naive_norm(group_sums(objective.parameters.decayed, kept, sketched=False))
    norms = [s.gradient @ s.gradient / s.tokens**2 for s in statistics]
    assert estimate.value == pytest.approx(np.mean(norms))
    assert estimate.sem == pytest.approx(np.std(norms, ddof=1) / 6**0.5)
    assert naive_norm(group_sums(objective.parameters.decayed, kept[:1], sketched=False)).sem == 0
