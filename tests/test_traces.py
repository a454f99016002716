"""Graphs that tests share: only between models that are alike, and not where traced code is patched."""

import pytest
import torch
from torch import nn

from tests import traces
from tests.conftest import SHARING, make_model, make_pool
from tests.traces import Doubt, Sharing, architecture
from villani.errors import InputError
from villani.objective import graph as graphs
from villani.objective.graph import trace_loss
from villani.objective.objective import Objective


def an_objective(change=lambda model: None, scale=0.3):
    model = make_model("gpt2", scale)
    change(model)
    return Objective(model, make_pool(1))


CHANGES = {
    "an attribute": lambda model: setattr(model.transformer.h[0].attn, "scaling", 0.1),
    "a function": lambda model: setattr(model.transformer.h[0].mlp, "act", nn.Tanh()),
    "a configuration": lambda model: setattr(model.config, "scale_attn_weights", False),
    "a frozen tensor": lambda model: model.transformer.ln_f.weight.requires_grad_(False),
    "a precision": lambda model: model.float(),
    "a buffer": lambda model: model.register_buffer("more", torch.zeros(1)),
    "a hook": lambda model: model.transformer.ln_f.register_forward_hook(lambda *_: None),
    "a tie": lambda model: setattr(model.lm_head, "weight", nn.Parameter(model.lm_head.weight.detach().clone())),
}


@pytest.mark.parametrize("change", CHANGES)
def test_models_that_differ_share_nothing(change):
    assert architecture(an_objective()) == architecture(an_objective(scale=0.1)), "the same with other weights"
    try:
        assert architecture(an_objective()) != architecture(an_objective(CHANGES[change]))
    except Doubt:
        assert change == "a frozen tensor"


def test_a_shared_graph_gives_the_loss_of_whoever_has_it_and_patches_end_sharing(monkeypatch):
    count, export = [], graphs.export
    monkeypatch.setattr(traces, "GRAPHS", {})
    monkeypatch.setattr(graphs, "export", lambda *arguments: count.append(0) or export(*arguments))
    SHARING.begin(monkeypatch)  # as if that were no patch
    for scale, traced in ((0.3, 1), (0.1, 1), (0.2, 2)):
        if traced == 2:
            monkeypatch.setattr(nn.functional, "gelu", nn.functional.gelu)
        objective = an_objective(scale=scale)
        batch = next(objective.batches(0))
        graph = trace_loss(objective, batch)
        with objective.evaluating(), torch.no_grad():
            expected = float(objective.forward(batch).loss)
            assert float(graph.run(objective.parameters.tensors)) == pytest.approx(expected)
        assert len(count) == traced


def test_models_that_are_alike_are_tried_out_once_and_labels_always(monkeypatch):
    sharing, tried = Sharing(), []
    first, again, other = an_objective(), an_objective(scale=0.1), an_objective(CHANGES["a hook"])
    labelled = Objective(make_model("gpt2"), [group | {"labels": group["input_ids"].roll(1)} for group in make_pool(1)])
    monkeypatch.setattr(traces, "check_forward", tried.append)
    for objective in (first, again, other, labelled, labelled):
        sharing.try_once(objective)
    assert tried == [first, other, labelled, labelled]


def test_a_model_that_was_refused_is_refused_again(monkeypatch):
    def refuse(objective):
        raise InputError("random")

    sharing, objective = Sharing(), an_objective()
    monkeypatch.setattr(traces, "check_forward", refuse)
    for _ in range(2):
        with pytest.raises(InputError):
            sharing.try_once(objective)
