import json

import pytest
import safetensors.torch
import torch

from tests.inputs.conftest import TINY, parameters, refused
from villani.inputs.models import load_model


@pytest.fixture
def folder(tmp_path):
    load_model(TINY).model.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def rewrite(folder, change):
    """Apply `change` to the tensors of a checkpoint."""
    file = folder / "model.safetensors"
    safetensors.torch.save_file(change(safetensors.torch.load_file(file)), file, metadata={"format": "pt"})


def configure(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_embedding_gradient_includes_the_row_that_a_checkpoint_calls_padding(tmp_path):
    loaded = load_model("config:opt-125m?layers=1&width=16&vocab=50&context=32&tied=0")
    loaded.model.config.pad_token_id = 1
    loaded.model.save_pretrained(tmp_path / "opt")
    model = load_model(str(tmp_path / "opt")).model
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.get_input_embeddings().weight.grad[1].abs().max() > 0


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("", "no model is named"),
        ("./nowhere", "no such folder"),
        ("weights.safetensors", "no such folder"),
        ("two words", "nor a hub id"),
    ],
)
def test_spec_that_names_no_model_is_refused(spec, match):
    refused(match, load_model, spec)


def test_unknown_device_is_refused():
    refused("device 'abacus'", load_model, "builtin:tiny", device="abacus")


def test_folder_round_trip(folder):
    loaded = load_model(str(folder))
    assert torch.equal(parameters(loaded.model), parameters(load_model(TINY).model))
    assert loaded.record.description == "weights of folder checkpoint (safetensors)"
    assert loaded.record.architecture == "GPT2LMHeadModel"
    assert loaded.model.config._attn_implementation == "eager"
    assert loaded.tokenizer == str(folder)


def test_half_precision_checkpoint_is_measured_in_float32(folder):
    rewrite(folder, lambda tensors: {key: value.bfloat16() for key, value in tensors.items()})
    loaded = load_model(str(folder))
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert "stored in bfloat16, converted to float32" in loaded.record.description


def test_sharded_checkpoint_and_its_missing_shard(tmp_path):
    load_model(TINY).model.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    shards = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert torch.equal(parameters(load_model(str(tmp_path / "shards")).model), parameters(load_model(TINY).model))
    shards[0].unlink()
    refused(shards[0].name, load_model, str(tmp_path / "shards"))


def test_unused_tensors_are_refused_unless_named_and_then_told(folder):
    rewrite(folder, lambda tensors: tensors | {"value_head.weight": torch.zeros(3), "score.weight": torch.zeros(2)})
    refused("2 stored tensors are unused, such as score.weight.*--allow-unused", load_model, str(folder))
    refused("1 stored tensors are unused, such as score.weight", load_model, str(folder), allow_unused="^value_head")
    refused("not a regular expression", load_model, str(folder), allow_unused="(")
    loaded = load_model(str(folder), allow_unused=r"value_head|score")
    assert "2 tensors unused, such as score.weight" in loaded.record.description


def test_missing_tensor_is_refused(folder):
    rewrite(folder, lambda tensors: {key: value for key, value in tensors.items() if "ln_f" not in key})
    refused("2 tensors missing, such as transformer.ln_f.bias", load_model, str(folder))


def test_tensors_of_another_width_are_refused(folder):
    configure(folder, n_embd=32, n_inner=128)
    refused(r"do not fit config.json, such as \S+: stored \(.*\), expected \(.*\)", load_model, str(folder))


def test_fewer_layers_than_stored_are_told(folder):
    configure(folder, n_layer=2)
    refused("tensors missing", load_model, str(folder))


@pytest.mark.parametrize("keep", [0, 4, 200, -10])
def test_truncated_weights_are_refused(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused("model.safetensors is truncated or corrupt", load_model, str(folder))


def test_nan_weights_are_refused(folder):
    rewrite(folder, lambda tensors: {key: torch.full_like(value, torch.nan) for key, value in tensors.items()})
    refused("NaN", load_model, str(folder))


def test_integer_weights_are_refused(folder):
    rewrite(folder, lambda tensors: {key: value.to(torch.int8) for key, value in tensors.items()})
    refused("stored as I8", load_model, str(folder))


def test_pickle_is_refused_and_never_read(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    refused(
        "only pytorch_model.bin, a pickle; villani reads safetensors only: .*save_pretrained", load_model, str(folder)
    )


def test_gguf_says_what_to_do_and_is_never_read(folder):
    remedy = r"GGUF files are mostly quantised: give the checkpoint .*gguf_file='tiny.Q4_0.gguf'\).save_pretrained"
    (folder / "tiny.Q4_0.gguf").write_bytes(b"GGUF" + bytes(64))
    assert load_model(str(folder)).record.architecture == "GPT2LMHeadModel"  # the safetensors beside it
    refused(rf"safetensors only; {remedy}", load_model, str(folder / "tiny.Q4_0.gguf"))
    (folder / "model.safetensors").unlink()
    refused(rf"needs model.safetensors, found only tiny.Q4_0.gguf; {remedy}", load_model, str(folder))
    (folder / "config.json").unlink()
    refused(rf"no config.json there: {remedy}", load_model, str(folder))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "model type None"),
        ('{"model_type": "gpt9"}', "model type 'gpt9'"),
        ('{"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "mine.Mine"}}', "trust-remote-code"),
        ('{"model_type": "gpt2", "quantization_config": {}}', "quantised"),
        ('{"model_type": "gpt2", "n_layer": "many"}', "cannot build it"),
    ],
)
def test_bad_configuration_is_refused(folder, content, match):
    (folder / "config.json").write_text(content)
    refused(match, load_model, str(folder))


def test_folder_without_configuration_and_file(folder):
    refused("is a file", load_model, str(folder / "model.safetensors"))
    (folder / "config.json").unlink()
    refused("no config.json", load_model, str(folder))
