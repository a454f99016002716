"""A sample of the architectures of transformers against independent calculations; all of them: `benchmarks/zoo.py`."""

import pytest

from tests.zoo_checks import examine

COMPLETE = [
    "apertus", "arcee", "bart", "bert", "biogpt", "bloom", "codegen", "cohere", "diffllama", "doge", "electra", "gemma",
    "glm", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "granite", "llama", "mpt", "nemotron", "olmo", "opt",
    "phi", "phi3", "qwen2", "qwen3", "smollm3", "stablelm",
]  # fmt: skip


@pytest.mark.parametrize("kind", COMPLETE)
def test_every_figure_is_right_and_every_symmetry_is_found(kind):
    row = examine(kind)
    assert row["stage"] == "traced", row.get("reason")
    assert row["wrong"] == []
    assert "taylor" in row, row.get("taylor_refused")
    assert row["tensors"][0] == row["tensors"][1]
    assert row["channels"][0] == row["channels"][1], row["missing"]
    assert row["channels"][1] > 0


@pytest.mark.parametrize("kind", ["mixtral", "deepseek_v3"])
def test_every_figure_is_right_where_a_search_may_be_incomplete(kind):
    row = examine(kind)
    assert row["wrong"] == []
    assert row["complete"] or row["skipped"], row["missing"]
