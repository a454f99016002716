"""The pictures of `villani study paper`, over λ and along rays and orbits."""

import math
from collections.abc import Callable, Sequence

import plotly.graph_objects as go

from villani.commands.paper.record import LandscapePoint, PaperRecord, TrainingPoint, TrendRecord
from villani.commands.spectrum.record import DensityRecord
from villani.report.figures import DENSITY_FLOOR, EXACT, NEGATIVE, POSITIVE, REMAINDER, TOTAL, SignedLog, themed
from villani.report.numbers import format_number, format_uncertain
from villani.work.records import EstimateRecord

Pictures = dict[str, tuple[str, go.Figure, str]]
NAMES = {"sgd": "SGD with L2", "noisy-sgd": "noisy SGD", "adamw": "AdamW"}
_COLOURS = {"sgd": POSITIVE, "noisy-sgd": NEGATIVE, "adamw": TOTAL}
_ORBIT_CAPTION = (
    "Ψ at θ_R and the largest s, as measured, for the worst orbit of each model; the loss is the same at every "
    "R. Where Ψ falls, Ψ_s → ∞ fails. Signed logarithmic scale."
)
_RAY_CAPTION = (
    "Ψ along straight rays at the middle s: solid, all of it; dotted, the part that depends on data. The exact term "
    "λ²‖θ‖²/s grows quadratically for any loss. Signed logarithmic scale."
)
_SPECTRA_CAPTION = (
    "Means over training seeds with intervals. ∇²F at the same θ is ∇²L plus λ: what differs between the curves is "
    "there by definition, what ∇²L does along λ is learned."
)
_DENSITY_CAPTION = (
    "All eigenvalues at the first training seed, at the least λ, the largest, and the one where they reach furthest: "
    "solid, ∇²L; dotted, ∇²F at the same θ, which is the solid curve moved by λ. Solid against solid is what training "
    "with λ changed. Broadened; logarithmic upwards, and on either side of 0."
)
_RATES_CAPTION = (
    "log₁₀ of the rate at which the loss of noisy SGD settles, with its interval over windows and chains, beside the "
    "gap that the preprint's constant promises. A fitted rate neither supports nor refutes the promise."
)
_LOSS_CAPTION = "Means over training seeds with intervals: solid, held out; dotted, training."
_CERTIFICATE_CAPTION = "One run of noisy SGD at each λ: the certified risk, its empirical part and what the bound adds."
_PATHOLOGY_CAPTION = "Means over training seeds with intervals over seeds."


def pictures(record: PaperRecord) -> Pictures:
    """Name → title, figure, caption."""
    found: Pictures = {}
    if record.landscape:
        found["orbits"] = ("E1: Ψ along orbits of constant loss", _orbits(record.landscape), _ORBIT_CAPTION)
        found["rays"] = ("E1: Ψ along rays", _rays(record), _RAY_CAPTION)
    if record.learned:
        found["spectra"] = ("E2: the largest eigenvalue", _spectra(record.learned), _SPECTRA_CAPTION)
    if densities := {p.weight_decay: p.density for p in record.spectra if p.density}:
        found["densities"] = ("E2: spectra of ∇²L and ∇²F", _densities(densities), _DENSITY_CAPTION)
    if any(p.fits for p in record.convergence):
        found["rates"] = ("E3: fitted rates, and what is promised", _rates(record), _RATES_CAPTION)
    found["losses"] = ("E4, E6: losses over λ", _losses(record.training), _LOSS_CAPTION)
    found["gaps"] = ("E4: held out − training", _over_decay(_series(record.training, "gap"), "nats per token"), "")
    if any(p.path for p in record.certificates):
        found["certificates"] = ("E4: certified risk over λ", _certificates(record), _CERTIFICATE_CAPTION)
    for index, (name, trend) in enumerate(record.trends.items()):
        series = {o: [(t.weight_decay, t.value) for t in trend if t.optimizer == o] for o in record.optimizers}
        found[f"pathology{index}"] = (name.capitalize(), _over_decay(series, name), _PATHOLOGY_CAPTION)
    return found


def _axis(figure: go.Figure, title: str, height_title: str) -> go.Figure:
    """Titles, and places along the axis in the order of their numbers, whichever of them a curve lacks."""
    places = sorted({x for trace in figure.data for x in trace.meta or ()})
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.25, "x": 0})
    figure.update_xaxes(
        title=title, type="category", categoryorder="array", categoryarray=[format_number(x) for x in places]
    )
    figure.update_yaxes(title=height_title)
    return figure


def _line(
    points: Sequence[tuple[float, EstimateRecord]], name: str, colour: str, dash: str = "solid",
    scale: Callable[[float], float] = lambda v: v,
) -> go.Scatter:  # fmt: skip
    heights = [scale(e.value) for _, e in points]
    return go.Scatter(
        meta=[x for x, _ in points],
        x=[format_number(x) for x, _ in points], y=heights, name=name, mode="lines+markers",
        line={"color": colour, "dash": dash}, marker={"color": colour},
        text=[f"{name}: {format_uncertain(e.value, e.sem)}" for _, e in points], hovertemplate="%{text}",
        error_y={
            "type": "data", "symmetric": False, "color": colour,
            "array": [scale(e.interval[1]) - h for h, (_, e) in zip(heights, points, strict=True)],
            "arrayminus": [h - scale(e.interval[0]) for h, (_, e) in zip(heights, points, strict=True)],
        },
    )  # fmt: skip


def _over_decay(series: dict[str, list[tuple[float, EstimateRecord]]], title: str) -> go.Figure:
    traces = [_line(points, NAMES.get(o, o), _COLOURS.get(o, TOTAL)) for o, points in series.items() if points]
    return _axis(themed(traces, 360), "weight decay λ", title)


def _series(training: Sequence[TrainingPoint], field: str) -> dict[str, list[tuple[float, EstimateRecord]]]:
    found: dict[str, list[tuple[float, EstimateRecord]]] = {}
    for p in training:
        estimate = getattr(p, field)
        if estimate is not None:
            found.setdefault(p.optimizer, []).append((p.weight_decay, estimate))
    return found


def _losses(training: Sequence[TrainingPoint]) -> go.Figure:
    traces = [
        _line(points, f"{NAMES.get(o, o)}, {words}", _COLOURS.get(o, TOTAL), dash)
        for field, words, dash in (("held_out", "held out", "solid"), ("train_loss", "training", "dot"))
        for o, points in _series(training, field).items()
    ]
    return _axis(themed(traces, 420), "weight decay λ", "nats per token")


def _first_seed(landscape: Sequence[LandscapePoint]) -> list[LandscapePoint]:
    return [p for p in landscape if p.seed == landscape[0].seed and p.weight_decay > 0] or [*landscape]


def _decay(point: LandscapePoint) -> str:
    return f"λ = {format_number(point.weight_decay)}"


def _colour(index: int) -> str:
    return (TOTAL, POSITIVE, NEGATIVE, EXACT, REMAINDER, "#ec4899")[index % 6]


def _orbits(landscape: Sequence[LandscapePoint]) -> go.Figure:
    shown = [p for p in _first_seed(landscape) if p.orbit and p.orbit.walk]
    values = [step.measured.value for p in shown if p.orbit for step in p.orbit.walk]
    up = SignedLog(max((abs(v) for v in values), default=1.0))
    traces = [
        _line([(step.scale, step.measured) for step in p.orbit.walk], _decay(p), _colour(i), scale=up)
        for i, p in enumerate(shown)
        if p.orbit
    ]
    figure = _axis(themed(traces, 420), "R", "Ψ, signed logarithmic scale")
    if values:
        figure.update_yaxes(zeroline=True, **up.ticks(values))
    return figure


def _rays(record: PaperRecord) -> go.Figure:
    middle = record.temperatures[len(record.temperatures) // 2]
    shown = [
        (p, ray) for p in _first_seed(record.landscape) for ray in p.rays
        if ray.psi[0].temperature == middle and ray.direction == p.rays[0].direction
    ]  # fmt: skip
    values = [e.value for _, ray in shown for e in (*ray.psi, *ray.data)]
    up = SignedLog(max((abs(v) for v in values), default=1.0))
    traces = []
    for i, (p, ray) in enumerate(shown):
        multiples = [r / p.norm if p.norm else r for r in ray.radii]
        name = _decay(p)
        traces.append(_line([*zip(multiples, ray.psi, strict=True)], name, _colour(i), scale=up))
        traces.append(_line([*zip(multiples, ray.data, strict=True)], f"{name}, data", _colour(i), "dot", up))
    figure = _axis(
        themed(traces, 480),
        f"r in units of ‖θ‖, direction {record.landscape[0].rays[0].direction}",
        "Ψ, signed logarithmic scale",
    )
    if values:
        figure.update_yaxes(zeroline=True, **up.ticks(values))
    return figure


def _spectra(learned: Sequence[TrendRecord]) -> go.Figure:
    plain = [(t.weight_decay, t.value) for t in learned]
    moved = [(t.weight_decay, _shifted(t.value, t.weight_decay)) for t in learned]
    traces = [_line(plain, "λ₁(∇²L)", POSITIVE), _line(moved, "λ₁(∇²F) = λ₁(∇²L) + λ", TOTAL, "dot")]
    return _axis(themed(traces, 360), "weight decay λ", "largest eigenvalue")


def _densities(densities: dict[float, DensityRecord]) -> go.Figure:
    decays = sorted(densities)
    furthest = max(decays, key=lambda decay: max(map(abs, densities[decay].grid)))
    shown = {decay: densities[decay] for decay in sorted({decays[0], furthest, decays[-1]})}
    across = SignedLog(
        max(abs(x) for d in shown.values() for x in d.grid), threshold=min(d.resolution for d in shown.values())
    )
    traces = []
    for i, (decay, d) in enumerate(shown.items()):
        floor = DENSITY_FLOOR * max(d.density)
        heights = [max(y, floor) for y in d.density]
        for name, by, dash in (("∇²L", 0.0, "solid"), ("∇²F", decay, "dot")):
            places = [x + by for x in d.grid]
            traces.append(
                go.Scatter(
                    x=[across(x) for x in places], y=heights, name=f"{name}, λ = {format_number(decay)}", mode="lines",
                    line={"color": _colour(i), "dash": dash},
                    text=[f"{x:.4g}: {y:.3g}" for x, y in zip(places, heights, strict=True)],
                    hovertemplate="%{text}",
                )
            )  # fmt: skip
    figure = themed(traces, 420)
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.25, "x": 0})
    figure.update_xaxes(title="eigenvalue", **across.ticks([x for d in shown.values() for x in d.grid]))
    figure.update_yaxes(type="log", title="density", exponentformat="power")
    return figure


def _shifted(estimate: EstimateRecord, by: float) -> EstimateRecord:
    low, high = estimate.interval
    return estimate.model_copy(update={"value": estimate.value + by, "interval": (low + by, high + by)})


def _rates(record: PaperRecord) -> go.Figure:
    fitted = [
        (p.weight_decay, f.rate) for p in record.convergence for f in p.fits if f.name == "loss" and f.rate is not None
    ]  # fmt: skip
    logs = [(x, _logged(e)) for x, e in fitted]
    promised = [
        (p.weight_decay, EstimateRecord(value=r.log10, sem=0.0, n=1, interval=(r.log10, r.log10), status=r.status))
        for p in record.convergence
        for r in p.promises[:1]
    ]
    traces = [_line(logs, "fitted to the loss", POSITIVE), _line(promised, "promised, at least", NEGATIVE, "dash")]
    return _axis(themed(traces, 360), "weight decay λ", "log₁₀ of the rate")


def _logged(estimate: EstimateRecord) -> EstimateRecord:
    value, (low, high) = estimate.value, estimate.interval
    return estimate.model_copy(
        update={"value": math.log10(value), "interval": (math.log10(low), math.log10(high))}
    )  # fmt: skip


def _certificates(record: PaperRecord) -> go.Figure:
    known = [(p.weight_decay, p.path) for p in record.certificates if p.path]
    x = [format_number(decay) for decay, _ in known]
    traces = [
        go.Scatter(
            x=x, y=[getattr(b, field) for _, b in known], name=name, mode="lines+markers", line={"color": colour}
        )
        for field, name, colour in (
            ("value", "certified risk", TOTAL), ("empirical", "empirical", REMAINDER), ("excess", "excess", NEGATIVE)
        )
    ]  # fmt: skip
    return _axis(themed(traces, 360), "weight decay λ", "nats per token")
