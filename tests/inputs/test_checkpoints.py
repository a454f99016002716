"""A checkpoint is data: nothing in its folder chooses code, kernels, files elsewhere, or the network."""

import json
import os
import socket
import time

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM

from tests.inputs.conftest import TINY, parameters, refused
from villani.inputs.models import load_model

IDS = torch.arange(12)[None]


@pytest.fixture
def folder(tmp_path):
    load_model(TINY).model.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Whoever opens a connection fails the test, whatever is made of the error."""
    asked = []

    def connect(self, address):
        asked.append(address)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", connect)
    yield
    assert not asked


def configure(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize(
    "value", ["sdpa", "flex_attention", "flash_attention_2", "kernels-community/flash-attn3:f", {}]
)
def test_attention_is_eager_whatever_the_configuration_says(folder, key, value):
    configure(folder, **{key: value})
    assert load_model(str(folder)).model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    "changes",
    [
        {"_experts_implementation": "kernels-community/megablocks"},
        {"transformers_weights": "../elsewhere/model.safetensors"},
        {"dtype": "float16", "torch_dtype": "bfloat16", "torchscript": True},
        {"fusion_config": {"patch_embeddings": True}, "distributed_config": {"tp_size": 2}, "use_kernels": True},
        {"get_text_config": "x", "to_dict": 1, "attribute_map": {"n_layer": "x"}, "sub_configs": {"a": 1}},
        {"output_attentions": True, "return_dict": False, "use_cache": True},
        {"name_or_path": "somebody/else", "_commit_hash": "x", "base_model_name_or_path": "somebody/else"},
    ],
)
def test_keys_that_choose_no_function_change_nothing(folder, changes):
    configure(folder, **changes)
    loaded = load_model(str(folder))
    assert torch.equal(parameters(loaded.model), parameters(load_model(TINY).model))
    assert next(loaded.model.parameters()).dtype == torch.float32
    assert torch.equal(loaded.model(IDS).logits, load_model(TINY).model(IDS).logits)


def test_a_part_of_another_kind_is_no_traceback(folder):
    configure(folder, text_config={"_attn_implementation": "sdpa"})
    refused("cannot build it", load_model, str(folder))


def test_other_files_of_the_folder_have_no_say(folder):
    """An adapter, a distributed checkpoint, a script and broken generation settings lie beside the weights."""
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/else", "peft_type": "LORA"}')
    (folder / "generation_config.json").write_text("{")
    (folder / ".metadata").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("raise SystemExit('owned')")
    safetensors.torch.save_file({"x": torch.zeros(2)}, folder / "shard-00001-model-00001-of-00001.safetensors")
    assert torch.equal(parameters(load_model(str(folder)).model), parameters(load_model(TINY).model))


def test_weights_are_copies_of_the_file_both_ways(folder):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    model = load_model(str(folder)).model
    before = parameters(model).clone()
    with file.open("r+b") as stored:  # the same file, not another of its name
        stored.seek(4000)
        stored.write(b"\1" * 2000)
    assert torch.equal(parameters(model), before)
    file.write_bytes(content)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    assert file.read_bytes() == content


LEGACY = {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        ("config:gpt2?layers=2&width=16&vocab=50&context=32", {}),
        ("config:gpt-neo-125m?layers=2&width=16&vocab=50&context=32", {"window_size": 3}),
        ("config:pythia-70m?layers=1&width=32&vocab=50&context=32", {"rotary_pct": 0.5}),
        ("config:opt-125m?layers=1&width=16&vocab=50&context=32", {"activation_function": "gelu"}),
        ("config:llama-160m?layers=1&width=16&vocab=50&context=32", LEGACY),
        ("config:qwen2-125m?layers=2&width=16&vocab=50&context=32", {"sliding_window": 4, "use_sliding_window": True}),
    ],
)
def test_the_function_is_the_one_that_transformers_reads(tmp_path, spec, changes):
    load_model(spec).model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    for key in ("rope_parameters", "layer_types") if changes else ():  # as configurations were written before
        content.pop(key, None)
    file.write_text(json.dumps(content | changes))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", dtype=torch.float32).eval()
    ours = load_model(str(tmp_path)).model
    assert torch.equal(ours(IDS).logits, theirs(IDS).logits)
    assert not torch.equal(ours(IDS).logits, load_model(spec).model(IDS).logits) or not changes


@pytest.mark.parametrize("layers", [0, -1])
def test_layers_that_are_stored_and_not_there_are_refused(folder, layers):
    configure(folder, n_layer=layers)
    refused("11 stored tensors are unused, such as transformer.h.0", load_model, str(folder))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"n_layer": 10**12}, "n_layer in config.json is out of range"),
        ({"n_layer": 10**5}, "100,000 layers, and .* tensors are stored"),
        ({"n_embd": 10**6, "n_inner": 4 * 10**6}, "out of range|would take|does not fit"),
        ({"vocab_size": 10**10}, "would take about .* of memory|does not fit"),
        ({"n_positions": 10**6}, "does not fit the weights|would take about"),
        ({"n_embd": float("1e999")}, "Infinity is no number of JSON"),
        ({"model_type": "gpt_neo", "attention_types": [[["global"], 10**9]]}, "attention_types .* out of range"),
        ({"model_type": "gpt_neo", "attention_types": [[["local"] * 500, 10**5]]}, "attention_types .* more than"),
        ({"model_type": ["gpt2"]}, "is no causal language model"),
    ],
)
def test_sizes_are_refused_before_anything_is_made_of_them(folder, changes, match):
    configure(folder, **changes)
    began = time.monotonic()
    refused(match, load_model, str(folder))
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ('{"model_type": "gpt2", "model_type": "llama"}', "the key 'model_type' is there twice"),
        ('{"a": ' * 10**5 + "1" + "}" * 10**5, "too deeply nested"),
        ('{"model_type": "gpt2", "n_embd": NaN}', "NaN is no number of JSON"),
        ('{"model_type": "gpt2", "n_embd": ' + "9" * 5000 + "}", "cannot be read as JSON"),
        ("\ud800".encode("utf-16", "surrogatepass"), "cannot be read as JSON"),
    ],
)
def test_json_that_is_not_plain_is_refused(folder, content, match):
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(match, load_model, str(folder))


def sharded(folder, index):
    """A checkpoint whose weights are found by an index only."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)


@pytest.mark.parametrize("name", ["../outside.safetensors", "a/../../outside.safetensors", "ABSOLUTE"])
def test_an_index_names_files_of_its_own_folder_only(folder, tmp_path, name):
    (tmp_path / "outside.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    name = str(tmp_path / "outside.safetensors") if name == "ABSOLUTE" else name
    sharded(folder, json.dumps({"weight_map": {"transformer.wte.weight": name}}))
    refused("leads out of the folder", load_model, str(folder))


def test_an_index_that_says_a_tensor_twice_is_refused(folder):
    sharded(folder, '{"weight_map": {"a": "model-00001-of-00001.safetensors", "a": "b"}}')
    refused("the key 'a' is there twice", load_model, str(folder))


def test_a_tensor_in_two_files_is_refused(folder):
    sharded(folder, json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors", "b": "more.safetensors"}}))
    safetensors.torch.save_file({"transformer.wte.weight": torch.zeros(2)}, folder / "more.safetensors")
    refused("transformer.wte.weight is in .* and in more.safetensors", load_model, str(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_links_out_of_the_folder_are_refused_and_those_of_the_hub_cache_are_not(folder, tmp_path, name):
    outside = (folder / name).rename(tmp_path / f"other-{name}")
    (folder / name).symlink_to(outside)
    refused("leads out of the folder", load_model, str(folder))
    snapshot = tmp_path / "models--a" / "snapshots" / "0123"
    (tmp_path / "models--a" / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(folder.iterdir()):
        blob = tmp_path / "models--a" / "blobs" / str(number)
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(blob)
    assert torch.equal(parameters(load_model(str(snapshot)).model), parameters(load_model(TINY).model))


def test_a_pipe_in_place_of_a_file_is_not_opened(folder):
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(folder / f"{name}.kept")
        os.mkfifo(folder / name)
        refused("not a regular file|no config.json", load_model, str(folder))
        (folder / name).unlink()
        (folder / f"{name}.kept").rename(folder / name)


@pytest.mark.parametrize("spec", ["~nosuchuser/model", "a" * 300, "./" + "b/" * 3000])
def test_a_path_that_cannot_be_is_refused(spec):
    refused("no such path can be", load_model, spec)


@pytest.mark.parametrize("device", ["meta", "cuda:-1", "", "hpu", "cpu:cpu"])
def test_devices_that_hold_no_numbers_are_refused(device):
    refused("cannot be used", load_model, "builtin:tiny", device=device)
