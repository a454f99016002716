"""What a result was made of: θ by its bits, wherever it is held, and nothing of a displaced one."""

import pytest
import torch

from tests.conftest import make_model, make_pool
from tests.sharded import write
from villani.curvature.trace import default_way
from villani.inputs.models import load_model
from villani.measurement.measure import measure
from villani.objective.objective import Objective
from villani.objective.origin import origin_of
from villani.objective.trial import already_tried

IDS = torch.randint(0, 32, (3, 1, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(streamed, resident)."""
    folder = write("gpt-2", tmp_path_factory.mktemp("sharded") / "gpt-2")
    with already_tried():
        return [Objective(load_model(folder, streamed=streamed).model, IDS) for streamed in (True, False)]


def test_streamed_weights_have_the_fingerprint_of_those_in_memory(pair):
    streamed, resident = (origin_of(objective, "measure", 0) for objective in pair)
    assert pair[0].streamed
    assert not pair[1].streamed
    assert streamed.provenance == resident.provenance
    assert streamed == resident
    direction = [torch.ones(t.shape) for t in pair[1].parameters.tensors]
    bits = set()
    for objective in pair:
        with objective.displaced(direction, 0.5):
            bits.add(origin_of(objective, "measure", 0).provenance.parameter_checksum)
    assert len(bits) == 1
    assert streamed.provenance.parameter_checksum not in bits


@pytest.mark.parametrize("place", [0, 1])
def test_what_is_measured_at_a_displaced_point_has_no_origin(pair, place):
    objective = pair[place]
    direction = [torch.ones(t.shape) for t in pair[1].parameters.tensors]
    with objective.displaced(direction, 0.5), objective.displaced(direction, 0.25):
        assert measure(objective, shares=0).origin is None
    own = measure(objective, shares=0).origin
    trace, reason = default_way(objective, range(len(objective.groups)))
    assert own == origin_of(
        objective, "measure", 0, probes=1, trace=trace, blocks="whole", products="reverse-over-reverse",
        trace_reason=reason, deflated=None,
    )  # fmt: skip


def test_every_entry_and_the_order_of_a_tensor_count():
    objective = Objective(make_model("gpt2"), make_pool(3))
    seen = {origin_of(objective, "measure", 0).provenance.parameter_checksum}
    for tensor in objective.parameters.tensors:
        with torch.no_grad():
            before = tensor.clone()
            tensor.view(-1)[-1] += 1e-3
            seen.add(origin_of(objective, "measure", 0).provenance.parameter_checksum)
            tensor.copy_(before)
    assert len(seen) == 1 + len(objective.parameters.tensors)
    assert [t.parameters for t in origin_of(objective, "measure", 0).tensors] == [
        p.numel() for p in objective.model.parameters()
    ]
