"""Every causal language model that transformers has, as a tiny one with random weights: `zoo_model("llama")`.

Shapes go by the names that configurations give them (`SHAPES`), and what one architecture needs besides by `EXTRA`. The
attention is the architecture's default. All weights are moved away from where initialisation puts them, so that no norm
is 1, no bias is 0, and no symmetry holds by chance.
"""

import contextlib
import copy
import functools
import sys
from collections.abc import Iterator
from types import FunctionType
from typing import Any
from unittest.mock import patch

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

KINDS = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY, BLOCK, SEQUENCES = 17, 7, 6
LARGEST = 200_000  # parameters
MOST_LAYERS = 3
EPSILON = 1e-3  # of norms: so large that what would be a symmetry but for it is none to anyone who counts
_REAL32, _REAL64 = torch.float32, torch.float64
_RANGE = 0.2  # of what is added to weights

_ALL = {
    17: "vocab_size vocab_size_per_layer_input",
    16: "hidden_size d_model n_embd n_embed embed_dim dim word_embed_proj_dim embedding_size lru_width "
    "attention_hidden_size max_position_embeddings n_positions n_ctx max_seq_len cross_attention_hidden_size",
    1: "num_hidden_layers n_layer num_layers n_layers decoder_layers encoder_layers num_decoder_layers "
    "num_encoder_layers n_group topk_group first_k_dense_replace moe_num_shared_experts n_shared_experts eos_token_id",
    4: "num_attention_heads n_head num_heads n_heads decoder_attention_heads encoder_attention_heads "
    "num_decoder_attention_heads num_encoder_attention_heads head_dim rotary_dim global_rotary_dim d_kv "
    "num_experts num_local_experts n_routed_experts moe_num_experts sliding_window "
    "state_size mamba_d_state ssm_state_size mamba_n_heads hidden_size_per_layer_input linear_key_head_dim "
    "conv_kernel mamba_d_conv conv1d_width linear_conv_kernel_dim num_key_value_heads_decoder global_head_dim",
    24: "intermediate_size n_inner ffn_dim decoder_ffn_dim encoder_ffn_dim ffn_hidden_size d_ff d_inner",
    2: "num_key_value_heads n_kv_heads num_kv_heads num_experts_per_tok moe_topk moe_k linear_num_key_heads "
    "linear_num_value_heads mamba_expand expand num_experts_per_token top_k_experts",
    12: "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size "
    "expert_ffn_hidden_size",
    8: "q_lora_rank kv_lora_rank v_head_dim qk_nope_head_dim mamba_d_head mamba_headdim mamba_head_dim "
    "linear_value_head_dim query_pre_attn_scalar chunk_size mamba_chunk_size",
    0: "bos_token_id num_kv_shared_layers num_nextn_predict_layers",
}
SHAPES: dict[str, Any] = {name: value for value, names in _ALL.items() for name in names.split()}
SHAPES |= {"swiglu_limit": 0.4, "router_jitter_noise": 2.0}  # limits that bite, and a margin that does not
SHAPES |= {"qk_rope_head_dim": 4, "qk_head_dim": 12, "pad_token_id": None, "is_decoder": True}
SHAPES |= dict.fromkeys(
    ["layer_norm_eps", "rms_norm_eps", "norm_eps", "layer_norm_epsilon", "norm_epsilon", "layernorm_eps",
     "rms_norm_epsilon", "group_norm_eps"], EPSILON,
)  # fmt: skip
LAYERS = ("layer_types", "layers_block_type", "mlp_layer_types", "block_types")  # lists with a kind for each layer

_MLA = {"num_key_value_heads": 4}  # latent attention has as many heads of keys as of queries
_PADDED = {"pad_token_id": 1}  # positions are counted from the token that pads
_INDEXER = {"index_n_heads": 2, "index_head_dim": 8, "index_topk": 4}
_HYPER = {"hc_mult": 2, "hc_count": 2, "hc_lowrank": 4}
_SWA = {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 4, "d_rel": 4, "rel_extent": 8}
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_WIDE = {"global_head_dim": 4}
_PART = {"hidden_size": 16, "hidden_size_global": 16, "num_attention_heads": 4, "num_hidden_layers": 1,
         "intermediate_size": 24, "vocab_size": 17, "max_position_embeddings": 16, "sliding_window": None}  # fmt: skip
_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
           "image_size": 8, "patch_size": 4}  # fmt: skip
EXTRA: dict[str, dict[str, Any]] = {
    **dict.fromkeys(["axk1", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu",
                     "longcat_flash"], _MLA),
    **dict.fromkeys(["axk2", "deepseek_v32", "glm_moe_dsa"], _MLA | _INDEXER),
    **dict.fromkeys(["camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl",
                     "emu3", "modernbert-decoder", "prophetnet"], _PADDED),
    **dict.fromkeys(["inkling_text", "inkling2_text"], _SWA),
    **dict.fromkeys(["qwen4_exp", "qwen4_exp_text"], _HYPER | {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 4,
        "indexer_compress_ratio": 2}),
    **dict.fromkeys(["gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_assistant", "gemma4_unified_text"],
                    _WIDE),
    **dict.fromkeys(["dots3_note", "dots3_note_text"], _MLA | _INDEXER | {
        "shared_experts_intermediate_size": 12, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 8, "swa_kv_lora_rank": 8, "swa_head_dim": 12, "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 8}),
    "blt": {f"{part}_config": _PART for part in ("patcher", "encoder", "decoder", "global")}
    | {"encoder_hash_byte_group_vocab": 17, "encoder_hash_byte_group_size": [3]},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"], "num_hidden_layers": 2,
        "rope_parameters": dict.fromkeys(("sliding_attention", "full_attention"), _ROPE)},
    "cpmant": {"dim_ff": 24, "dim_head": 4, "prompt_length": 2, "position_bias_num_buckets": 8},
    "ctrl": {"dff": 24},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0},
             "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2}},
    "deepseek_v4": _INDEXER | _HYPER | {"o_groups": 2, "o_lora_rank": 8, "num_key_value_heads": 1},
    "falcon_h1": {"mamba_d_ssm": 32},
    "git": {"vision_config": _VISION},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 4},
    "kimi_linear": _MLA | {"linear_head_dim": 4, "linear_num_heads": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2, "num_dense_layers": 1},
    "mamba2": {"num_heads": 4, "head_dim": 8, "n_groups": 2},
    "minimax_m3_vl_text": _INDEXER | {"dense_intermediate_size": 24, "shared_intermediate_size": 12,
                                      "index_block_size": 4},
    "phi4_multimodal": {"vision_config": _VISION | {"crop_size": 8}, "audio_config": {
        "hidden_size": 16, "intermediate_size": 16, "num_blocks": 1, "num_attention_heads": 2, "ext_pw_out_channel": 16,
        "depthwise_separable_out_channel": 16, "input_size": 8, "nemo_conv_channels": 8, "bias_max_distance": 8}},
    "reformer": {"pad_token_id": 0, "axial_pos_embds_dim": (8, 8), "axial_pos_shape": (4, 4), "attn_layers": ["local"],
                 "local_attn_chunk_length": 4, "feed_forward_size": 24, "attention_head_size": 4},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "roc_bert": {"pronunciation_vocab_size": 17, "shape_vocab_size": 17, "pronunciation_embed_dim": 8,
                 "shape_embed_dim": 8},
    "rwkv": {"num_hidden_layers": 2},
    "xlm": _PADDED | {"emb_dim": 16, "causal": True},
    "xlstm": {"chunk_size": 64, "autocast_kernel_dtype": "float32"},
    "xmod": _PADDED | {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3,
              "n_mamba_heads": 2, "attention_hidden_size": 32},
    "zamba2": {"layers_block_type": ["mamba", "hybrid", "hybrid"], "num_hidden_layers": 3, "n_mamba_heads": 4,
               "attention_hidden_size": 32},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


def zoo_config(kind: str) -> Any:
    """The configuration of one architecture with tiny shapes; that of its text part where it has several."""
    whole = CONFIG_MAPPING[kind]
    default = whole().get_text_config(decoder=True)
    cls = type(default)
    given = {name: value for name, value in SHAPES.items() if _settable(cls, default, name)}
    mixed = {name: list(dict.fromkeys(_get(default, name))) for name in LAYERS
             if isinstance(_get(default, name), list) and _settable(cls, default, name)}  # fmt: skip
    mixed = {name: kinds for name, kinds in mixed.items() if kinds}
    if depth := min(MOST_LAYERS, max((len(kinds) for kinds in mixed.values()), default=0)):
        given |= {name: depth for name in ("num_hidden_layers", "num_layers", "n_layer") if name in given}
        given |= {name: (kinds * depth)[:depth] for name, kinds in mixed.items()}
    return cls(**given | EXTRA.get(kind, {}))


def _get(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:  # attributes that differ from layer to layer have no single value
        return None


def _settable(cls: type, config: Any, name: str) -> bool:
    known = hasattr(cls, name) or name in vars(config)
    return known and not isinstance(getattr(cls, name, None), property)


def zoo_model(kind: str) -> nn.Module:
    """A tiny float64 model of one architecture in eval mode, to be used inside `all_in_float64`.

    Raises:
        Exception: whatever transformers raises; ValueError if the model has more than `LARGEST` parameters.
    """
    config = zoo_config(kind)
    named = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])  # what is imported here keeps float32
    cls = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), named)
    with all_in_float64(), torch.random.fork_rng():
        torch.manual_seed(0)
        with torch.device("meta"):
            size = sum(p.numel() for p in cls._from_config(copy.deepcopy(config)).parameters())
        if size > LARGEST:
            raise ValueError(f"{size} parameters, too many to be called tiny")
        model: nn.Module = cls._from_config(config, dtype=torch.float64).double()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(_RANGE * torch.randn_like(p))
    return model.eval()


def zoo_tokens() -> torch.Tensor:
    """(1, B, T) ids in which every token of the vocabulary from 3 on occurs."""
    return torch.randint(3, VOCABULARY, (1, SEQUENCES, BLOCK), generator=torch.Generator().manual_seed(1))


def grouped_products(x: torch.Tensor, weight: torch.Tensor, offs: torch.Tensor, **_: Any) -> torch.Tensor:
    """Rows of x up to offs[0] by weight[0], those up to offs[1] by weight[1], …: torch's own knows no float64."""
    ends = [0, *offs.tolist()]
    parts = [x[a:b] @ w for a, b, w in zip(ends, ends[1:], weight, strict=False)]
    return torch.cat([*parts, x.new_zeros(len(x) - ends[-1], weight.shape[-1])])


@contextlib.contextmanager
def all_in_float64() -> Iterator[None]:
    """What models compute in float32 on purpose is computed in float64, which differences and null spaces need."""
    _import_tracer()
    default = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        for holder, name, value in (
            (torch, "float32", torch.float64), (torch, "float", torch.float64),
            (torch.Tensor, "float", torch.Tensor.double), (nn.functional, "grouped_mm", grouped_products),
            (torch, "_grouped_mm", grouped_products),
        ):  # fmt: skip
            stack.enter_context(patch.object(holder, name, value))
        for function, widened in _float32_by_default():
            stack.enter_context(patch.object(function, "__defaults__", widened))
        stack.callback(torch.set_default_dtype, default)
        torch.set_default_dtype(torch.float64)
        yield


def _float32_by_default() -> list[tuple[Any, tuple[Any, ...]]]:
    """Functions of models with float32 as a default, which was read when they were imported, and wider defaults."""
    modules = [m for name, m in sys.modules.items() if name.startswith("transformers.models.")]
    held = [f for m in modules for f in vars(m).values() if getattr(f, "__module__", "") == m.__name__]
    held += [f for cls in held if isinstance(cls, type) for f in vars(cls).values()]
    defaults = [(f, f.__defaults__) for f in held if isinstance(f, FunctionType) and f.__defaults__]
    return [
        (f, tuple(_REAL64 if value is _REAL32 else value for value in given))
        for f, given in defaults
        if any(value is _REAL32 for value in given)
    ]


@functools.cache
def _import_tracer() -> None:
    """Modules that `torch.export` imports when it is first used keep the real float32."""
    torch.export.export(nn.Linear(1, 1), (torch.zeros(1, 1),), strict=False).run_decompositions({})
