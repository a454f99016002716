"""A PEFT adapter is data: a sum of small matrices that is merged into the base that a user names, and nothing else."""

import json
import random
import socket

import pytest
import safetensors.torch
import torch
from torch.nn import functional as F

from tests.damage import damaged_bytes, damaged_json
from tests.inputs.conftest import parameters, refused
from tests.test_cli import refused as one_line
from villani.errors import InputError
from villani.inputs.models import load_model

IDS = torch.arange(24).view(2, 12)
SHAPE = "layers=2&width=16&vocab=50&context=32"
BASES = {"gpt2": f"config:gpt2?{SHAPE}", "llama": f"config:llama-160m?{SHAPE}&tied=0"}
PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of bases, in float64."""
    folder = tmp_path_factory.mktemp("bases")
    for name, spec in BASES.items():
        load_model(spec, dtype=torch.float64).model.save_pretrained(folder / name)
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Whoever opens a connection fails the test, whatever is made of the error."""
    wanted = []

    def connect(self, address):
        wanted.append(address)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", connect)
    yield
    assert not wanted


def write(folder, tensors, **settings):
    """An adapter as peft writes it."""
    folder.mkdir(exist_ok=True)
    content = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "somebody/else", "bias": "none",
        "inference_mode": True, "init_lora_weights": True, "megatron_core": "megatron.core", "lora_dropout": 0.1,
        "r": 3, "lora_alpha": 5, "use_rslora": False, "use_dora": False, "fan_in_fan_out": False, "loftq_config": {},
        "target_modules": None, "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {},
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(content | settings))
    stored = {PREFIX + key: value.contiguous() for key, value in tensors.items()}
    safetensors.torch.save_file(stored, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / 4


def pair(path, outputs, inputs, rank=3, seed=0):
    return {
        f"{path}.lora_A.weight": draw(rank, inputs, seed=seed + 1),
        f"{path}.lora_B.weight": draw(outputs, rank, seed=seed + 2),
    }


def merged(base, adapter, **options):
    return load_model(str(base), dtype=torch.float64, adapter=str(adapter), **options).model


def wrapped(model, tensors, factor):
    """The base with x ↦ f(x) + s·B(Ax) around its linear layers: what was trained, by hooks and nothing merged."""
    for key in tensors:
        if key.endswith("lora_A.weight"):
            path = key.removesuffix(".lora_A.weight")
            a, b, s = tensors[key], tensors[f"{path}.lora_B.weight"], factor(path)
            model.get_submodule(path).register_forward_hook(
                lambda module, given, out, a=a, b=b, s=s: out + s * F.linear(F.linear(given[0], a), b)
            )
    return model


Q, V, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj", "model.layers.1.mlp.up_proj"
ATTENTION, OUT = "transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"


@pytest.mark.parametrize(
    ("base", "tensors", "settings", "factor"),
    [
        ("llama", pair(Q, 16, 16) | pair(UP, 64, 16, seed=5), {}, lambda path: 5 / 3),
        ("llama", pair(Q, 16, 16), {"use_rslora": True}, lambda path: 5 / 3**0.5),
        ("llama", pair(Q, 16, 16), {"fan_in_fan_out": True}, lambda path: 5 / 3),  # peft corrects it, too
        ("gpt2", pair(ATTENTION, 48, 16) | pair(OUT, 16, 64, seed=5), {"fan_in_fan_out": True}, lambda path: 5 / 3),
        (
            "llama",
            pair(Q, 16, 16, rank=2) | pair(V, 16, 16, seed=5),
            {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1\..*": 7, "k_proj": 1, "self_attn.v_proj": 2}},
            lambda path: 5 / 2 if path == Q else 7 / 3,
        ),
    ],
    ids=["plain", "rank-stabilised", "way round", "transposed", "patterns"],
)
def test_the_merged_model_is_what_the_wrapped_one_computes(bases, tmp_path, base, tensors, settings, factor):
    adapter = write(tmp_path / "adapter", tensors, **settings)
    model = merged(bases / base, adapter)
    plain = load_model(str(bases / base), dtype=torch.float64).model
    before = plain(IDS, labels=IDS)
    after = wrapped(plain, tensors, factor)(IDS, labels=IDS)
    assert abs(after.loss - before.loss) > 1e-4
    got = model(IDS, labels=IDS)
    torch.testing.assert_close(got.logits, after.logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(got.loss, after.loss, rtol=0, atol=1e-12)


def test_weights_are_the_dense_sum(bases, tmp_path):
    tensors = pair(Q, 16, 16)
    model = merged(bases / "llama", write(tmp_path / "adapter", tensors))
    plain = load_model(str(bases / "llama"), dtype=torch.float64).model
    for (name, ours), (_, theirs) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        change = 5 / 3 * tensors[f"{Q}.lora_B.weight"] @ tensors[f"{Q}.lora_A.weight"] if Q in name else 0.0
        torch.testing.assert_close(ours, theirs + change, rtol=0, atol=1e-14)
        assert ours.requires_grad


def test_what_was_trained_whole_takes_the_place_of_the_base(bases, tmp_path):
    head, gain, embedding = draw(50, 16), draw(16, seed=1), draw(50, 16, seed=2)
    tensors = {"lm_head.weight": head, "model.norm.weight": gain, "model.embed_tokens.base_layer.weight": embedding}
    model = merged(bases / "llama", write(tmp_path / "adapter", tensors, modules_to_save=["lm_head"]))
    assert torch.equal(model.lm_head.weight, head)
    assert torch.equal(model.model.norm.weight, gain)
    assert torch.equal(model.model.embed_tokens.weight, embedding)


@pytest.mark.parametrize(("base", "path"), [("gpt2", "transformer.h.0.attn.c_proj"), ("llama", Q)])
def test_a_bias_of_the_second_factor_is_scaled_as_it_is(bases, tmp_path, base, path):
    tensors, bias = pair(path, 16, 16), draw(16, seed=9)
    adapter = write(tmp_path / "adapter", tensors | {f"{path}.lora_B.bias": bias}, lora_bias=True)
    plain = load_model(str(bases / base), dtype=torch.float64).model
    plain.get_submodule(path).register_forward_hook(lambda module, given, out: out + 5 / 3 * bias)
    expected = wrapped(plain, tensors, lambda path: 5 / 3)(IDS).logits
    torch.testing.assert_close(merged(bases / base, adapter)(IDS).logits, expected, rtol=0, atol=1e-12)


def test_a_tied_embedding_is_changed_where_the_adapter_is_and_nowhere_else(bases, tmp_path):
    """The head of what peft wraps stays the base's: merging into both would be another function."""
    a, b = draw(3, 50), draw(16, 3, seed=1)
    tensors = {"transformer.wte.lora_embedding_A": a, "transformer.wte.lora_embedding_B": b}
    loaded = load_model(str(bases / "gpt2"), dtype=torch.float64, adapter=write(tmp_path / "adapter", tensors))
    assert "transformer.wte.weight untied" in loaded.record.description
    plain = load_model(str(bases / "gpt2"), dtype=torch.float64).model
    plain.transformer.wte.register_forward_hook(
        lambda module, given, out: out + 5 / 3 * F.embedding(given[0], a.T) @ b.T
    )
    assert plain.lm_head.weight is plain.transformer.wte.weight
    torch.testing.assert_close(loaded.model(IDS).logits, plain(IDS).logits, rtol=0, atol=1e-12)
    assert loaded.model.config.tie_word_embeddings is False
    loaded.model.save_pretrained(tmp_path / "merged")
    again = load_model(str(tmp_path / "merged"), dtype=torch.float64).model
    assert torch.equal(again(IDS).logits, loaded.model(IDS).logits)


def test_a_head_that_was_trained_whole_is_untied(bases, tmp_path):
    head = draw(50, 16)
    model = merged(bases / "gpt2", write(tmp_path / "a", {"lm_head.weight": head}, modules_to_save=["lm_head"]))
    plain = load_model(str(bases / "gpt2"), dtype=torch.float64).model
    assert torch.equal(model.transformer.wte.weight, plain.transformer.wte.weight)
    torch.testing.assert_close(model(IDS).logits, F.linear(plain.transformer(IDS)[0], head), rtol=0, atol=1e-12)


def test_a_table_that_is_stored_and_not_trained_apart_stays_tied(bases, tmp_path):
    model = merged(bases / "gpt2", write(tmp_path / "a", {"transformer.wte.weight": draw(50, 16)}))
    assert model.lm_head.weight is model.transformer.wte.weight
    assert torch.equal(model.lm_head.weight, draw(50, 16))


def test_half_precision_is_merged_in_the_precision_asked_for(bases, tmp_path):
    tensors = {key: value.bfloat16() for key, value in pair(Q, 16, 16).items()}
    model = load_model(str(bases / "llama"), adapter=str(write(tmp_path / "a", tensors))).model
    b, a = (tensors[f"{Q}.lora_{letter}.weight"].double() for letter in "BA")
    plain = load_model(str(bases / "llama"), dtype=torch.float64).model.get_submodule(Q).weight
    torch.testing.assert_close(model.get_submodule(Q).weight, (plain + 5 / 3 * b @ a).float(), rtol=1e-6, atol=1e-7)


def test_the_base_that_it_names_is_told_and_never_followed(bases, tmp_path):
    adapter = write(tmp_path / "adapter", pair(Q, 16, 16), base_model_name_or_path="../../etc", revision="main")
    loaded = load_model(str(bases / "llama"), adapter=str(adapter))
    assert loaded.record.description.endswith(
        "with adapter folder adapter merged: LoRA of rank 3 (1 pairs); adapter_config.json names '../../etc'"
    )
    assert loaded.record.spec == loaded.tokenizer == str(bases / "llama")
    refused(r"a PEFT adapter and no model \(adapter_config.json names '../../etc'\).*--adapter", load_model, adapter)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"use_dora": True}, "use_dora=True: only plain LoRA is merged; merge it once with peft"),
        ({"peft_type": "LOHA"}, "peft_type='LOHA': only LORA"),
        ({"peft_type": None}, "peft_type=None"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', which changes the base's weights, too"),
        ({"init_lora_weights": 1}, "init_lora_weights=1"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),
        ({"target_parameters": ["mlp.up_proj.weight"]}, "target_parameters"),
        ({"a_key_of_tomorrow": 0.5}, "a_key_of_tomorrow=0.5: only plain LoRA"),
        ({"r": 0}, "r=0: expected a whole number"),
        ({"r": True}, "r=True: expected a whole number"),
        ({"r": 4}, "has rank 3, which adapter_config.json does not name"),
        ({"lora_alpha": "many"}, "lora_alpha='many': expected a finite number"),
        ({"lora_alpha": 1e300}, "lora_alpha=1e"),
        ({"use_rslora": "no"}, "use_rslora='no': expected true or false"),
        ({"rank_pattern": [1]}, "rank_pattern=.*expected a table"),
        ({"alpha_pattern": {"(": 1}}, "not a regular expression"),
        ({"alpha_pattern": {"(a+)+": 1}}, "repeats too much to be run unseen"),
        ({"alpha_pattern": {"q_proj": None}}, "expected a finite number"),
        ({"modules_to_save": "lm_head"}, "modules_to_save='lm_head': expected a list of names"),
        ({"target_modules": ["q_proj"]}, "targets model.layers.1.self_attn.q_proj, and .* has no pair for it"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_another_function_than_a_sum_is_refused(bases, tmp_path, settings, match):
    refused(match, merged, bases / "llama", write(tmp_path / "adapter", pair(Q, 16, 16), **settings))


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        (pair(Q, 16, 32), r"lora_A.weight is \(3, 32\), and this base needs \(3, 16\).*names 'somebody/else'"),
        (pair(Q, 48, 16), r"lora_B.weight is \(48, 3\), and this base needs \(16, 3\)"),
        (pair(ATTENTION, 16, 16), "2 tensors have no place in this base, such as base_model.model.transformer"),
        (pair("model.norm", 16, 16), "model.norm is a LlamaRMSNorm, no layer that LoRA is merged into"),
        (pair("model.embed_tokens", 16, 50), "is a Embedding, no layer"),
        ({f"{Q}.lora_embedding_A": draw(3, 16), f"{Q}.lora_embedding_B": draw(16, 3)}, "is a Linear, no layer"),
        ({f"{Q}.lora_A.weight": draw(3, 16)}, "has no lora_B: the adapter is incomplete"),
        ({f"{Q}.lora_B.bias": draw(16)}, "has no lora_A"),
        ({f"{Q}.lora_magnitude_vector": draw(16)}, "no place in this base"),
        ({"lm_head.weight": draw(51, 16)}, r"is \(51, 16\), and this base needs \(50, 16\)"),
        ({}, "changes nothing of the base"),
        (pair(Q, 16, 16) | {f"{Q}.lora_A.weight": torch.full((3, 16), torch.nan)}, "infinite or NaN entries"),
        (pair(Q, 16, 16) | {f"{Q}.lora_A.weight": torch.ones(3, 16, dtype=torch.int8)}, "is stored as I8"),
        ({f"{Q}.lora_A.weight": draw(1)[0], f"{Q}.lora_B.weight": draw(16, 3)}, "has rank 0"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_tensors_that_do_not_fit_the_base_are_one_line(bases, tmp_path, tensors, match):
    refused(match, merged, bases / "llama", write(tmp_path / "adapter", tensors))


def test_a_tensor_without_a_place_may_be_allowed_by_name(bases, tmp_path):
    adapter = write(tmp_path / "adapter", pair(Q, 16, 16) | {"v_head.summary.weight": draw(1, 16)})
    refused("v_head.summary.weight.*--allow-unused", merged, bases / "llama", adapter)
    assert torch.equal(
        parameters(merged(bases / "llama", adapter, allow_unused="v_head")),
        parameters(merged(bases / "llama", write(tmp_path / "plain", pair(Q, 16, 16)))),
    )


def test_random_weights_take_no_adapter(tmp_path):
    refused("random weights, which no adapter", load_model, BASES["llama"], adapter=write(tmp_path / "a", {}))


def test_a_pickle_a_link_and_no_folder_are_refused(bases, tmp_path):
    adapter = write(tmp_path / "adapter", pair(Q, 16, 16))
    weights = adapter / "adapter_model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    refused("leads out of the folder", merged, bases / "llama", adapter)
    weights.unlink()
    (adapter / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    refused("found only adapter_model.bin, a pickle", merged, bases / "llama", adapter)
    refused("adapter folder llama: needs adapter_config.json", merged, bases / "llama", bases / "llama")
    refused("adapter './nowhere': no such folder", merged, bases / "llama", "./nowhere")
    refused("is a file: give the folder", merged, bases / "llama", adapter / "adapter_config.json")
    refused("no adapter is named", merged, bases / "llama", "")


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_adapter_is_one_line_or_a_finite_model(bases, tmp_path, seed):
    rng = random.Random(seed)
    adapter = write(tmp_path / "adapter", pair(Q, 16, 16), alpha_pattern={"v_proj": 2}, target_modules="q")
    file = adapter / ("adapter_config.json" if seed % 2 else "adapter_model.safetensors")
    if seed % 2:
        file.write_text(damaged_json(file.read_text(), rng))
    else:
        file.write_bytes(damaged_bytes(file.read_bytes(), rng))
    try:
        model = merged(bases / "llama", adapter)
    except InputError as error:
        line = str(error)
    else:
        line = ""
        assert torch.isfinite(parameters(model)).all()
    assert "\n" not in line
    assert len(line) < 700


def test_commands_take_it(tmp_path, villani, monkeypatch):
    """The figures are those of the merged folder; a page that is made again says so; a bad one is exit code 2."""
    monkeypatch.chdir(tmp_path)
    design = ["--tokenizer", "builtin", "--groups", 4, "--sequences", 1, "--block", 8, "--json"]
    spec = "config:llama-160m?layers=2&width=16&vocab=2048&context=32&tied=0"
    load_model(spec).model.save_pretrained(tmp_path / "base")
    one = write(tmp_path / "one", pair(Q, 16, 16))
    load_model(str(tmp_path / "base"), adapter=one).model.save_pretrained(tmp_path / "whole")
    code, out, err = villani("measure", tmp_path / "base", "--adapter", one, *design)
    assert code == 0, err
    ours = json.loads(out)
    theirs = json.loads(villani("measure", tmp_path / "whole", *design)[1])
    bare = json.loads(villani("measure", tmp_path / "base", *design)[1])
    for figure in ("loss", "hessian_trace", "gradient_norm_squared"):
        assert ours[figure] == theirs[figure] != bare[figure]
    assert f"--adapter {one}" in ours["provenance"]["command"]
    one_line(villani("measure", tmp_path / "base", "--adapter", tmp_path / "none", *design), "no such folder")
    one_line(villani("measure", one, *design), "give its base as the model")


@pytest.mark.parametrize("base", list(BASES))
def test_peft_wraps_the_same_function(bases, tmp_path, base):
    peft = pytest.importorskip("peft")
    targets = {"gpt2": ["c_attn", "wte"], "llama": ["q_proj", "down_proj", "embed_tokens"]}[base]
    plain = load_model(str(bases / base), dtype=torch.float64).model
    config = peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=targets, use_rslora=True, rank_pattern={targets[0]: 2}, bias="all",
        fan_in_fan_out=base == "gpt2", modules_to_save=["lm_head"],
    )  # fmt: skip
    wrapper = peft.get_peft_model(plain, config).double().eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in wrapper.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) / 4)
    wrapper.save_pretrained(tmp_path / "adapter")
    model = merged(bases / base, tmp_path / "adapter")
    torch.testing.assert_close(model(IDS).logits, wrapper(input_ids=IDS).logits, rtol=0, atol=1e-10)
