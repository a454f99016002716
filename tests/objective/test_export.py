"""What export makes of a model: tied weights once, the same numbers, GELU as one operation, no word on stderr."""

import torch
from torch import nn

from tests.conftest import make_model, make_pool
from villani.objective import export as exporting
from villani.objective.export import Logits, Loss, compiled_when_called, export
from villani.objective.interpret import Evaluation, interpret
from villani.objective.objective import Objective

aten = torch.ops.aten


class Exported:
    """A graph as the interpreter takes it."""

    def __init__(self, nodes, parameters):
        self.nodes, self.parameters = nodes, parameters


def computed(exported, objective, inputs):
    nodes, parameters, constants, users, output = exported
    tensors = objective.parameters.tensors
    given = {n: tensors[i] for n, i in parameters.items()} | constants | dict(zip(users, inputs, strict=True))
    values = dict(interpret(Exported(nodes, parameters), Evaluation(given)))
    return values[output]


def test_logits_and_loss_are_the_models(capfd):
    """With a padded group, and tied weights as one parameter."""
    objective = Objective(make_model("gpt2"), make_pool(2))
    [batch] = objective.batches(1)
    with objective.evaluating(), torch.no_grad():
        forward = objective.forward(batch)
    for module, expected in ((Loss(objective, batch), forward.loss), (Logits(objective, batch), None)):
        inputs = module.inputs if isinstance(module, Loss) else tuple(batch.inputs.values())
        exported = export(objective, module, inputs)
        with objective.evaluating(), torch.no_grad():
            value = computed(exported, objective, inputs)
            expected = objective.logits(batch) if expected is None else expected
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
        assert set(exported[1].values()) == set(range(len(objective.parameters.tensors)))  # the tied one by either name
    assert capfd.readouterr().err == ""


class Spelled(nn.Module):
    """The tanh form of GELU, spelled out."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-2, 2, 5, dtype=torch.float64))

    def forward(self):
        x = self.w * 1.0
        inner = torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * torch.pow(x, 3.0)))
        return (0.5 * x * (1.0 + inner)).sum()


def test_a_gelu_that_is_spelled_out_is_one_operation():
    objective = Objective(Spelled(), [0.0], loss_fn=lambda m, _: m())
    exported = export(objective, Loss(objective, 0.0), ())
    targets = [n.target for n in exported[0]]
    assert aten.gelu.default in targets
    assert aten.tanh.default not in targets
    with torch.no_grad():
        value = computed(exported, objective, ())
    assert torch.allclose(value, nn.functional.gelu(objective.model.w, approximate="tanh").sum())


def test_the_code_of_a_graph_is_written_when_it_is_run(monkeypatch):
    linear, x = nn.Linear(3, 2), torch.randn(4, 3)
    monkeypatch.setattr(torch.fx.GraphModule, "recompile", compiled_when_called)
    module = torch.export.export(linear, (x,)).module()
    assert "_code" not in vars(module)
    assert torch.equal(module(x), linear(x))
    assert "torch.ops.aten.linear" in module.code


def test_graphs_whose_code_is_never_written_are_the_same(model, monkeypatch):
    objective = Objective(model, make_pool(2))
    [batch] = objective.batches(1)
    module = Logits(objective, batch)
    found = []
    for way in (compiled_when_called, torch.fx.GraphModule.recompile):
        monkeypatch.setattr(exporting, "compiled_when_called", way)
        nodes, *_ = export(objective, module, tuple(batch.inputs.values()))
        calls = [node for node in nodes if node.op == "call_function"]
        found.append([(str(n.target), n.name, str(n.args), str(n.meta["nn_module_stack"])) for n in calls])
    assert found[0] == found[1]
    assert len(found[0]) > 20
