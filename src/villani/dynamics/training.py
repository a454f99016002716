"""The small training loop that demonstrations and studies need."""

from collections.abc import Callable

import torch
from torch import nn

from villani.errors import InputError
from villani.landscape.objective import IGNORED
from villani.streams import Purpose, stream


def train_adamw(
    model: nn.Module,
    ids: torch.Tensor,
    labels: torch.Tensor,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Train in place by AdamW without weight decay, warm-up over a tenth of the steps, then cosine to zero.

    AdamW's decay is not the λ of F (THEORY.md §8), so it is left out here and λ enters afterwards, when Ψ is asked for.

    Args:
        model: a causal language model.
        ids: (M, T) int64 token blocks.
        labels: (M, T) int64, −100 where not predicted.
        steps: optimiser steps.
        batch: blocks in a step, drawn afresh from (seed, step).
        learning_rate: at its peak.
        seed: of the draws.
        progress: called with (step, steps).

    Returns:
        the loss of every step's batch, mean nats per predicted token.

    Raises:
        InputError: fewer than one step, or a loss that is not finite.
    """
    if steps < 1:
        raise InputError(f"steps={steps}: expected at least 1")
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.95))
    warm_up = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warm_up, total_iters=warm_up),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warm_up)),
        ],
        milestones=[warm_up],
    )
    model.train()
    losses = []
    for step in range(steps):
        rows = torch.from_numpy(stream(seed, Purpose.BATCHES, step).integers(len(ids), size=batch))
        logits = model(input_ids=ids[rows], use_cache=False).logits[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels[rows][:, 1:].flatten(), ignore_index=IGNORED)
        if not bool(torch.isfinite(loss)):
            raise InputError(f"training diverged at step {step} (loss {float(loss.detach())}): lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if progress:
            progress(step + 1, steps)
    optimizer.zero_grad(set_to_none=True)
    model.eval()
    return losses
