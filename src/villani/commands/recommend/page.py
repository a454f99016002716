"""The page of a recommendation: a λ curve for each optimiser, where rules land, bounds, and in words what follows."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from villani.commands.recommend.record import MarginRecord, OptimizerRecord, RecommendationRecord, RuleRecord
from villani.outwards import UNAVAILABLE, lower, upper
from villani.report.elements import badge, details, facts, note, section, table
from villani.report.figures import EXACT, NEGATIVE, POSITIVE, REMAINDER, TOTAL, UNRESOLVED, themed
from villani.report.numbers import format_count, format_number, format_uncertain
from villani.report.origin import origin_rows
from villani.report.page import Pictures
from villani.report.terminal import print_page

NAMES = {"adamw": "AdamW", "sgd": "SGD with L2", "noisy-sgd": "noisy SGD with L2"}
_LIMITS = (
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
    """What to use, with the first optimiser; the rest follows below."""
    found = [
        f"{NAMES[one.optimizer]}: λ = {one.recommended:g}" for one in record.optimizers if one.recommended is not None
    ]
    if not found:
        return "Training diverged at every λ: lower the learning rate."
    return "Least held-out loss of the grid: " + "; ".join(found) + "."


def findings(record: RecommendationRecord) -> dict[str, str]:
    """Title → paragraph."""
    found = {NAMES[one.optimizer]: one.sentence for one in record.optimizers}
    found["Which λ is that?"] = " ".join(f"{NAMES[one.optimizer]}: {one.meaning}" for one in record.optimizers)
    if refused := [reason for one in record.optimizers for reason in one.refusals]:
        found["Certificates that were not given"] = "; ".join(refused) + "."
    return found


def pictures(record: RecommendationRecord) -> Pictures:
    """Name → title, figure, caption."""
    found: Pictures = {}
    for one in record.optimizers:
        if any(point.held_out for point in one.points):
            found[f"decay-{one.optimizer}"] = (f"{NAMES[one.optimizer]}: loss along λ", _curve(one), _CURVE_CAPTION)
    for one in record.optimizers:
        if any(len(point.curve) > 2 for point in one.points):
            found[f"steps-{one.optimizer}"] = (f"{NAMES[one.optimizer]}: on the way", _steps(one), _STEPS_CAPTION)
    return found


def tables(record: RecommendationRecord) -> str:
    """Sections of tables, as HTML."""
    sections = []
    for one in record.optimizers:
        rows = [[*cells[:6], badge(cells[6]) if cells[6] else ""] for cells in rule_rows(one)]
        header = ["rule", "λ", "judged at", "from the best, nats", "interval", "share of training", "status"]
        notes = details("What each rule says, and where it is valid", facts({r.name: rule_notes(r) for r in one.rules}))
        sections.append(section(f"{NAMES[one.optimizer]}: where rules lead", table(header, rows) + notes))
        grid = ["λ", "held-out loss", "from the best", "interval", "training loss", "held-out bound", ""]
        more = ["document bound", "certified", "‖θ‖²"]
        points = [
            [*cells[:6], _above(p.document_bound), _above(p.certified), _number(p.norm_squared), cells[6]]
            for cells, p in zip(grid_rows(one), one.points, strict=True)
        ]
        sections.append(section(f"{NAMES[one.optimizer]}: the grid", table([*grid[:6], *more, ""], points)))
        if one.conventions:
            shown = [[c.name, _number(c.weight_decay), c.note] for c in one.conventions]
            words = (
                f"The same decay, λ = {_number(one.recommended)} of {NAMES[one.optimizer]}, as others write it. "
                f"Weights remember {'all steps' if one.memory is None else f'about {one.memory:,.0f} steps'}."
            )
            body = note(words) + table(["where", "value", ""], shown)
            sections.append(section(f"{NAMES[one.optimizer]}: in other conventions", body))
    about = {
        "trained on": f"{record.text.spec}; {record.text.words}",
        "judged by": f"{record.held_out.spec}; {record.held_out.words}",
        "errors are over": f"{format_count(record.seeds, 'training seed')} "
        f"{'from one start, of which alone they speak,' if record.shared_start else 'of own starts'} "
        f"and {record.units} held-out {record.unit}",
        "training": f"{record.steps} steps of {record.batch} × {record.block} tokens ({record.epochs:.3g} epochs)",
        "parameters": f"{record.parameters:,}, of which {record.decayed_parameters:,} decay",
        "learning rates": ", ".join(f"{NAMES[one.optimizer]} {one.learning_rate:g}" for one in record.optimizers),
        "held-out and certified bounds": f"all at once with probability {1 - record.delta:g}, half of δ each; losses "
        f"smoothed with α = {record.alpha:g}; guessing costs {record.log_vocabulary:.4f} nats",
        **origin_rows(record.provenance, record.cost),
    }
    return "".join(sections) + section("How it was found", facts(about))


def limits(_: RecommendationRecord) -> Iterable[str]:
    """What does not follow."""
    return _LIMITS


def show(record: RecommendationRecord, directory: Path, console: Console) -> None:
    """For every optimiser: the sentence, the grid, and what every rule says."""
    for one in record.optimizers:
        console.print(one.sentence, style="bold", markup=False, soft_wrap=True)
        grid = Table("λ", "held-out loss", "from the best", "interval", "training loss", "held-out bound", "")
        for cells in grid_rows(one):
            grid.add_row(*cells)
        console.print(grid)
        rules = Table(
            "rule", "λ", "judged at", "from the best", "interval", "share", "status", Column("notes", ratio=1)
        )
        for cells in rule_rows(one):
            rules.add_row(*(escape(cell) for cell in cells))
        console.print(rules)
    if record.cost:
        console.print(f"{record.cost.seconds:.0f} s of training")
    print_page(console, directory)


def grid_rows(one: OptimizerRecord) -> list[list[str]]:
    """λ, held-out loss, margin, its interval, training loss, held-out bound, and whether it may be the best."""
    rows = []
    for point in one.points:
        held, seen, apart = point.held_out, point.train_loss, point.margin
        word = "may be the best" if point.kept else ""
        if point.diverged:
            word = f"diverged at {point.diverged} seed{'s' if point.diverged > 1 else ''}"
        if point.weight_decay == one.recommended:
            word = "least loss"
        rows.append(
            [
                format_number(point.weight_decay), format_uncertain(held.value, held.sem) if held else UNAVAILABLE,
                f"{apart.value:.4f}" if apart else UNAVAILABLE,
                interval(apart), format_uncertain(seen.value, seen.sem) if seen else UNAVAILABLE,
                _above(point.held_out_bound), word,
            ]
        )  # fmt: skip
    return rows


def rule_rows(one: OptimizerRecord) -> list[list[str]]:
    """Rule, λ, where it was judged, margin, its interval, share of the grid's training, status if it names a λ."""
    rows = []
    for rule in one.rules:
        apart = rule.margin
        rows.append(
            [
                rule.name, _asked(rule), _number(rule.judged_at), f"{apart.value:.4f}" if apart else UNAVAILABLE,
                interval(apart), f"{rule.share:.0%}" if rule.share else UNAVAILABLE,
                "" if rule.weight_decay is None else rule.status,
            ]
        )  # fmt: skip
    return rows


def _asked(rule: RuleRecord) -> str:
    if rule.weight_decay is None:
        return "refuses"
    words = format_number(rule.weight_decay, 3)
    if rule.interval and rule.interval[0] < rule.interval[1]:
        words += f" ({lower(rule.interval[0], 3)} to {upper(rule.interval[1], 3)})"
    return words


def interval(found: MarginRecord | None) -> str:
    """Of a margin; it may be 0 at both ends, which is not the same as not being sampled."""
    return f"{lower(found.low, places=4)} to {upper(found.high, places=4)}" if found else UNAVAILABLE


def rule_notes(rule: RuleRecord) -> str:
    """Why it refuses, what it would give, and what to know."""
    said = [rule.refused] if rule.refused else []
    if rule.would_be is not None:
        said.append(f"would give {format_number(rule.would_be, 3)}")
    return "; ".join([*said, *rule.flags, f"valid: {rule.domain}"])


def _number(value: float | None) -> str:
    return UNAVAILABLE if value is None else format_number(value)


def _above(bound: float | None) -> str:
    return UNAVAILABLE if bound is None else upper(bound)


_CURVE_CAPTION = (
    "Mean held-out loss over training seeds, with intervals over seeds and held-out units; they tell little about "
    "differences, since all λ share seeds and text. Green: cannot be told apart from the best. λ = 0 stands apart at "
    "the left. Marks below: the λ that rules name; crosses: training diverged."
)
_STEPS_CAPTION = "Held-out loss against the step, mean over training seeds, for every λ."


def _curve(one: OptimizerRecord) -> go.Figure:
    place = _Axis([p.weight_decay for p in one.points] + [r.weight_decay for r in one.rules if r.weight_decay])
    shown = [point for point in one.points if point.held_out]
    held = [point.held_out for point in shown if point.held_out]
    seen = [point.train_loss for point in shown if point.train_loss]
    x = [place(point.weight_decay) for point in shown]
    half = [(e.interval[1] - e.interval[0]) / 2 for e in held]
    low = min(min(e.interval[0] for e in held), min(e.value for e in seen))
    high = max(max(e.interval[1] for e in held), max(e.value for e in seen))
    floor = low - 0.12 * (high - low or 1.0)
    traces = [
        go.Scatter(
            x=x, y=[e.value for e in seen], name="training loss", mode="lines+markers",
            line={"color": REMAINDER, "dash": "dot"}, marker={"size": 6},
        ),
        go.Scatter(
            x=x, y=[e.value for e in held], name="held-out loss", mode="lines+markers",
            line={"color": UNRESOLVED}, marker={"size": 11, "color": [TOTAL if p.kept else POSITIVE for p in shown]},
            error_y={"type": "data", "array": half, "thickness": 1.4, "width": 4, "color": UNRESOLVED},
        ),
    ]  # fmt: skip
    named: dict[float, list[str]] = {}
    for rule in one.rules:
        if rule.weight_decay is not None and rule.id != "held-out":
            named.setdefault(rule.weight_decay, []).append(rule.name)
    traces.append(
        go.Scatter(
            x=[place(value) for value in named], y=[floor] * len(named), name="rules", mode="markers",
            marker={"symbol": "triangle-up", "size": 12, "color": EXACT}, hoverinfo="text",
            text=[f"{format_number(value, 3)}: {', '.join(names)}" for value, names in named.items()],
        )
    )  # fmt: skip
    gone = [point for point in one.points if point.diverged]
    if gone:
        traces.append(
            go.Scatter(
                x=[place(p.weight_decay) for p in gone], y=[high] * len(gone), name="diverged", mode="markers",
                marker={"symbol": "x", "size": 11, "color": NEGATIVE},
            )
        )  # fmt: skip
    figure = themed(traces, 400)
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": 1.12})
    figure.update_xaxes(title="weight decay λ (logarithmic, 0 apart)", tickvals=place.ticks, ticktext=place.texts)
    figure.update_yaxes(title="nats per token")
    return figure


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


def _steps(one: OptimizerRecord) -> go.Figure:
    shown = [point for point in one.points if len(point.curve) > 2]
    traces = []
    for number, point in enumerate(shown):
        share = number / max(len(shown) - 1, 1)
        colour = f"hsl({round(220 - 200 * share)}, 70%, 55%)"
        traces.append(
            go.Scatter(
                x=[step for step, _ in point.curve], y=[loss for _, loss in point.curve], mode="lines+markers",
                name=f"λ = {format_number(point.weight_decay)}", line={"color": colour}, marker={"color": colour},
            )
        )  # fmt: skip
    figure = themed(traces, 360)
    figure.update_layout(showlegend=True)
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="held-out nats per token")
    return figure
