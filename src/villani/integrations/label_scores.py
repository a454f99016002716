"""Log-probabilities of a training step's own forward pass: where its loss is a cross-entropy they lie in its graph."""

from typing import Any

import torch

from villani.errors import InputError

_ROWS = 16  # whose exponentials stay in a cache


def label_logs(output: Any, targets: torch.Tensor) -> torch.Tensor:
    """ln p of every target (B·T,) of a model's output, of no meaning where the target is −100.

    Read from the graph of its loss, where that is the cross-entropy of these very targets, else made of its logits.

    Args:
        output: with `logits` (B, T, V), and `loss` or None.
        targets: (B, T) int64, −100 where not predicted.
    """
    flat = targets.flatten()
    places = flat.clamp(min=0)[:, None]
    table = _softmax_of(getattr(output, "loss", None), flat)
    if table is not None:
        return table.gather(1, places)[:, 0]
    logits = output.logits.flatten(0, 1)  # (B·T, V)
    if logits.shape[0] != len(flat):
        raise InputError(f"logits for {logits.shape[0]} places, of {len(flat)} tokens")
    parts = []
    for piece, place in zip(logits.split(_ROWS), places.split(_ROWS), strict=True):
        part = piece.to(torch.promote_types(piece.dtype, torch.float32))
        parts.append(part.gather(1, place)[:, 0] - torch.logsumexp(part, 1))
    return torch.cat(parts)


def _softmax_of(loss: Any, targets: torch.Tensor) -> torch.Tensor | None:
    """(B·T, V) ln p that a loss was made of, if these were its targets."""
    node = getattr(loss, "grad_fn", None)
    for _ in range(4):  # a loss that is divided by a count, or scaled
        if node is None or type(node).__name__ == "NllLossBackward0":
            break
        node = next((parent for parent, _ in node.next_functions if parent is not None), None)
    if type(node).__name__ != "NllLossBackward0":
        return None
    own: Any = node
    table: torch.Tensor = own._saved_self
    seen: torch.Tensor = own._saved_target
    return table if seen.shape == targets.shape and torch.equal(seen, targets.to(seen.device)) else None
