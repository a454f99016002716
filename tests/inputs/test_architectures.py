import pytest
import torch

from tests.inputs.conftest import TINY, parameters, refused
from villani.inputs import architectures
from villani.inputs.models import load_model

SMALL = "?layers=2&width=32&vocab=100&context=64"
NAMES = sorted(architectures.SHAPES)


@pytest.mark.parametrize("name", NAMES)
def test_config_model_is_ready_to_be_differentiated_twice(name):
    loaded = load_model(f"config:{name}{SMALL}")
    model = loaded.model
    assert not model.training
    assert model.config._attn_implementation == "eager"
    assert model.config.use_cache is False
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} <= {0.0}
    assert loaded.record.context == 64
    assert loaded.record.dtype == "float32"
    ids = torch.arange(24).reshape(2, 12)
    weights = list(model.parameters())
    gradients = torch.autograd.grad(model(input_ids=ids, labels=ids).loss, weights, create_graph=True)
    product = torch.autograd.grad(sum((g * g).sum() for g in gradients), weights)
    assert all(torch.isfinite(p).all() for p in product)
    assert any(p.abs().max() > 0 for p in product)


def test_known_shapes_have_the_published_parameter_counts():
    published = {
        "gpt-neo-125m": 125_198_592,
        "gpt2": 124_439_808,
        "pythia-70m": 70_426_624,
        "pythia-160m": 162_322_944,
        "opt-125m": 125_239_296,
        "llama-160m": 162_417_408,
        "smollm-135m": 134_515_008,
        "qwen2-0.5b": 494_032_768,
    }
    for name, count in published.items():
        shape = architectures.SHAPES[name]
        sizes = architectures.resolve_sizes(name, shape, {})
        one, two = (  # layers are alike
            sum(p.numel() for p in architectures.build_model(shape, sizes | {"layers": n}, 0, "meta").parameters())
            for n in (1, 2)
        )
        assert one + (sizes["layers"] - 1) * (two - one) == count, name


def test_seed_decides_the_weights_and_global_state_is_left_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again = load_model(TINY), load_model(TINY)
    other = load_model(TINY + "&seed=1")
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(parameters(first.model), parameters(again.model))
    assert not torch.equal(parameters(first.model), parameters(other.model))
    assert "seed 1, of gpt2 with layers=1" in other.record.description


def test_float64_is_the_same_point_as_float32():
    wide = load_model(TINY, dtype=torch.float64)
    assert wide.record.dtype == "float64"
    assert torch.equal(parameters(wide.model), parameters(load_model(TINY).model).double())


def test_sizes_follow_the_width():
    config = load_model("config:smollm-135m?width=192&layers=1&vocab=64").model.config
    assert (config.intermediate_size, config.num_attention_heads, config.num_key_value_heads) == (512, 3, 1)
    config = load_model("config:gpt-neo-125m?width=7&layers=3&vocab=64&context=16&window=4").model.config
    assert config.num_heads == 1
    assert config.attention_layers == ["global", "local", "global"]
    assert config.window_size == 4
    assert load_model("config:opt-125m?width=24&layers=1&vocab=64").model.config.word_embed_proj_dim == 24


def test_tied_counts_the_embedding_once():
    tied, untied = (load_model(f"{TINY}&tied={tied}").model for tied in (1, 0))
    assert len(parameters(untied)) - len(parameters(tied)) == 50 * 16


def test_natural_tokenizer_fits_the_vocabulary():
    assert load_model("config:gpt2?layers=1&width=8").tokenizer == "gpt2"
    assert load_model("config:gpt2?layers=1&width=8&vocab=2048").tokenizer == "builtin"
    tiny = load_model("builtin:tiny")
    assert tiny.tokenizer == "builtin"
    assert (tiny.model.config.vocab_size, tiny.record.context, tiny.model.config.window_size) == (2048, 256, 32)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("config:gpt-neo-125", "did you mean config:gpt-neo-125m"),
        ("builtin:small", "Known: tiny"),
        ("config:gpt2?widht=8", "unknown option 'widht'"),
        ("config:gpt2?window=8", "unknown option 'window'"),
        ("config:gpt2?layers=0", "expected an integer of at least 1"),
        ("config:gpt2?layers=-1", "expected an integer"),
        ("config:gpt2?layers=two", "expected an integer"),
        ("config:gpt2?layers=²", "expected an integer"),
        ("config:gpt2?layers", "must read"),
        ("config:gpt2?layers=1&layers=1", "given twice"),
        ("config:gpt2?width=10&heads=3", "10 is not divisible by heads 3"),
        ("config:llama-160m?heads=4&kv_heads=3", "heads 4 is not divisible by kv_heads 3"),
        ("config:llama-160m?width=6&heads=2", "odd number"),
        ("config:llama-160m?width=7", "no number of heads fits width 7"),
        ("config:gpt2?activation=gelu_nwe", "such as gelu_new"),
        ("config:gpt2?tied=2", "expected 0 or 1"),
    ],
)
def test_bad_spec_is_refused_in_one_line(spec, match):
    refused(match, load_model, spec)
