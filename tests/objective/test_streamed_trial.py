"""What a forward pass with streamed weights is refused for."""

import pytest
import torch

from tests.sharded import write
from villani.errors import InputError
from villani.inputs.models import load_model
from villani.objective.objective import Objective

IDS = torch.randint(0, 32, (3, 1, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write("gpt-2", tmp_path_factory.mktemp("sharded") / "gpt-2")


def test_a_model_that_sees_what_it_predicts_is_refused(folder):
    model = load_model(folder, streamed=True).model
    forward = model.transformer.wte.forward
    model.transformer.wte.forward = lambda ids: forward(ids) + forward(ids).mean(dim=1, keepdim=True)
    with pytest.raises(InputError, match="is not causal"):
        Objective(model, IDS)


def test_a_causal_model_is_taken(folder):
    assert Objective(load_model(folder, streamed=True).model, IDS).streamed


def test_random_operations_are_refused(folder):
    model = load_model(folder, streamed=True).model
    forward = model.transformer.wte.forward
    model.transformer.wte.forward = lambda ids: forward(ids) * (1 + torch.rand(1))
    with pytest.raises(InputError, match="random in eval mode"):
        Objective(model, IDS)
