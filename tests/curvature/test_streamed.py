"""Samples of the trace with streamed weights, tensor by tensor: by plain transformers, and by the resident samplers."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.sharded import write
from villani.curvature.group import GroupPass, group_statistics
from villani.curvature.probes import rademacher_probe
from villani.curvature.sketch import GradientSketch
from villani.curvature.streamed import probe_part, streamed_samples
from villani.curvature.trace import sampler_for
from villani.curvature.ways import Way
from villani.inputs.models import load_model
from villani.objective.objective import Objective
from villani.objective.trial import already_tried

IDS = torch.randint(0, 32, (2, 1, 9), generator=torch.Generator().manual_seed(1))
GROUP, PROBES, SEED = 1, 3, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write("gpt-2", tmp_path_factory.mktemp("sharded") / "gpt-2")


@pytest.fixture(scope="module")
def objectives(folder):
    """(streamed, resident), in float64."""
    with already_tried():
        return [
            Objective(load_model(folder, dtype=torch.float64, streamed=streamed).model, IDS)
            for streamed in (True, False)
        ]  # fmt: skip


def sampled(objective, residual):
    group = GroupPass(objective, GROUP, GradientSketch(objective.parameters, SEED))
    return group, *streamed_samples(group, PROBES, SEED, residual=residual)


def test_a_part_of_a_probe_is_that_of_the_whole_one(objectives):
    streamed, resident = (objective.parameters for objective in objectives)
    whole = rademacher_probe(resident, SEED, GROUP, 2)
    for index, signs in enumerate(whole):
        part = probe_part(streamed, SEED, GROUP, 2, index)
        assert torch.equal(part, signs)
        assert set(part.flatten().tolist()) <= {-1.0, 1.0}


def test_samples_are_products_of_the_whole_model(folder, objectives):
    """v∘Hv of the loss sum, summed over each tensor; the pass gives the loss and the gradient too."""
    group, traces, none = sampled(objectives[0], residual=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    tensors = list(model.parameters())
    logits = model(input_ids=IDS[GROUP], use_cache=False).logits[0, :-1]
    loss = torch.nn.functional.cross_entropy(logits, IDS[GROUP][0, 1:], reduction="sum")
    gradient = torch.autograd.grad(loss, tensors, create_graph=True)
    for probe in range(PROBES):
        v = rademacher_probe(objectives[1].parameters, SEED, GROUP, probe)
        curved = torch.autograd.grad(gradient, tensors, v, retain_graph=True)
        wanted = [float((a * b).sum()) for a, b in zip(curved, v, strict=True)]
        assert traces[probe] == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    assert none.shape == (0, len(tensors))
    assert group.loss == pytest.approx(loss.item())
    dots = [float((g.detach() * t.detach()).sum()) for g, t in zip(gradient, tensors, strict=True)]
    assert group.dots == pytest.approx(dots, rel=1e-9, abs=1e-9)


def test_both_parts_of_the_split_meet_the_same_labels_and_probes(objectives):
    """As the resident sampler draws them: every sample, not only the mean, is the same."""
    streamed, resident = objectives
    _, traces, gauss_newton = sampled(streamed, residual=True)
    sampler, sketch = sampler_for(resident, Way("gauss-newton")), GradientSketch(resident.parameters, SEED)
    whole = group_statistics(resident, GROUP, PROBES, SEED, sampler, sketch)
    assert traces == pytest.approx(whole.traces, rel=1e-9, abs=1e-9)
    assert gauss_newton == pytest.approx(whole.gauss_newton, rel=1e-9, abs=1e-9)
    assert (gauss_newton >= 0).all()
    assert len(np.unique(gauss_newton.sum(axis=1))) == PROBES, "every sample has labels of its own"
