"""Every statistic of `measure` with streamed weights, against the same measurement with the weights in memory."""

import pytest
import torch

from tests.sharded import write
from villani.errors import InputError
from villani.inputs.models import load_model
from villani.measurement.measure import measure
from villani.measurement.measure_to import measure_to
from villani.measurement.target import Target
from villani.objective.objective import Objective
from villani.objective.trial import already_tried

IDS = torch.randint(0, 32, (20, 1, 9), generator=torch.Generator().manual_seed(1))
WAYS = [
    {"trace": "taylor", "shares": 3},
    {"trace": "taylor", "blocks": "layer", "shares": 0, "probes": 2},
    {"trace": "gauss-newton", "probes": 2},
    {"trace": "hutchinson"},
    {"trace": "taylor", "finite": True, "probes": 2},
    {"trace": "gauss-newton", "finite": True, "probes": 2},
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """(streamed, resident): GPT-2 in float64, which no part of it leaves, and Llama in float32."""
    made = {}
    for kind, dtype in (("gpt-2", torch.float64), ("llama", torch.float32)):
        folder = write(kind, tmp_path_factory.mktemp("sharded") / kind)
        with already_tried():
            made[kind] = [
                Objective(load_model(folder, dtype=dtype, streamed=streamed).model, IDS) for streamed in (True, False)
            ]  # fmt: skip
    return made


def figures(m):
    of_tensors = [t.hessian_trace.value for t in (*m.tensors, *m.layers) if t.hessian_trace is not None]
    estimates = (m.loss, m.gradient_norm_squared, m.gradient_dot_parameters, m.hessian_trace)
    return [
        *[x for e in estimates for x in (e.value, e.sem)], m.decayed_norm_squared, *m.joint.covariance.ravel(),
        *of_tensors,
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "exact", "least"), [("gpt-2", 1e-10, 1e-12), ("llama", 1e-4, 3e-5)])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_statistic_is_that_of_weights_in_memory(pairs, kind, exact, least, way, monkeypatch):
    options = {"groups": range(4), **way}
    if options.pop("finite", False):
        options["groups"] = None
        for objective in pairs[kind]:
            monkeypatch.setattr(objective, "finite", True)
            monkeypatch.setattr(objective, "groups", objective.groups[:3])
    streamed, resident = (figures(measure(objective, **options)) for objective in pairs[kind])
    assert len(streamed) == len(resident)
    assert streamed == pytest.approx(resident, rel=exact, abs=least)


def test_a_wanted_error(pairs):
    streamed, resident = pairs["llama"]
    measurement, plan = measure_to(streamed, Target(20.0), least=3, shares=0)
    again = measure(resident, plan.probes, trace=plan.way.trace, groups=range(measurement.loss.n))
    assert measurement.hessian_trace.value == pytest.approx(again.hessian_trace.value, rel=1e-4)
    assert (plan.way.trace, plan.note) == ("gauss-newton", "weights are streamed")


def test_a_seed_gives_the_same_bits(pairs):
    one, two = (measure(pairs["llama"][0], groups=range(3), trace="taylor", shares=3) for _ in range(2))
    assert figures(one) == figures(two)


@pytest.mark.parametrize("products", ["finite-differences", "forward-over-reverse"])
def test_products_that_need_all_of_theta_are_refused(pairs, products):
    with pytest.raises(InputError, match="needs all of θ in memory") as caught:
        measure(pairs["llama"][0], trace="hutchinson", products=products)
    assert "\n" not in str(caught.value)
