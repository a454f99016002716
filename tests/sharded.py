"""Folders of tiny models in bfloat16 shards, as tests of streamed weights take them."""

import json

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    Qwen3Config,
)

_COMMON = {"vocab_size": 32, "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.2}
_LLAMA = _COMMON | {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 16,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**_LLAMA),
    "gpt-2": GPT2Config(**_COMMON, n_embd=16, n_layer=2, n_head=2, n_positions=16),
    "gpt-neo": GPTNeoConfig(
        **_COMMON, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]], window_size=4,
        max_position_embeddings=16,
    ),
    "qwen3": Qwen3Config(**_LLAMA | {"num_hidden_layers": 1}, head_dim=4, tie_word_embeddings=True),
    # its logits go through a cap, so that no linear map is their head
    "gemma-2": Gemma2Config(**_LLAMA | {"num_hidden_layers": 1}, head_dim=4, sliding_window=4),
    "gpt-neox": GPTNeoXConfig(  # transformers renames its head
        **_COMMON, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=16,
    ),
    "mixtral": MixtralConfig(**_LLAMA, num_local_experts=2, num_experts_per_tok=1),  # it stacks stored experts
}  # fmt: skip


def write(kind, folder, dtype=torch.bfloat16, **sizes):
    """A random model of a kind, of other sizes if wanted, in shards of 4 kB; its biases are not 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(type(CONFIGS[kind])(**CONFIGS[kind].to_dict() | sizes))
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.add_(0.1 * torch.randn_like(tensor))
    model.to(dtype).save_pretrained(folder, max_shard_size="4KB")
    return folder


def tensors_of(folder):
    """All that the shards hold."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as shard:
            found |= {key: shard.get_tensor(key) for key in shard.keys()}  # noqa: SIM118
    return found


def reshard(folder, to, shards):
    """The same model with its tensors dealt out in another order: `shards` lists names for each file."""
    tensors = tensors_of(folder)
    to.mkdir()
    (to / "config.json").write_text((folder / "config.json").read_text())
    places = {}
    for number, names in enumerate(shards):
        save_file({name: tensors[name] for name in names}, to / f"part-{number}.safetensors", {"format": "pt"})
        places |= dict.fromkeys(names, f"part-{number}.safetensors")
    (to / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return to
