"""The audit of orbits with streamed weights, against the same audit with the weights in memory."""

import weakref

import numpy as np
import pytest
import torch

from tests.objective.test_streamed import Allocated
from tests.sharded import write
from villani.criteria import differential, partition
from villani.criteria.coverage import audit_coverage
from villani.criteria.differential import audit_differential
from villani.criteria.orbits import replaced, rescaled
from villani.criteria.parts import group_traces, part_statistics, parts_of
from villani.criteria.rays import directions
from villani.criteria.search import descent
from villani.criteria.streamed_parts import streamed_gradients
from villani.errors import InputError
from villani.inputs.models import load_model
from villani.objective import spilled
from villani.objective.objective import Objective
from villani.objective.trial import already_tried

IDS = torch.randint(0, 32, (9, 1, 9), generator=torch.Generator().manual_seed(1))

FIELDS = ("tokens", "losses", "norms", "dots", "squares", "products", "totals", "traces", "gram", "rounding")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(streamed, resident) GPT-2 in float64."""
    folder = write("gpt-2", tmp_path_factory.mktemp("sharded") / "gpt-2")
    with already_tried():
        return [
            Objective(load_model(folder, dtype=torch.float64, streamed=s).model, IDS, weight_decay=0.1)
            for s in (True, False)
        ]  # fmt: skip


def test_parts_with_probes_of_their_own(pair):
    space = pair[1].parameters
    exponents = {
        5: torch.cat([torch.ones(16), torch.zeros(16), -torch.ones(16)]),  # of queries, keys and values
        4: torch.tensor(1.0), 8: torch.tensor(-1.0),
    }  # fmt: skip
    parts = parts_of(space, [exponents])
    assert parts.count > len(space.parameters)
    for blocks in ((), ([4, 5], [9])):
        one, other = (part_statistics(o, parts, range(4), probes=2, blocks=blocks) for o in pair)
        for name in (
            "tokens",
            "losses",
            "norms",
            "dots",
            "squares",
            "products",
            "totals",
            "traces",
            "gram",
            "rounding",
        ):
            a, b = getattr(one, name), getattr(other, name)
            assert a.shape == b.shape
            torch.testing.assert_close(
                torch.tensor(a), torch.tensor(b), rtol=1e-9, atol=1e-11, equal_nan=True, msg=name
            )


def test_a_descent_moves_the_same_tensors(pair):
    parts = parts_of(pair[1].parameters, [])
    before = pair[0].parameters.checksum()
    one, other = (descent(o, parts, [3, 8], range(3), 2) for o in pair)
    assert list(one) == list(other) == [3, 8]
    for index in one:
        torch.testing.assert_close(one[index], other[index], rtol=1e-8, atol=1e-10)
    assert pair[0].parameters.checksum() == before == pair[1].parameters.checksum()


def test_orbits_are_found_measured_and_walked(pair):
    one, other = (audit_differential(o, 10.0, search=0, confirmed=1, scales=(2.0,)) for o in pair)
    assert one.outcome == other.outcome
    assert one.symmetries == other.symmetries
    found = {f.orbit.name: f for f in other.findings}
    assert {f.orbit.name for f in one.findings} == found.keys()
    for a in one.findings:
        b = found[a.orbit.name]
        assert a.confirmed == b.confirmed
        assert a.threshold.laplacian.value == pytest.approx(b.threshold.laplacian.value, rel=1e-8, abs=1e-10)
        assert a.threshold.upper == pytest.approx(b.threshold.upper, rel=1e-6)
        assert [s.scale for s in a.walk] == [s.scale for s in b.walk]
        for s, t in zip(a.walk, b.walk, strict=True):
            assert s.measured.value == pytest.approx(t.measured.value, rel=1e-8)
            assert s.loss_change <= 1e-12


@pytest.mark.parametrize("scale", [2.0, 1.1])
def test_a_rescaled_theta(pair, scale):
    exponents = {4: torch.tensor(1.0), 5: torch.cat([torch.ones(16), torch.zeros(16), -torch.ones(16)])}
    before = pair[0].parameters.checksum()
    with rescaled(pair[0], exponents, scale), rescaled(pair[1], exponents, scale):
        assert pair[0].parameters.checksum() == pair[1].parameters.checksum() != before
        with replaced(pair[0], {4: torch.ones(16, 48)}), replaced(pair[1], {4: torch.ones(16, 48)}):
            assert pair[0].parameters.checksum() == pair[1].parameters.checksum()
    assert pair[0].parameters.checksum() == before


def test_what_takes_copies_of_theta_is_left_out_with_a_line(pair, monkeypatch):
    monkeypatch.setattr(pair[0], "weight_decay", 0.0)
    coverage = audit_coverage(pair[0])
    assert coverage.growth.verdict == "unknown"
    for line in (coverage.growth.reason, *(_refusal(make) for make in directions(pair[0]).values())):
        assert "streamed" in line
        assert "\n" not in line


def _refusal(call):
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("kind", ["llama", "gpt-neo"])  # a table and a head, and one tensor that is both
def test_at_most_so_many_of_the_largest_tensor_are_held(tmp_path, monkeypatch, kind):
    """While orbits are screened and confirmed, however many probes there are and however parts divide a tensor."""
    for module in (partition, spilled):
        monkeypatch.setattr(module, "PIECE", 1 << 16)  # a sixteenth of the tensor, as of one of 67 million entries
    folder = write(kind, tmp_path, vocab_size=16_384, hidden_size=64)
    with already_tried():
        objective = Objective(load_model(folder, streamed=True).model, IDS[:1], weight_decay=0.1)
    space = objective.parameters
    index = int(np.argmax(space.sizes))
    largest = 4 * int(space.sizes[index])
    quarters = {index: torch.arange(4).repeat_interleave(16)}
    parts = parts_of(space, [quarters])
    apart = [[part] for part in parts.labels[index].unique().tolist()]
    together = [list(range(parts.count))]
    group_traces(objective, parts, 0, seed=1, probes=1, blocks=together)  # traces graphs
    peaks = {}
    for name, blocks in (("screening", []), ("confirming", together), ("a tensor apart", apart)):
        with Allocated() as allocated:
            group_traces(objective, parts, 0, seed=1, probes=2, blocks=blocks)
        peaks[name] = allocated.peak / largest
    with Allocated() as allocated:
        streamed_gradients(objective, parts, [0], 1, 16)
    peaks["gradients"] = allocated.peak / largest
    assert max(peaks.values()) < 5.5, peaks
    assert peaks["screening"] > 3.5  # values, a gradient, a probe and a product: the count sees them


def test_the_search_for_symmetries_leaves_nothing(pair, monkeypatch):
    """Its forms of every value are gone when orbits are looked at, without which screening holds them beside θ."""
    made, alive = [], []

    class Watched(differential.Degrees):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(weakref.ref(self))

    def stop(*args):
        alive.extend(one() is not None for one in made)
        raise InputError("enough")

    monkeypatch.setattr(differential, "Degrees", Watched)
    monkeypatch.setattr(differential, "orbits_of", stop)
    with pytest.raises(InputError, match="enough"):
        audit_differential(pair[0], 10.0, search=0)
    assert alive == [False]
