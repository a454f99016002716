"""The page of a recommendation: a λ curve for each optimiser, where rules land, bounds, and in words what follows."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console

from villani.commands.recommend.effect import EARLIER
from villani.commands.recommend.record import (
    NAMES,
    GridPoint,
    OptimizerRecord,
    RecommendationRecord,
    RuleRecord,
)
from villani.outwards import UNAVAILABLE, lower, upper
from villani.report import elements
from villani.report.colours import EXACT, NEGATIVE, POSITIVE, REMAINDER, TOTAL, UNRESOLVED
from villani.report.elements import Row, Status, details, facts, note, sections
from villani.report.estimates import Columns, rows_of
from villani.report.figures import interval_bars, line, themed
from villani.report.numbers import format_count, format_number, format_plain
from villani.report.origin import cost_words, origin_rows
from villani.report.page import Pictures
from villani.report.terminal import say, table

_LIMITS = (
    "What decay takes away is arithmetic, of decay without gradients: what it does to the loss only the grid tells.",
    "The recommendation is for this model, text, budget and learning rate. Decay and learning rate interact: only λ "
    "was varied here, and at another learning rate another λ may be best.",
    "A λ that cannot be told apart from the best may still be worse, by as much as its interval says.",
    "The least loss of a grid was chosen for being low, and is a little too low as an estimate. Its bound has paid for "
    "the choice.",
    "Errors are over training seeds and held-out units together. With few seeds intervals are wide, as they must be; "
    "with one seed they are about the models that were trained, and not about training.",
    "Rules of thumb were made at other scales. That one lands near the best here, or far from it, does not show what "
    "it does there.",
    "Rules from theory choose λ so that a bound holds. No theorem says that the loss is then low.",
    "Bounds are of smoothed losses. Those on held-out contexts are not about new documents; those on documents are.",
)


def headline(record: RecommendationRecord) -> str:
    """Whether the grid decides, and what does where it does not; the rest follows below."""
    held = [one for one in record.optimizers if one.recommended is not None]
    if not held:
        return "Training diverged at every λ: lower the learning rate."
    if all(one.undecided for one in held):
        words = "Undecided: no λ of the grid can be told from another."
    else:
        words = f"Least held-out loss of the grid: {'; '.join(f'{NAMES[o.optimizer]}: {_best(o)}' for o in held)}."
    if earlier := [NAMES[one.optimizer] for one in held if one.stopping.startswith(EARLIER)]:
        words += f" {EARLIER} ({', '.join(earlier)})."
    return words + "".join(f" {NAMES[one.optimizer]}: {one.action}." for one in held if one.action)


def _best(one: OptimizerRecord) -> str:
    """The λ of the least loss with those that may be as good; no λ where none can be told from another."""
    if one.undecided:
        return "undecided"
    others = [format_number(value) for value in one.kept if value != one.recommended]
    words = f"λ = {one.recommended:g}"
    return f"{words} (not told from {', '.join(others)})" if others else words


def findings(record: RecommendationRecord) -> dict[str, str]:
    """Title → paragraph."""
    refused = [reason for one in record.optimizers for reason in one.refusals]
    return {
        **{NAMES[one.optimizer]: one.sentence for one in record.optimizers},
        **{
            f"What decay changes ({NAMES[one.optimizer]})": f"{one.effect} {one.stopping}".strip()
            for one in record.optimizers
        },
        "Which λ is that?": " ".join(f"{NAMES[one.optimizer]}: {one.meaning}" for one in record.optimizers),
        "Certificates that were not given": "; ".join(refused) + "." if refused else "",
        "A grid chosen later": record.grid_note,
    }


def pictures(record: RecommendationRecord) -> Pictures:
    """Name → title, figure, caption."""
    kinds = (("decay", "loss along λ", _curve, _CURVE_CAPTION), ("steps", "on the way", _steps, _STEPS_CAPTION))
    return {
        f"{kind}-{one.optimizer}": (f"{NAMES[one.optimizer]}: {words}", draw(one), caption)
        for kind, words, draw, caption in kinds
        for one in record.optimizers
    }


def tables(record: RecommendationRecord) -> str:
    """Sections of tables, as HTML."""
    bodies = {}
    for one in record.optimizers:
        name = NAMES[one.optimizer]
        notes = facts({rule.name: rule_notes(rule) for rule in one.rules})
        bodies[f"{name}: where rules lead"] = elements.table(rule_rows(one)) + details(
            "What each rule says, and where it is valid", notes
        )
        bodies[f"{name}: the grid"] = elements.table(grid_rows(one))
        bodies[f"{name}: in other conventions"] = _conventions(one)
    about = {
        "trained on": f"{record.text.spec}; {record.text.words}",
        "judged by": f"{record.held_out.spec}; {record.held_out.words}",
        "errors are over": f"{format_count(record.seeds, 'training seed')} "
        f"{'from one start, of which alone they speak,' if record.shared_start else 'of own starts'} "
        f"and {record.units} held-out {record.unit}",
        "training": f"{record.steps} steps of {record.batch} × {record.block} tokens ({record.epochs:.3g} epochs)",
        "parameters": f"{record.parameters:,}, of which {record.decayed_parameters:,} decay",
        "learning rates": ", ".join(_rate(one) for one in record.optimizers),
        "held-out and certified bounds": f"all at once with probability {1 - record.delta:g}, half of δ each; losses "
        f"smoothed with α = {record.alpha:g}; guessing costs {record.log_vocabulary:.4f} nats",
        **origin_rows(record.provenance, record.cost),
    }
    return sections({**bodies, "How it was found": facts(about)})


def _rate(one: OptimizerRecord) -> str:
    source = f" ({one.learning_rate_source})" if one.learning_rate_source else ""
    return f"{NAMES[one.optimizer]} {one.learning_rate:g}{source}"


def _conventions(one: OptimizerRecord) -> str:
    rows = rows_of(one.conventions, {"where": "name", "value": "weight_decay", "": "note"})
    words = (
        f"The same decay, λ = {format_number(one.recommended)} of {NAMES[one.optimizer]}, as others write it. "
        f"Weights remember {'all steps' if one.memory is None else f'about {one.memory:,.0f} steps'}."
    )
    return note(words) + elements.table(rows) if rows else ""


def limits(_: RecommendationRecord) -> Iterable[str]:
    """What does not follow."""
    return _LIMITS


def show(record: RecommendationRecord, _: Path, console: Console) -> None:
    """For every optimiser: the sentence, the grid, and where every rule leads."""
    say(console, headline(record), "bold")
    for one in record.optimizers:
        say(console, one.sentence)
        for words in (one.effect, one.stopping):
            if words:
                say(console, words)
        console.print(table(grid_rows(one), without=["from no decay", "document bound", "certified", "‖θ‖²"]))
        console.print(table(rule_rows(one)))
    if record.grid_note:
        say(console, record.grid_note)
    say(console, cost_words(record.cost))


def grid_rows(one: OptimizerRecord) -> list[Row]:
    """Every λ of the grid, with whether it may be the best."""
    return rows_of(one.points, {**_GRID, "": lambda point: _standing(point, one.recommended)})


def _standing(point: GridPoint, recommended: float | None) -> str:
    if point.weight_decay == recommended:
        return "least loss"
    if point.diverged:
        return f"diverged at {format_count(point.diverged, 'seed')}"
    return "may be the best" if point.kept else ""


def rule_rows(one: OptimizerRecord) -> list[Row]:
    """Every rule, with where it leads and the share of the grid's training; a status if it names a λ."""
    return rows_of(one.rules, _RULES)


def _named(rule: RuleRecord) -> str:
    if rule.weight_decay is None:
        return "refuses"
    words = format_number(rule.weight_decay, 3)
    if rule.interval and rule.interval[0] < rule.interval[1]:
        words += f" ({lower(rule.interval[0], 3)} to {upper(rule.interval[1], 3)})"
    return words


def _reach(of: GridPoint | RuleRecord) -> str:
    """An interval that may be 0 at both ends, which is not the same as not being sampled."""
    margin = of.margin
    return f"{lower(margin.low, places=4)} to {upper(margin.high, places=4)}" if margin else UNAVAILABLE


_MARGIN: Columns = {
    "from the best, nats": lambda of: f"{of.margin.value:.4f}" if of.margin else UNAVAILABLE, "interval": _reach,
}  # fmt: skip
_GRID: Columns = {
    "λ": "weight_decay", "decay takes away": lambda point: format_plain(point.forgotten, ".2%"),
    "held-out loss": "held_out", **_MARGIN, "from no decay": "change.interval", "training loss": "train_loss",
    "held-out bound": lambda point: upper(point.held_out_bound),
    "document bound": lambda point: upper(point.document_bound), "certified": lambda point: upper(point.certified),
    "‖θ‖²": "norm_squared",
}  # fmt: skip
_RULES: Columns = {
    "rule": "name", "λ": _named, "judged at": "judged_at", **_MARGIN,
    "share of training": lambda rule: f"{rule.share:.0%}" if rule.share else UNAVAILABLE,
    "status": lambda rule: "" if rule.weight_decay is None else Status(rule.status),
}  # fmt: skip


def rule_notes(rule: RuleRecord) -> str:
    """Why it refuses, what it would give, and what to know."""
    would = "" if rule.would_be is None else f"would give {format_number(rule.would_be, 3)}"
    return "; ".join(words for words in (rule.refused, would, *rule.flags, f"valid: {rule.domain}") if words)


_CURVE_CAPTION = (
    "Mean held-out loss over training seeds, with intervals over seeds and held-out units; they tell little about "
    "differences, since all λ share seeds and text. Green: cannot be told apart from the best. λ = 0 stands apart at "
    "the left. Marks below: the λ that rules name; crosses: training diverged."
)
_STEPS_CAPTION = "Held-out loss against the step, mean over training seeds, for every λ."


def _curve(one: OptimizerRecord) -> go.Figure | None:
    place = _Axis([p.weight_decay for p in one.points] + [r.weight_decay for r in one.rules if r.weight_decay])
    shown = [point for point in one.points if point.held_out]
    if not shown:
        return None
    held = [point.held_out for point in shown if point.held_out]
    seen = [point.train_loss.value for point in shown if point.train_loss]
    x = [place(point.weight_decay) for point in shown]
    low, high = min([*seen, *(e.interval[0] for e in held)]), max([*seen, *(e.interval[1] for e in held)])
    floor = low - 0.12 * (high - low or 1.0)
    named: dict[float, list[str]] = {}
    for rule in one.rules:
        if rule.weight_decay is not None and rule.id != "held-out":
            named.setdefault(rule.weight_decay, []).append(rule.name)
    gone = [place(point.weight_decay) for point in one.points if point.diverged]
    texts = [f"{format_number(value, 3)}: {', '.join(names)}" for value, names in named.items()]
    marks = {"size": 11, "color": [TOTAL if p.kept else POSITIVE for p in shown]}
    below = {"symbol": "triangle-up", "size": 12}
    crosses = line(gone, [high] * len(gone), "diverged", NEGATIVE, "markers", marker={"symbol": "x", "size": 11})
    traces = [
        line(x, seen, "training loss", REMAINDER, dash="dot"),
        line(
            x, [e.value for e in held], "held-out loss", UNRESOLVED, marker=marks,
            error_y=interval_bars(held, UNRESOLVED),
        ),
        line(
            map(place, named), [floor] * len(named), "rules", EXACT, "markers", marker=below, text=texts,
            hoverinfo="text",
        ),
        *([crosses] if gone else []),
    ]  # fmt: skip
    across = {"title": "weight decay λ (logarithmic, 0 apart)", "tickvals": place.ticks, "ticktext": place.texts}
    return themed(traces, 400, across, {"title": "nats per token"}, {"orientation": "h", "y": 1.12})


class _Axis:
    """Where a λ stands: at log₁₀ λ, and 0 a decade and a half to the left of all others."""

    def __init__(self, values: Sequence[float]) -> None:
        logs = [math.log10(value) for value in values if value > 0]
        self._zero = min(logs, default=0.0) - 1.5
        decades = range(math.floor(min(logs, default=0.0)), math.ceil(max(logs, default=0.0)) + 1)
        self.ticks = ([self._zero] if 0.0 in values else []) + [float(d) for d in decades]
        self.texts = (["0"] if 0.0 in values else []) + [format_number(10.0**d) for d in decades]

    def __call__(self, value: float) -> float:
        return math.log10(value) if value > 0 else self._zero


def _steps(one: OptimizerRecord) -> go.Figure | None:
    shown = [point for point in one.points if len(point.curve) > 2]
    traces = []
    for number, point in enumerate(shown):
        colour = f"hsl({round(220 - 200 * number / max(len(shown) - 1, 1))}, 70%, 55%)"
        steps, losses = zip(*point.curve, strict=True)
        traces.append(line(steps, losses, f"λ = {format_number(point.weight_decay)}", colour))
    return themed(traces, 360, {"title": "step"}, {"title": "held-out nats per token"}, {}) if traces else None
