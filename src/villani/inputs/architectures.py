"""Known architectures, their published sizes, and models of those shapes with random weights."""

import difflib
import math
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import torch

from villani.bounds import SEED
from villani.errors import InputError
from villani.inputs.folders import shortened
from villani.inputs.hub import quiet
from villani.inputs.tokenizers import BUILTIN_VOCABULARY, GPT2_VOCABULARY
from villani.work.budget import Needs, hold

_SEED_OPTION = {"seed": 0}
_MOST = {"layers": 10_000, "width": 10**6, "heads": 10**6, "kv_heads": 10**6, "seed": SEED}
_LARGEST = 10**9  # of every other size


@dataclass(frozen=True)
class ModelShape:
    """A known architecture: Hugging Face's model type, the sizes that options may change, and what they may not."""

    kind: str
    sizes: dict[str, Any]
    fixed: dict[str, Any]


def _shape(
    kind: str, layers: int, width: int, heads: int, intermediate: int, vocab: int, context: int, tied: bool, **more: Any
) -> ModelShape:
    """`more`: kv_heads, window, activation are sizes; anything else is passed to the configuration as it is."""
    sizes = {"layers": layers, "width": width, "heads": heads, "intermediate": intermediate, "vocab": vocab}
    sizes |= {"context": context, "tied": tied}
    sizes |= {key: more.pop(key) for key in ("kv_heads", "window", "activation") if key in more}
    return ModelShape(kind, sizes, more)


def _rope(theta: float, fraction: float = 1.0) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": fraction}


_NEO: dict[str, Any] = {"activation": "gelu_new", "layer_norm_epsilon": 1e-5}
_NEOX: dict[str, Any] = {"activation": "gelu", "layer_norm_eps": 1e-5, "rope_parameters": _rope(1e4, 0.25)}
_LLAMA: dict[str, Any] = {"activation": "silu", "rope_parameters": _rope(1e4)}
_QWEN: dict[str, Any] = {"activation": "silu", "rms_norm_eps": 1e-6, "rope_parameters": _rope(1e6)}

# Arguments in order: layers, width, heads, intermediate, vocab, context, tied.
SHAPES = {
    "gpt-neo-125m": _shape("gpt_neo", 12, 768, 12, 3072, GPT2_VOCABULARY, 2048, True, window=256, **_NEO),
    "gpt2": _shape("gpt2", 12, 768, 12, 3072, GPT2_VOCABULARY, 1024, True, **_NEO),
    "pythia-70m": _shape("gpt_neox", 6, 512, 8, 2048, 50304, 2048, False, **_NEOX),
    "pythia-160m": _shape("gpt_neox", 12, 768, 12, 3072, 50304, 2048, False, **_NEOX),
    "opt-125m": _shape("opt", 12, 768, 12, 3072, 50272, 2048, True, activation="relu"),
    "llama-160m": _shape("llama", 12, 768, 12, 3072, 32000, 2048, False, kv_heads=12, rms_norm_eps=1e-6, **_LLAMA),
    "smollm-135m": _shape("llama", 30, 576, 9, 1536, 49152, 2048, True, kv_heads=3, rms_norm_eps=1e-5, **_LLAMA),
    "qwen2-0.5b": _shape("qwen2", 24, 896, 14, 4864, 151936, 131072, True, kv_heads=2, **_QWEN),
    # No published Qwen2 checkpoint has this size: it is here to compare architectures at GPT-2's.
    "qwen2-125m": _shape("qwen2", 12, 768, 12, 2048, GPT2_VOCABULARY, 32768, True, kv_heads=4, **_QWEN),
}
_BUILTIN = {"tiny": _shape("gpt_neo", 2, 64, 4, 256, BUILTIN_VOCABULARY, 256, True, window=32, **_NEO)}

_COMMON = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "intermediate": "intermediate_size",
    "vocab": "vocab_size",
    "context": "max_position_embeddings",
    "activation": "hidden_act",
    "tied": "tie_word_embeddings",
    "window": "window_size",
}
_GPT2 = {"layers": "n_layer", "width": "n_embd", "heads": "n_head", "intermediate": "n_inner", "context": "n_positions"}
_FIELDS = {
    "gpt_neo": _COMMON | {"layers": "num_layers", "heads": "num_heads", "activation": "activation_function"},
    "gpt2": _COMMON | _GPT2 | {"activation": "activation_function"},
    "gpt_neox": _COMMON,
    "opt": _COMMON | {"intermediate": "ffn_dim", "activation": "activation_function"},
    "llama": _COMMON,
    "qwen2": _COMMON,
}
_DROPOUTS = {
    "gpt_neo": ("resid_dropout", "embed_dropout", "attention_dropout"),
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "gpt_neox": ("attention_dropout", "hidden_dropout"),
    "opt": ("dropout", "attention_dropout", "layerdrop"),
    "llama": ("attention_dropout",),
    "qwen2": ("attention_dropout",),
}


def random_model(spec: str) -> tuple[Any, str, str]:
    """Build the model of a `config:NAME[?key=value&...]` or `builtin:tiny[?...]` spec, in float32 on the CPU.

    Options are the sizes of the shape and `seed`; sizes that are not given follow the width in proportion. The global
    random state is left alone.

    Returns:
        the model, its description in words, and the tokenizer spec that is natural for it.

    Raises:
        InputError: unknown name or option, or sizes that do not fit each other; the message says what to change.
    """
    scheme, _, rest = spec.partition(":")
    name, _, query = rest.partition("?")
    shapes = SHAPES if scheme == "config" else _BUILTIN
    if name not in shapes:
        close = difflib.get_close_matches(name, shapes, n=1)
        hint = f"did you mean {scheme}:{close[0]}? " if close else ""
        raise InputError(f"{scheme}:{shortened(name)}: unknown model; {hint}Known: {', '.join(shapes)}")
    given = _options(spec, query, shapes[name])
    sizes = resolve_sizes(spec, shapes[name], given)
    seed = given.get("seed", 0)
    shown = {key: value for key, value in given.items() if key != "seed"}
    changed = ", ".join(f"{key}={value:d}" if key == "tied" else f"{key}={value}" for key, value in shown.items())
    description = f"random weights, seed {seed}, of {name}" + (f" with {changed}" if changed else "")
    tokenizer = "gpt2" if scheme == "config" and sizes["vocab"] >= GPT2_VOCABULARY else "builtin"
    hold(
        Needs(memory=memory_of(shapes[name], sizes)),
        what=f"{shortened(spec)}: the weights",
        instead="choose smaller sizes",
    )
    return build_model(shapes[name], sizes, seed), description, tokenizer


def _options(spec: str, query: str, shape: ModelShape) -> dict[str, Any]:
    """Options of a spec, checked one by one."""
    known = shape.sizes | _SEED_OPTION
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError as error:
        raise InputError(f"{spec}: options must read ?key=value&key=value") from error
    given: dict[str, Any] = {}
    for key, value in pairs:
        if key not in known:
            raise InputError(f"{spec}: unknown option {key!r}; known here: {', '.join(known)}")
        if key in given:
            raise InputError(f"{spec}: option {key!r} is given twice")
        given[key] = _option(spec, key, value)
    return given


def _option(spec: str, key: str, value: str) -> Any:
    if key == "activation":
        from transformers.activations import ACT2FN

        if value not in ACT2FN:
            close = ", ".join(difflib.get_close_matches(value, ACT2FN)) or "gelu, relu, silu, tanh"
            raise InputError(f"{spec}: unknown activation {value!r}; such as {close}")
        return value
    least = 0 if key in ("tied", "seed") else 1
    most = 1 if key == "tied" else _MOST.get(key, _LARGEST)
    number = int(value) if value.isascii() and value.isdigit() and len(value) <= 30 else -1
    if number > most and key != "tied":
        raise InputError(f"{shortened(spec)}: {key}={value}: expected at most {most:,}")
    if not least <= number <= most:
        expected = "0 or 1" if key == "tied" else f"an integer of at least {least}"
        raise InputError(f"{shortened(spec)}: {key}={shortened(value)}: expected {expected}")
    return bool(number) if key == "tied" else number


def resolve_sizes(spec: str, shape: ModelShape, given: dict[str, Any]) -> dict[str, Any]:
    """All sizes: what is not given follows the width in proportion."""
    base = shape.sizes
    sizes = base | {key: value for key, value in given.items() if key != "seed"}
    width = sizes["width"]
    if "intermediate" not in given:
        sizes["intermediate"] = max(1, round(base["intermediate"] * width / base["width"]))
    if "heads" not in given:
        fitting = [h for h in range(1, width + 1) if _heads_fit(shape, width, h) and h % given.get("kv_heads", 1) == 0]
        if not fitting:
            whose = f" and kv_heads {given['kv_heads']}" if "kv_heads" in given else ""
            raise InputError(f"{spec}: no number of heads fits width {width}{whose}: choose a width that 8 divides")
        original = base["width"] / base["heads"]
        sizes["heads"] = min(fitting, key=lambda h: abs(math.log(width / h / original)))
    heads = sizes["heads"]
    if width % heads:
        raise InputError(f"{spec}: width {width} is not divisible by heads {heads}")
    if not _heads_fit(shape, width, heads):
        raise InputError(f"{spec}: heads of size {width // heads} leave an odd number of dimensions to rotate")
    if "kv_heads" in base and "kv_heads" not in given:
        share = max(1, round(heads * base["kv_heads"] / base["heads"]))
        sizes["kv_heads"] = max(k for k in range(1, share + 1) if heads % k == 0)
    if heads % sizes.get("kv_heads", 1):
        raise InputError(f"{spec}: heads {heads} is not divisible by kv_heads {sizes['kv_heads']}")
    return sizes


def _heads_fit(shape: ModelShape, width: int, heads: int) -> bool:
    """Whether `heads` divide `width`, and rotary embeddings, which pair dimensions, get an even number of them."""
    if width % heads:
        return False
    rope = shape.fixed.get("rope_parameters")
    if rope is None:
        return True
    rotated = int(width // heads * rope["partial_rotary_factor"])
    return rotated >= 2 and rotated % 2 == 0


def memory_of(shape: ModelShape, sizes: dict[str, Any]) -> float:
    """Bytes of weights and tables, from models of one and two layers that are never allocated: layers are alike."""
    one, two = (
        sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
        for model in (build_model(shape, sizes | {"layers": layers}, 0, "meta") for layers in (1, 2))
    )
    return float(one + (sizes["layers"] - 1) * (two - one))


def build_model(shape: ModelShape, sizes: dict[str, Any], seed: int, device: str = "cpu") -> Any:
    """A model of this shape and these sizes with random weights of the seed, in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    builder: Any = AutoModelForCausalLM  # untyped in transformers

    fields = {_FIELDS[shape.kind][key]: value for key, value in sizes.items()} | shape.fixed
    fields |= dict.fromkeys(_DROPOUTS[shape.kind], 0.0)
    fields |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # their defaults may lie beyond `vocab`
    if shape.kind == "gpt_neo":
        kinds = [["global", "local"][layer % 2] for layer in range(sizes["layers"])]
        fields["attention_types"] = [[kinds, 1]]
    with quiet(), torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(shape.kind, **fields)
        # float32 whatever is asked for: the same seed is the same point in every precision
        return builder.from_config(config, attn_implementation="eager", dtype=torch.float32)
