"""A sample of the architectures of transformers against independent calculations; all of them: `benchmarks/zoo.py`."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests import zoo_checks
from tests.products import hessian_vector_product
from tests.zoo_checks import LIMITS, examine, product_error, rescaling_error, taylor_error
from tests.zoo_models import all_in_float64, zoo_model, zoo_tokens
from tests.zoo_symmetries import count_symmetries
from villani.criteria.degrees import Degrees
from villani.criteria.symmetries import Generator
from villani.curvature.taylor import Sweep
from villani.objective.graph import trace_loss
from villani.objective.objective import Objective

COMPLETE = [
    "apertus", "bart", "bert", "bloom", "cohere", "deepseek_v3", "diffllama", "falcon", "gemma4_text", "gpt_bigcode",
    "mixtral", "nemotron", "phi3", "stablelm",
]  # fmt: skip


@pytest.mark.parametrize("kind", COMPLETE)
def test_every_figure_is_right_and_every_symmetry_is_found(kind):
    row = examine(kind)
    assert row["stage"] == "traced", row.get("reason")
    assert row["wrong"] == []
    assert "taylor" in row, row.get("taylor_refused")
    assert row["tensors"][0] == row["tensors"][1]
    assert row["channels"][0] == row["channels"][1], row["missing"]
    assert row["channels"][1] > 0


def test_shapes_that_depend_on_tokens_leave_figures_right_and_refuse_the_search():
    row = examine("jetmoe")
    assert row["wrong"] == []
    assert "taylor" in row
    assert "a shape depends on the tokens" in row["symmetries_refused"]


@pytest.mark.parametrize(("kind", "reason"), [
    ("hrm_text", "gradient is not that of its loss"), ("reformer", "fails in its backward pass"),
])  # fmt: skip
def test_what_would_give_wrong_numbers_is_refused(kind, reason):
    row = examine(kind)
    assert row["stage"] == "refused"
    assert reason in row["reason"]


def test_checks_fail_where_figures_are_wrong(monkeypatch):
    ids = zoo_tokens()
    with all_in_float64(), sdpa_kernel(SDPBackend.MATH):
        objective = Objective(zoo_model("arcee"), ids)
        batch = next(objective.batches(0))
        names = [p.name for p in objective.parameters.parameters]

        degrees = Degrees(trace_loss(objective, batch))
        before = count_symmetries(objective.model, ids[0], degrees, names)
        norm = degrees.tensors[names.index("model.norm.weight")]
        degrees.equations.demand_equal(int(norm.reshape(-1)[0]), 0)  # one channel fewer
        after = count_symmetries(objective.model, ids[0], degrees, names)
        assert before.complete
        assert after.channels == (before.channels[0] - 1, before.channels[1])
        assert "model.norm.weight" in after.missing

        assert rescaling_error(objective, [Generator({0: torch.ones(1, 1)})], ids[0]) > 1e-3

        off = 1.0001
        scaled = lambda *arguments: [off * h for h in hessian_vector_product(*arguments)]
        monkeypatch.setattr(zoo_checks, "hessian_vector_product", scaled)
        assert product_error(objective, ids[0]) > LIMITS["product"]

        class Wrong(Sweep):
            def features(self, batch):
                jet = super().features(batch)
                jet.second = {c: off * t for c, t in jet.second.items()}
                return jet

        monkeypatch.setattr(zoo_checks, "Sweep", Wrong)
        assert taylor_error(objective, batch) > LIMITS["taylor"]
