"""Weights that are read when they are asked for: what is read, what is in memory, and what changes."""

import pytest
import torch

from villani.errors import InputError
from villani.objective.weights import Values, Weights, refuse_streamed, streamed_weights

STORED = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1.0, -2.0], dtype=torch.float64)}


def weights():
    """A source of copies of `STORED`, 24 and 16 bytes."""
    return Weights({name: tensor.clone for name, tensor in STORED.items()}, torch.device("cpu"))


def test_a_tensor_is_read_once_while_somebody_holds_it():
    source = weights()
    first = source["a"]
    assert torch.equal(first, STORED["a"])
    assert source["a"] is first
    assert (source.reads, source.live, source.peak) == (1, 24, 24)
    second = source["b"]
    assert torch.equal(second, STORED["b"])
    assert (source.reads, source.live, source.peak) == (2, 40, 40)
    del first
    assert (source.live, source.peak) == (16, 40)
    assert torch.equal(source["a"], STORED["a"])
    assert source.reads == 3
    del second
    assert (source.live, source.peak) == (0, 40)


def test_a_view_keeps_the_bytes_of_the_whole():
    source = weights()
    row = source["a"][0]
    assert source.live == 24
    del row
    assert source.live == 0


def test_two_names_of_one_storage_count_once():
    whole = torch.zeros(4)
    source = Weights({"one": lambda: whole[:2], "other": lambda: whole[2:]}, torch.device("cpu"))
    one, other = source["one"], source["other"]
    assert (one.numel(), other.numel(), source.live) == (2, 2, 16)


def test_changes_are_applied_from_the_outermost_in_and_end_with_their_block():
    source = weights()
    before = source["a"]
    with source.changing({"a": lambda t: t + 1}):
        assert source.changed
        with source.changing({"a": lambda t: 10 * t, "b": lambda t: -t}):
            assert torch.equal(source["a"], 10 * (STORED["a"] + 1))
            inner = source["b"]
            assert torch.equal(inner, -STORED["b"])
        assert torch.equal(source["a"], STORED["a"] + 1)
        assert torch.equal(source["b"], STORED["b"]), "what is held from inside is not handed out"
    assert not source.changed
    assert torch.equal(source["a"], STORED["a"])
    assert torch.equal(before, STORED["a"]), "what was read before is not written to"


def test_changes_end_with_an_error_too():
    source = weights()
    with pytest.raises(ZeroDivisionError), source.changing({"a": lambda t: 2 * t}):
        raise ZeroDivisionError
    assert not source.changed
    assert torch.equal(source["a"], STORED["a"])


def test_values_are_a_sequence_that_holds_nothing():
    source = weights()
    values = Values(source, ["b", "a", "b"])
    assert len(values) == 3
    assert torch.equal(values[1], STORED["a"])
    assert [t.sum().item() for t in values] == [-1, 15, -1]
    part = values[1:]
    assert isinstance(part, Values)
    assert len(part) == 2
    assert torch.equal(part[-1], STORED["b"])
    assert source.live == 0


def test_what_needs_all_of_theta_is_refused_of_streamed_models_alone():
    model = torch.nn.Linear(2, 2)
    assert streamed_weights(model) is None
    refuse_streamed(model, "a sampler", "use another")
    model.streamed_weights = source = weights()
    assert streamed_weights(model) is source
    with pytest.raises(InputError) as caught:
        refuse_streamed(model, "a sampler", "use another")
    assert str(caught.value) == (
        "a sampler needs all of θ in memory, and the weights are streamed from disk: use another"
    )
