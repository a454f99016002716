"""What comparisons read of a measurement's record, by hand."""

from types import SimpleNamespace


def record(**changes):
    """Of one block of text; `changes` by part and field, such as design={"seed": 1}."""
    parts = {
        "model": {"architecture": "GPT2LMHeadModel", "dtype": "float32"},
        "text": {
            "spec": "text:a", "sources": [SimpleNamespace(name="a.txt", md5="0123456789abcdef")], "tokenizer": "gpt2",
            "special_tokens": "none", "token_checksum": "x",
        },
        "objective": {
            "parameters": 1234, "decayed_parameters": 3, "decay": "all", "weight_decay": 0.1, "finite": False,
        },
        "design": {
            "groups": 6, "sequences": 1, "block": 1024, "seed": 0, "trace": "taylor", "probes": 1, "products": "exact",
            "sketch": None,
        },
        "provenance": {"parameter_checksum": "θ"},
    }  # fmt: skip
    return SimpleNamespace(
        **{name: SimpleNamespace(**fields | changes.get(name, {})) for name, fields in parts.items()}
    )
