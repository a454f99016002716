"""The interpreter of traced graphs, and which analysis has a rule for which operation of which architecture."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
import transformers

from villani.criteria import degree_rules, enclosures, operations, shifts
from villani.criteria.patterns import depends_on, is_floating
from villani.curvature import rules
from villani.objective import decomposition
from villani.objective.graph import trace_loss
from villani.objective.interpret import Analysis, Evaluation, Table, execute, interpret, values_of
from villani.objective.objective import Objective

aten = torch.ops.aten
TABLES = {
    "taylor": rules.RULES,
    "degrees": degree_rules.RULES,
    "ranges": enclosures.RULES,
    "shifts": shifts.RULES,
    "smoothness": operations.RULES,
}
SIZES = {
    "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12,
    "max_position_embeddings": 8, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 1}
ARCHITECTURES = {
    "GPT2": {"model": "GPT2LMHeadModel"},
    "GPTNeo": {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]], "window_size": 2},
    "GPTNeoX": {},
    "Llama": GROUPED,
    "Qwen3": {"head_dim": 4, **GROUPED},
    "Gemma3": {"config": "Gemma3Text", "head_dim": 4, "sliding_window": 2, **GROUPED},
    "Mistral": {"sliding_window": 2, **GROUPED},
    "Falcon": {"new_decoder_architecture": True, "num_kv_heads": 1},
    "Bloom": {},
    "OPT": {"ffn_dim": 12, "word_embed_proj_dim": 8},
    "Mamba": {"state_size": 2},
    "Mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1, **GROUPED},
    "Phi": {},
}
ATTENTIONS = {"GPTNeo": ["eager"], "Bloom": ["eager"], "Mamba": ["eager"]}  # what these have


def traced(kind, attention):
    given = {**SIZES, **ARCHITECTURES[kind]}
    if kind == "GPTNeo":
        del given["num_hidden_layers"], given["num_attention_heads"]
    model = getattr(transformers, given.pop("model", f"{kind}ForCausalLM"))
    config = getattr(transformers, f"{given.pop('config', kind)}Config")(**given)
    config._attn_implementation = attention
    with torch.random.fork_rng():
        torch.manual_seed(0)
        objective = Objective(model(config), torch.randint(0, 11, (1, 1, 5)))
    return trace_loss(objective, next(objective.batches(0)))


def reached(graph):
    """The operations that give real numbers which depend on θ."""
    moved = depends_on(graph)
    return {str(n.target): n.target for n in graph.nodes if n in moved and n.op == "call_function" and is_floating(n)}


def test_matrix():
    for kind in ARCHITECTURES:
        for attention in ATTENTIONS.get(kind, ["sdpa", "eager"]):
            g = reached(traced(kind, attention))
            for name, target in g.items():
                print(kind, attention, name, *[a for a, t in TABLES.items() if t.rule(target) is None])
