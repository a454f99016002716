"""A cell: weights that come back, divergence, where it starts, and dropout that is the seed's."""

import pytest
import torch

from tests.commands.recommend.test_sweep import SMALL, settings, swept
from villani.commands import subject
from villani.commands.recommend.cells import load_cell, start_spec
from villani.commands.recommend.sweep_text import read_sweep_text
from villani.errors import InputError
from villani.objective.objective import Objective
from villani.work.work import Work


def test_weights_come_back(tmp_path):
    asked = settings(optimizers=["adamw"], learning_rate={"adamw": 0.01}, temperature=None)
    cell = swept(asked, tmp_path)[-1]
    loaded = load_cell(asked, cell, Work())
    text = read_sweep_text(asked, Work())
    objective = Objective(loaded.model, [{"input_ids": text.held_out.ids, "labels": text.held_out.labels}])
    assert objective.loss() == cell.curve[-1][1]
    smoothed = cell.smoothed.sum(axis=1) / cell.counts.sum()
    assert smoothed[1] >= smoothed[0] ** 2


def test_a_diverged_cell_is_a_result(tmp_path):
    wild = settings(optimizers=["sgd"], learning_rate={"sgd": 1.0}, temperature=None, weight_decay=[0.0, 1e30], seeds=1)
    fine, gone = swept(wild, tmp_path)
    assert gone.diverged
    assert gone.held_out is None
    assert gone.curve[0] == fine.curve[0]
    assert not gone.weights.exists()
    with pytest.raises(InputError, match="has no weights"):
        load_cell(wild, gone, Work())


def test_a_checkpoint_is_the_start_of_every_seed(checkpoint):
    asked = settings(model=str(checkpoint))
    assert start_spec(asked, 1) == start_spec(asked, 0)
    assert start_spec(settings(), 1) == SMALL["model"] + "&seed=1"
    assert start_spec(settings(model="config:gpt2?seed=3"), 2) == "config:gpt2?seed=5"
    assert start_spec(settings(model="builtin:tiny"), 2) == "builtin:tiny?seed=2"


def test_dropout_of_a_checkpoint_is_drawn_from_the_seed(monkeypatch, tmp_path):
    load, losses = subject.load_model, []

    def with_dropout(spec, **named):
        loaded = load(spec, **named)
        for module in loaded.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5
        return loaded

    monkeypatch.setattr(subject, "load_model", with_dropout)
    asked = settings(optimizers=["adamw"], learning_rate={"adamw": 0.01}, temperature=None, seeds=1)
    for name in ("a", "b"):
        torch.manual_seed(len(losses))
        losses.append([cell.sums.tolist() for cell in swept(asked, tmp_path / name)])
    assert losses[0] == losses[1]
