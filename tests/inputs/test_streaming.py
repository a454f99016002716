"""Which checkpoints can be streamed, that the layout of their shards does not matter, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from tests.sharded import reshard, tensors_of, write
from villani.errors import InputError
from villani.inputs.models import load_model
from villani.objective.weights import streamed_weights


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write("llama", tmp_path_factory.mktemp("llama") / "model")


def values(folder, **options):
    loaded = load_model(folder, streamed=True, **options)
    weights = streamed_weights(loaded.model)
    return {name: weights[name] for name, _ in loaded.model.named_parameters()}


def refused(match, folder, **options):
    with pytest.raises(InputError, match=match) as caught:
        load_model(folder, streamed=True, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["gpt-2", "qwen3", "gpt-neox"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_values_are_those_that_transformers_loads(tmp_path, kind, dtype):
    """Tied tensors once, names that transformers changes, stored precisions widened."""
    folder = write(kind, tmp_path / kind, dtype)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours = values(folder)
    assert ours.keys() == dict(theirs.named_parameters()).keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.named_parameters())
    model = load_model(folder, streamed=True).model
    assert all(p.is_meta for p in model.parameters())
    buffers = dict(model.named_buffers())
    assert all(torch.equal(buffers[name], tensor) for name, tensor in theirs.named_buffers())


def test_the_order_of_shards_does_not_matter(tmp_path, llama):
    names = sorted(tensors_of(llama))
    one = reshard(llama, tmp_path / "one", [names])
    many = reshard(llama, tmp_path / "many", [names[k::5][::-1] for k in range(5)])
    whole = values(llama)
    for folder in (one, many):
        again = values(folder)
        assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_tensors_that_are_computed_as_they_are_loaded_are_refused(tmp_path):
    refused("cannot be streamed", write("mixtral", tmp_path / "mixtral"))


def test_missing_misshapen_and_unused_tensors_are_refused(tmp_path, llama):
    names = sorted(tensors_of(llama))
    short = reshard(llama, tmp_path / "short", [names[1:]])
    refused("no stored tensor is", short)
    other = reshard(llama, tmp_path / "other", [names])
    content = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(content | {"intermediate_size": 20}))
    refused(r"do not fit config.json, such as model.layers.0.mlp", other)
    less = reshard(llama, tmp_path / "less", [names])
    (less / "config.json").write_text(json.dumps(content | {"num_hidden_layers": 1}))
    refused("stored tensors are unused, such as model.layers.1", less)


def test_damaged_and_short_shards_are_refused_in_a_line(tmp_path, llama):
    folder = reshard(llama, tmp_path / "cut", [sorted(tensors_of(llama))])
    file = folder / "part-0.safetensors"
    content = file.read_bytes()
    loaded = load_model(folder, streamed=True)
    file.write_bytes(content[:-100])  # after it was opened: a map would end the process here
    weights = streamed_weights(loaded.model)
    with pytest.raises(InputError, match="shorter than it was at"):
        [weights[name] for name, _ in loaded.model.named_parameters()]
    assert weights.live == 0
    refused("truncated or corrupt", folder)
    file.unlink()
    with pytest.raises(InputError, match="cannot be read any more"):
        weights["lm_head.weight"]


def test_a_tied_tensor_that_is_stored_twice(tmp_path):
    folder = write("qwen3", tmp_path / "qwen3")
    tensors = tensors_of(folder)
    for change, ok in ((0.0, True), (1.0, False)):
        head = tensors["model.embed_tokens.weight"] + change
        for file in folder.glob("*.safetensors*"):
            file.unlink()
        save_file(tensors | {"lm_head.weight": head}, folder / "model.safetensors", {"format": "pt"})
        if ok:
            assert len(values(folder)) == len(tensors)
        else:
            refused("tied and stored twice", folder)


def test_what_does_not_fit_is_streamed(llama, monkeypatch):
    assert streamed_weights(load_model(llama).model) is None
    monkeypatch.setenv("VILLANI_MEMORY_GIB", "0.001")
    assert streamed_weights(load_model(llama).model) is not None
    with pytest.raises(InputError, match="would take about"):
        load_model(llama, streamed=False)


def test_random_weights_go_a_segment_at_a_time_when_asked():
    spec = "config:gpt2?layers=1&width=16&vocab=50&context=32"
    plain, streamed = (load_model(spec, streamed=s) for s in (False, True))
    weights = streamed_weights(streamed.model)
    assert all(torch.equal(weights[name], tensor) for name, tensor in plain.model.named_parameters())
    assert all(p.is_meta for p in streamed.model.parameters())
    assert streamed.model.lm_head.weight is streamed.model.transformer.wte.weight


def test_what_is_not_streamed_says_so(llama, tmp_path):
    refused("what is merged is not streamed", llama, adapter=tmp_path)
