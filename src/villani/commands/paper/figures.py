"""The pictures of `villani study paper`, over λ and along rays and orbits."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from operator import add
from typing import Any

import plotly.graph_objects as go

from villani.commands.paper.record import EffectRecord, LandscapePoint, PaperRecord, TrainingPoint, TrendRecord
from villani.commands.recommend.record import NAMES
from villani.commands.spectrum.figures import DENSITY_UP, density_axis, density_line
from villani.commands.spectrum.record import DensityRecord
from villani.report.colours import EXACT, NEGATIVE, POSITIVE, REMAINDER, TOTAL
from villani.report.figures import SignedLog, curve, line, themed
from villani.report.numbers import format_number
from villani.report.page import Pictures
from villani.work.records import EstimateRecord

_DECAY = "weight decay λ"
_LEGEND = {"orientation": "h", "y": -0.25, "x": 0}
_COLOURS = {"sgd": POSITIVE, "noisy-sgd": NEGATIVE, "adamw": TOTAL, "adamw-start": EXACT}
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
_CHANGE_CAPTION = "The same seeds, batches and blocks as without decay; intervals over seeds and blocks, one at a time."
_PATHOLOGY_CAPTION = "Means over training seeds with intervals over seeds."


def pictures(record: PaperRecord) -> Pictures:
    """Name → title, figure, caption."""
    densities = {p.weight_decay: p.density for p in record.spectra if p.density}
    gaps = _over_decay(_series(record.training, "gap"), "nats per token")
    made: dict[str, tuple[str, go.Figure | None, str]] = {
        "tuned": ("E7: held-out loss, change from no decay", _changes(record, "held-out loss"), _CHANGE_CAPTION),
        "forgotten": ("E7: forgetting, change from no decay", _changes(record, "forgetting"), _CHANGE_CAPTION),
        "orbits": ("E1: Ψ along orbits of constant loss", _orbits(record.landscape), _ORBIT_CAPTION),
        "rays": ("E1: Ψ along rays", _rays(record), _RAY_CAPTION),
        "spectra": ("E2: the largest eigenvalue", _spectra(record.learned), _SPECTRA_CAPTION),
        "densities": ("E2: spectra of ∇²L and ∇²F", _densities(densities), _DENSITY_CAPTION),
        "rates": ("E3: fitted rates, and what is promised", _rates(record), _RATES_CAPTION),
        "losses": ("E4, E6: losses over λ", _losses(record.training), _LOSS_CAPTION),
        "gaps": ("E4: held out − training", gaps, ""),
        "certificates": ("E4: certified risk over λ", _certificates(record), _CERTIFICATE_CAPTION),
    }
    for index, (name, trend) in enumerate(record.trends.items()):
        made[f"pathology{index}"] = (name.capitalize(), _over_decay(_series(trend, "value"), name), _PATHOLOGY_CAPTION)
    return made


def _figure(traces: Sequence[go.Scatter], height: int, x: str, y: str, **up: object) -> go.Figure:
    """Places along the axis in the order of their numbers, whichever of them a curve lacks."""
    places = [format_number(place) for place in sorted({place for trace in traces for place in trace.meta or ()})]
    across = {"title": x, "type": "category", "categoryorder": "array", "categoryarray": places}
    return themed(traces, height, across, {"title": y, **up}, _LEGEND)


def _line(points: Sequence[tuple[float, EstimateRecord]], *style: Any, **more: Any) -> go.Scatter:
    return curve(
        [format_number(x) for x, _ in points], [e for _, e in points], *style, meta=[x for x, _ in points], **more
    )


def _over_decay(series: dict[str, list[tuple[float, EstimateRecord]]], title: str) -> go.Figure:
    traces = [_line(points, NAMES.get(o, o), _COLOURS.get(o, TOTAL)) for o, points in series.items() if points]
    return _figure(traces, 360, _DECAY, title)


def _changes(record: PaperRecord, quantity: str) -> go.Figure | None:
    own = [e for e in record.effects if e.quantity == quantity]
    return _over_decay(_series(own, "change"), "nats per token") if own else None


def _series(
    points: Sequence[TrainingPoint | TrendRecord | EffectRecord], field: str
) -> dict[str, list[tuple[float, EstimateRecord]]]:
    series: dict[str, list[tuple[float, EstimateRecord]]] = {}
    for p in points:
        if (estimate := getattr(p, field)) is not None:
            series.setdefault(p.optimizer, []).append((p.weight_decay, estimate))
    return series


def _losses(training: Sequence[TrainingPoint]) -> go.Figure:
    traces = [
        _line(points, f"{NAMES.get(o, o)}, {words}", _COLOURS.get(o, TOTAL), dash)
        for field, words, dash in (("held_out", "held out", "solid"), ("train_loss", "training", "dot"))
        for o, points in _series(training, field).items()
    ]
    return _figure(traces, 420, _DECAY, "nats per token")


def _first_seed(landscape: Sequence[LandscapePoint]) -> list[LandscapePoint]:
    return [p for p in landscape if p.seed == landscape[0].seed and p.weight_decay > 0] or [*landscape]


def _name(weight_decay: float) -> str:
    return f"λ = {format_number(weight_decay)}"


def _colour(index: int) -> str:
    return (TOTAL, POSITIVE, NEGATIVE, EXACT, REMAINDER, "#ec4899")[index % 6]


def _signed(values: Sequence[float]) -> tuple[SignedLog, dict[str, object]]:
    """Heights on a signed logarithmic axis, and that axis."""
    up = SignedLog(max(map(abs, values), default=1.0))
    return up, {"zeroline": True, **up.ticks(values)} if values else {}


def _orbits(landscape: Sequence[LandscapePoint]) -> go.Figure | None:
    if not landscape:
        return None
    walks = [(_name(p.weight_decay), p.orbit.walk) for p in _first_seed(landscape) if p.orbit and p.orbit.walk]
    scale, up = _signed([step.measured.value for _, walk in walks for step in walk])
    traces = [
        _line([(step.scale, step.measured) for step in walk], name, _colour(i), scale=scale)
        for i, (name, walk) in enumerate(walks)
    ]
    return _figure(traces, 420, "R", "Ψ, signed logarithmic scale", **up)


def _rays(record: PaperRecord) -> go.Figure | None:
    middle = record.temperatures[len(record.temperatures) // 2]
    shown = [
        (p, ray) for p in _first_seed(record.landscape) for ray in p.rays
        if ray.psi[0].temperature == middle and ray.direction == p.rays[0].direction
    ]  # fmt: skip
    if not shown:  # rays = [] leaves them out
        return None
    scale, up = _signed([e.value for _, ray in shown for e in (*ray.psi, *ray.data)])
    traces = []
    for i, (p, ray) in enumerate(shown):
        multiples = [r / p.norm if p.norm else r for r in ray.radii]
        name = _name(p.weight_decay)
        traces.append(_line([*zip(multiples, ray.psi, strict=True)], name, _colour(i), scale=scale))
        traces.append(_line([*zip(multiples, ray.data, strict=True)], f"{name}, data", _colour(i), "dot", scale))
    across = f"r in units of ‖θ‖, direction {shown[0][1].direction}"
    return _figure(traces, 480, across, "Ψ, signed logarithmic scale", **up)


def _spectra(learned: Sequence[TrendRecord]) -> go.Figure | None:
    plain = [(t.weight_decay, t.value) for t in learned]
    moved = [(t.weight_decay, _at(t.value, partial(add, t.weight_decay))) for t in learned]
    traces = [_line(plain, "λ₁(∇²L)", POSITIVE), _line(moved, "λ₁(∇²F) = λ₁(∇²L) + λ", TOTAL, "dot")]
    return _figure(traces, 360, _DECAY, "largest eigenvalue") if learned else None


def _densities(densities: dict[float, DensityRecord]) -> go.Figure | None:
    if not densities:
        return None
    decays = sorted(densities)
    furthest = max(decays, key=lambda decay: max(map(abs, densities[decay].grid)))
    shown = {decay: densities[decay] for decay in sorted({decays[0], furthest, decays[-1]})}
    across, axis = density_axis([*shown.values()])
    traces = [
        density_line(density, across, f"{name}, {_name(decay)}", _colour(i), dash, by)
        for i, (decay, density) in enumerate(shown.items())
        for name, by, dash in (("∇²L", 0.0, "solid"), ("∇²F", decay, "dot"))
    ]
    return themed(traces, 420, axis, DENSITY_UP, _LEGEND)


def _at(estimate: EstimateRecord, scale: Callable[[float], float]) -> EstimateRecord:
    """An estimate and its interval on another scale."""
    low, high = estimate.interval
    return estimate.model_copy(update={"value": scale(estimate.value), "interval": (scale(low), scale(high))})


def _rates(record: PaperRecord) -> go.Figure | None:
    fitted = [
        (p.weight_decay, _at(f.rate, math.log10))
        for p in record.convergence
        for f in p.fits
        if f.name == "loss" and f.rate
    ]
    promised = [
        (p.weight_decay, EstimateRecord(value=r.log10, sem=0.0, n=1, interval=(r.log10, r.log10), status=r.status))
        for p in record.convergence
        for r in p.promises[:1]
    ]
    traces = [_line(fitted, "fitted to the loss", POSITIVE), _line(promised, "promised, at least", NEGATIVE, "dash")]
    known = any(p.fits for p in record.convergence)
    return _figure(traces, 360, _DECAY, "log₁₀ of the rate") if known else None


def _certificates(record: PaperRecord) -> go.Figure | None:
    known = [(p.weight_decay, p.path) for p in record.certificates if p.path]
    x = [format_number(decay) for decay, _ in known]
    fields = (("value", "certified risk", TOTAL), ("empirical", "empirical", REMAINDER), ("excess", "excess", NEGATIVE))
    traces = [line(x, [getattr(b, field) for _, b in known], name, colour) for field, name, colour in fields]
    return _figure(traces, 360, _DECAY, "nats per token") if known else None
