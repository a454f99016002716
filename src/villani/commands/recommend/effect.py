"""What decay changed in a sweep: the held-out loss from no decay, in pairs, or the change that would have been seen.

With what it did to the training loss: a regulariser trades that for held-out loss, a better path of training lowers
both (D'Angelo et al., arXiv 2310.04415).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from villani.choice.paired import LEVEL, POWER, Change, paired
from villani.choice.selection import GridLosses
from villani.outwards import lower, upper
from villani.statistics import Array, Estimate, over_seeds

EARLIER = "It is better to stop earlier"  # how the sentence begins where that is so
_MANY = 4.0  # epochs: repeated text is nearly as good as new up to there (Muennighoff et al., arXiv 2305.16264)


@dataclass(frozen=True)
class Effect:
    """What one λ > 0 changed.

    Attributes:
        weight_decay: λ.
        change: of the held-out loss from λ = 0, nats per token, in pairs of seeds and units.
        trained: the change of the training loss, seed by seed; None with one seed.
    """

    weight_decay: float
    change: Change
    trained: Estimate | None


def effects(losses: GridLosses, trained: Mapping[float, Sequence[float]]) -> list[Effect]:
    """Of every λ > 0 of a grid at which no seed diverged; [] where λ = 0 was not trained, or diverged.

    Args:
        losses: held-out losses.
        trained: λ → training loss at every seed, nats per token.
    """
    held = losses.finite
    if 0 not in held or losses.weight_decay[0] != 0:
        return []
    made = []
    for index in held[1:]:
        decay = losses.weight_decay[index]
        change = Change.of(paired(losses.sums[index] - losses.sums[0], losses.counts), len(held) - 1)
        both = np.subtract(trained[decay], trained[0.0])
        made.append(Effect(decay, change, over_seeds(both) if len(both) > 1 else None))
    return made


def effect_sentence(effects: Sequence[Effect]) -> str:
    """Whether decay lowers the held-out loss, by how much and why; else what would have been seen."""
    if not effects:
        return ""
    gains = [e for e in effects if e.change.resolved < 0]
    losses = [e for e in effects if e.change.resolved > 0]
    words = ""
    if gains:
        best = min(gains, key=lambda e: e.change.estimate.value)
        words = f"From no decay to λ = {best.weight_decay:g} the held-out loss falls by {_size(best)} nats"
        words += f"; {_why(best.trained)}." if best.trained else "."
    if losses:
        rises = ", ".join(f"by {_size(e)} at λ = {e.weight_decay:g}" for e in losses)
        start = "It rises" if gains else "Decay lowers the held-out loss at no λ beyond its error, and raises it"
        words += f" {start} {rises}."
    if not words:
        seen = [e.change.detectable for e in effects]
        words = (
            f"Decay changes the held-out loss at no λ of the grid beyond its error; a change of {upper(min(seen), 2)} "
            f"(λ = {effects[int(np.argmin(seen))].weight_decay:g}) to {upper(max(seen), 2)} nats "
            f"(λ = {effects[int(np.argmax(seen))].weight_decay:g}) would have been seen with probability {POWER:.0%}."
        )
    return words.strip()


def stopping_sentence(curves: Mapping[float, Sequence[Sequence[tuple[int, float]]]], epochs: float) -> str:
    """Whether to stop earlier would have done more than any λ at the end; or that nothing was seen of it.

    Steps and λ are chosen by the text that judges them, which flatters both; intervals are over training seeds.

    Args:
        curves: λ → of every seed, (step, held-out nats per token), at the same steps everywhere; no λ that diverged.
        epochs: passes over the training blocks.
    """
    rows = {decay: np.array([[loss for _, loss in curve] for curve in of]) for decay, of in curves.items()}  # (K, P)
    if not rows:
        return ""
    steps = [step for step, _ in next(iter(curves.values()))[0]]
    if len(steps) < 3:
        if epochs < _MANY:
            return ""
        return (
            f"Every block is seen {epochs:.0f} times, where models may overfit: whether to stop earlier does more than "
            "any λ shows with --evaluate-every."
        )
    last = min(rows, key=lambda decay: rows[decay][:, -1].mean())
    lowest = {decay: int(row.mean(axis=0).argmin()) for decay, row in rows.items()}
    best = min(rows, key=lambda decay: rows[decay][:, lowest[decay]].mean())
    at = rows[best][:, lowest[best]]
    if lowest[best] == len(steps) - 1 or not _below(rows[last][:, -1] - at):
        return ""
    words = (
        f"{EARLIER}: the least held-out loss on the way is {at.mean():.4f}, at step "
        f"{steps[lowest[best]]:,} with λ = {best:g}, {_fall(rows[last][:, -1] - at)} nats below the best end, that of "
        f"λ = {last:g} (steps and λ chosen by the same text, which flatters them)."
    )
    if best != 0 and 0 in rows:
        plain = rows[0.0][:, lowest[0.0]]
        sure = "" if _below(plain - at) else ", not beyond its error"
        words += (
            f" Without decay it is {plain.mean():.4f}, at step {steps[lowest[0.0]]:,}: of what λ does at the end, "
            f"{_fall(plain - at)} nats are left{sure}."
        )
    return words


def _below(falls: Array) -> bool:
    """Whether a fall, seed by seed, is beyond error; with one seed, whether it is one."""
    return bool(falls.mean() > 0) if len(falls) < 2 else over_seeds(falls).interval(LEVEL)[0] > 0


def _fall(falls: Array) -> str:
    if len(falls) < 2:
        return f"{falls.mean():.3g}"
    low, high = over_seeds(falls).interval(LEVEL)
    return f"{falls.mean():.3g} [{lower(low, 2)}, {upper(high, 2)}]"


def _size(effect: Effect) -> str:
    low, high = sorted(abs(end) for end in effect.change.interval)
    return f"{abs(effect.change.estimate.value):.3g} [{lower(low, 2)}, {upper(high, 2)}]"


def _why(trained: Estimate) -> str:
    low, high = trained.interval(LEVEL)
    moved = f"{abs(trained.value):.3g}"
    if low > 0:
        return f"the training loss rises by {moved} there, so that decay acts as a regulariser"
    if high < 0:
        return f"the training loss falls too, by {moved}, so that decay helps to optimise"
    return "whether the training loss rises or falls there, seeds leave open"
