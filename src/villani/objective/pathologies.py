"""What trained Transformers are said to suffer from: attention sinks, massive activations, crowded embeddings.

The preprint's theory is said to bear on such pathologies; whether λ moves them is measured by `villani study paper`.
All three are properties of one θ on some blocks of text, and none of them says that a model is good or bad.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from villani.errors import InputError
from villani.objective.objective import IGNORED
from villani.objective.weights import refuse_streamed
from villani.statistics import Array, Estimate, exact, ratio_estimates

ROWS = 1 << 14  # embedding rows in float64 at once


@dataclass(frozen=True, eq=False)
class PathologySums:
    """What M blocks contribute to sinks and massive activations.

    Attributes:
        sinks: (M, layers) attention on the first token, summed over queries, mean over heads; no layers without any.
        queries: (M,) queries but the first.
        activations: (M, layers) largest |h| over median |h|.
        uniform: (M,) what even attention would sum to.
        note: what is missing and why, or "".
    """

    sinks: Array
    queries: Array
    activations: Array
    uniform: Array
    note: str


@dataclass(frozen=True)
class Pathologies:
    """Three pathologies at one θ; intervals are over blocks, for this θ and blocks of this length.

    Attributes:
        sink: attention on the first token: mean over heads, layers and queries but the first; None without attention.
        sinks: (layers) the same, layer by layer.
        uniform: what `sink` would be if every query looked at itself and everything before it alike: the scale of it.
        activation: largest |h| over median |h| of the residual stream, in a block: of the layer where it is largest.
        activations: (layers) the same, layer by layer.
        superposition: mean squared cosine between different rows of the input embedding; exact. 1/D for random ones.
        note: what is missing and why, or "".
    """

    sink: Estimate | None
    sinks: tuple[Estimate, ...]
    uniform: float
    activation: Estimate
    activations: tuple[Estimate, ...]
    superposition: Estimate
    note: str = ""


def measure_pathologies(
    model: nn.Module, ids: torch.Tensor, labels: torch.Tensor, *, micro_tokens: int = 512
) -> Pathologies:
    """Measure all three on blocks of text; see `pathology_sums`, of which this is the summary, for what it takes."""
    sums = pathology_sums(model, ids, labels, micro_tokens=micro_tokens)
    queries, attended, activations = sums.queries, sums.sinks, sums.activations
    sinks = _means(np.column_stack([attended.mean(axis=1), attended]), queries) if attended.shape[1] else []
    moved = _means(np.column_stack([activations.max(axis=1), activations]), np.ones(len(activations)))
    return Pathologies(
        sink=sinks[0] if sinks else None,
        sinks=tuple(sinks[1:]),
        uniform=float(sums.uniform.sum() / queries.sum()),
        activation=moved[0],
        activations=tuple(moved[1:]),
        superposition=exact(superposition(embedding_of(model))),
        note=sums.note,
    )


def pathology_sums(
    model: nn.Module, ids: torch.Tensor, labels: torch.Tensor, *, micro_tokens: int = 512
) -> PathologySums:
    """Look at attention and activations on blocks of text; dropout is off meanwhile, and θ is left alone.

    The residual stream is what enters each layer; what leaves the last one is only seen normalised, and is left out.
    In layers with a window, queries that cannot see the first token count as not looking at it.

    Args:
        model: a Hugging Face causal language model. Attention is seen with the eager implementation only.
        ids: (M, T) int64 token blocks, T ≥ 2.
        labels: (M, T) int64; positions with −100 are padding and count as no query and no activation.
        micro_tokens: tokens in one forward pass at most; blocks are never split.

    Raises:
        InputError: fewer than two blocks with two tokens each, a model that shows no hidden states, or embeddings or
            activations that are mostly 0.
    """
    refuse_streamed(model, "a look at activations", "load the model with streamed=False")
    real = labels != IGNORED
    keep = real.sum(dim=1) >= 2
    ids, real = ids[keep], real[keep]
    if len(ids) < 2:
        raise InputError(f"{len(ids)} blocks with two tokens or more: expected at least 2, for an interval over blocks")
    device = next(model.parameters()).device
    modes = {module: module.training for module in model.modules()}
    model.eval()
    step = max(1, micro_tokens // ids.shape[1])
    found, notes = [], set()
    try:
        for start in range(0, len(ids), step):
            rows, note = _piece(model, ids[start : start + step].to(device), real[start : start + step].to(device))
            found.append(rows)
            notes.add(note)
    finally:
        for module, mode in modes.items():
            module.training = mode
    whole = {name: np.concatenate([rows[name] for rows in found]) for name in found[0]}
    return PathologySums(**whole, note="; ".join(sorted(notes - {""})))


def superposition(rows: torch.Tensor) -> float:
    """Mean over pairs i ≠ j of cos²(e_i, e_j), exactly and without the V × V matrix.

    With rows of length 1, Σ_ij ⟨e_i, e_j⟩² = ‖EᵀE‖²_F, so that the mean is (‖EᵀE‖²_F − V)/(V(V − 1)): 0 for orthogonal
    rows, 1 where all are on one line, 1/D on average where they are drawn alike in all directions. Rows that are 0 have
    no direction and are left out.

    Args:
        rows: (V, D).

    Raises:
        InputError: fewer than two rows are not 0.
    """
    gram = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    count = 0
    for part in rows.detach().split(ROWS):
        wide = part.double()
        lengths = torch.linalg.vector_norm(wide, dim=1)
        unit = wide[lengths > 0] / lengths[lengths > 0, None]
        gram += unit.T @ unit
        count += len(unit)
    if count < 2:
        raise InputError(f"embedding has {count} rows that are not 0: expected at least 2")
    return float((gram.square().sum() - count) / (count * (count - 1)))


def _piece(model: nn.Module, ids: torch.Tensor, real: torch.Tensor) -> tuple[dict[str, Array], str]:
    """Of a few blocks: (B, layers) sums of sink mass and activation ratios, (B,) queries and sums of even attention."""
    hidden, attentions, note = _looked_at(model, ids)
    length = ids.shape[1]
    asking = real.clone()
    asking[:, 0] = False  # the first query has nothing else to look at
    sums = [
        (weights[..., 0].double().mean(dim=1) * asking).sum(dim=1)  # (B, heads, T, T) to (B,)
        for weights in attentions
    ]
    even = 1 / torch.arange(1, length + 1, dtype=torch.float64, device=ids.device)
    ratios = [[_ratio(h[real[b]]) for h in (layer[b] for layer in hidden)] for b in range(len(ids))]
    return {
        "sinks": torch.stack(sums, dim=1).cpu().numpy() if sums else np.zeros((len(ids), 0)),
        "queries": asking.sum(dim=1).double().cpu().numpy(),
        "activations": np.array(ratios),
        "uniform": (asking * even).sum(dim=1).cpu().numpy(),
    }, note


def _looked_at(model: nn.Module, ids: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor], str]:
    """What enters each layer, the attention weights of each, and why there are none."""
    eager = getattr(getattr(model, "config", None), "_attn_implementation", None) == "eager"
    arguments: dict[str, Any] = {"output_hidden_states": True, "use_cache": False}
    if eager:
        arguments["output_attentions"] = True
    try:
        with torch.no_grad():
            output = model(input_ids=ids, **arguments)
        hidden: Sequence[torch.Tensor] = output.hidden_states[:-1]  # the last one has been through the final norm
    except (AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())
        name = type(model).__name__
        raise InputError(f"{name} shows no hidden states ({reason}): give a Hugging Face model") from None
    weights = [a for a in (getattr(output, "attentions", None) or ()) if a is not None]
    note = ""
    if not weights:
        why = "this model returns no attention" if eager else "reload with attn_implementation='eager'"
        note = f"attention weights were not seen: {why}"
    return list(hidden), weights, note


def _ratio(h: torch.Tensor) -> float:
    """max |h| over median |h|, (n, D)."""
    size = h.abs().double()
    middle = float(size.median())
    if not middle > 0:
        raise InputError("the residual stream is 0 in half of its entries or more: it has no ratio to its median")
    return float(size.max()) / middle


def embedding_of(model: nn.Module) -> torch.Tensor:
    """(V, D) the input embedding."""
    find: Any = model.get_input_embeddings
    weight: torch.Tensor = find().weight
    return weight


def _means(sums: Array, weights: Array) -> list[Estimate]:
    """Ratios of block sums (M, k) to block weights, with jackknife errors over blocks."""
    values, sems = ratio_estimates(sums, weights)
    return [Estimate(float(v), float(e), len(weights), "statistical") for v, e in zip(values, sems, strict=True)]
