"""What decay did to the models of `villani study paper`, and where rules landed, in a sentence each."""

from collections.abc import Sequence

from villani.choice.paired import LEVEL
from villani.commands.paper.record import EffectRecord, SchedulePoint
from villani.commands.recommend.record import NAMES, OptimizerRecord
from villani.outwards import lower, upper
from villani.statistics import resolved_sign
from villani.work.records import EstimateRecord


def decay_sentence(choices: Sequence[OptimizerRecord]) -> str:
    """D'Angelo et al. (2024): does decay act as a regulariser, or through the dynamics? By E6, optimiser by optimiser.

    What is held out is told apart with errors over seeds and text; the training loss, seed by seed.
    """
    words = " ".join(f"{_named(of.optimizer)}: {of.effect}" for of in choices if of.effect)
    return f"Regulariser, or dynamics (D'Angelo et al.)? {words}" if words else ""


def choice_sentence(choices: Sequence[OptimizerRecord]) -> str:
    """E6 in short: within what margin of the grid's best does each rule land, at what share of its cost."""
    words = []
    for of in choices:
        rules = [r for r in of.rules if r.id != "held-out"]
        named = [(r.margin, r) for r in rules if r.weight_decay is not None and r.margin and r.share]
        ranked = ", ".join(
            f"{r.name} +{m.value:.3g} [{lower(m.low, 2)}, {upper(m.high, 2)}] for {r.share:.0%}"
            for m, r in sorted(named, key=lambda pair: pair[0].value)
        )
        others = len(rules) - len(named)
        words.append(f"{_named(of.optimizer)}: {ranked or 'none'}; {others} more rules name no λ that can be used")
    if not words:
        return ""
    return (
        "Held-out nats above the grid's best λ [an interval], at the λ of the grid nearest to what a rule names, "
        "and the share of the grid's training that it takes. " + ". ".join(words) + "."
    )


def schedule_sentence(points: Sequence[SchedulePoint]) -> str:
    """E6 of schedules in short: how much each differs from its constant λ on fresh seeds, and whether beyond error."""
    changed = [(p.schedule, p.change) for p in points if p.change]
    if not changed:
        return ""
    beyond = [name for name, change in changed if sign(change, len(changed))]
    words = ", ".join(f"{name} {change_words(change)}" for name, change in changed)
    return (
        f"AdamW on {len(points[0].seeds)} fresh seeds, held-out nats from the grid's λ = {points[0].chosen:g} held "
        f"constant: {words}. Beyond error in {len(changed)} comparisons: {', '.join(beyond) or 'none'}."
    )


def tuning_sentence(effects: Sequence[EffectRecord]) -> str:
    """E7 in short: what decay changed of the losses, or how large a change it would have taken to be seen."""
    words = []
    for name in dict.fromkeys(e.optimizer for e in effects):
        parts = []
        for quantity in dict.fromkeys(e.quantity for e in effects if e.kept is not None):
            own = [e for e in effects if (e.optimizer, e.quantity) == (name, quantity) and e.change]
            if own:
                parts.append(_change_sentence(quantity, own))
        if parts:
            words.append(f"{_TOWARDS.get(name, name)}: {'; '.join(parts)}")
    if not words:
        return ""
    acting = [e.memory for e in effects if e.memory is not None]
    return (
        f"In nats per token. {'. '.join(words)}. Decay forgets over 1/(ηλ), {lower(min(acting), 2)} to "
        f"{upper(max(acting), 2)} times the run."
    )


def least_sentence(effects: Sequence[EffectRecord]) -> str:
    """E7's answer: where the first quantity, the held-out loss, may be the least."""
    first = [e for e in effects if e.quantity == effects[0].quantity]
    places = dict.fromkeys(map(_place, (e for e in first if e.kept)))
    words = f"Least {first[0].quantity}, as far as can be told at {LEVEL:.0%}: {', '.join(places) or 'none'}"
    gains = [e for e in first if e.resolved and e.change and e.change.value < 0]
    lowered = ", ".join(f"by {change_words(e.change)} with {_place(e)}" for e in gains)
    return f"{words}. {f'It changes {lowered}' if gains else 'At no λ does decay lower it beyond error'}."


def _named(optimizer: str) -> str:
    return NAMES.get(optimizer, optimizer)


_TOWARDS = {"adamw": "AdamW, decay towards zero", "adamw-start": "AdamW, decay towards the start"}


def _change_sentence(quantity: str, effects: Sequence[EffectRecord]) -> str:
    """Of one optimiser and quantity."""
    seen = [f"by {change_words(e.change)} at λ = {e.weight_decay:g}" for e in effects if e.resolved]
    open_ones = [e for e in effects if not e.resolved]
    words = f"{quantity} changes {', '.join(seen)}" if seen else f"{quantity} changes at no λ beyond its error"
    if not open_ones:
        return words
    needed = ", ".join(f"{upper(e.detectable or 0.0, 2)} at λ = {e.weight_decay:g}" for e in open_ones)
    return f"{words}; changes of {needed} would have been seen with probability 80 %"


def _place(effect: EffectRecord) -> str:
    towards = {"adamw": " towards zero", "adamw-start": " towards the start"}.get(effect.optimizer)
    if effect.weight_decay == 0:
        return "no decay" if towards else f"no decay of {effect.optimizer}"
    return f"λ = {effect.weight_decay:g}{towards or f' of {effect.optimizer}'}"


def sign(estimate: EstimateRecord, comparisons: int, shift: float = 0.0) -> int:
    """The sign of estimate + shift where it is beyond its error, allowing for all comparisons; else 0."""
    return resolved_sign(estimate.value + shift, estimate.sem, estimate.n - 1, comparisons)


def change_words(estimate: EstimateRecord | None) -> str:
    """A change with its interval."""
    if estimate is None:
        return "unknown"
    low, high = estimate.interval
    return f"{estimate.value:+.3g} [{lower(low, 2)}, {upper(high, 2)}]" if estimate.sem else f"{estimate.value:.3g}"
