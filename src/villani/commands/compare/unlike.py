"""What differs between two runs beside their figures, in words: a reader must know before comparing."""

from collections.abc import Iterator
from typing import Any

from villani.work import foreign


def unlike(first: Any, second: Any) -> Iterator[str]:
    """One phrase for each of the text, tokenizer, design, model and mask that the records of two runs do not share."""
    one, other = _facts(first), _facts(second)
    same_tokens = first.text.token_checksum == second.text.token_checksum
    for name in one:
        if one[name] == other[name] or (same_tokens and name in ("text", "tokenizer")):  # the same ids by another path
            continue
        yield f"{name}: {clean(one[name])} and {clean(other[name])}"


def _facts(record: Any) -> dict[str, str]:
    model, text, objective, design = record.model, record.text, record.objective, record.design
    sources = ", ".join(f"{file.name} {file.md5[:8]}" for file in text.sources)
    return {
        "text": f"{text.spec} ({sources})" if sources else text.spec,
        "tokenizer": text.tokenizer,
        "special tokens": text.special_tokens,
        "blocks": f"{design.block:,} tokens",
        "groups": f"{design.groups:,} of {design.sequences:,} blocks",
        "architecture": model.architecture,
        "precision": model.dtype,
        "parameters": f"{objective.parameters:,}",
        "decayed parameters": f"{objective.decayed_parameters:,} ({objective.decay})",
        "λ of F": f"{objective.weight_decay:g}",
        "the groups are": "the whole data set" if objective.finite else "a sample of the text",
    }


def clean(text: str) -> str:
    """A string of somebody else's for a terminal: short, and without control characters."""
    return foreign.clipped("".join(c if c.isprintable() else "�" for c in text))
