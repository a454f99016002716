"""The page of a measurement: Ψ with its parts, sliders over λ and s, rays, and where the curvature sits."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from scipy.special import stdtrit

from villani.commands.constants.page import model_picture
from villani.commands.measure import figures
from villani.commands.measure.figures import PART_LABELS
from villani.commands.measure.record import MeasurementRecord, TrainingRecord
from villani.commands.measure.tables import psi_rows, psi_table, spent, statistic_rows, tables
from villani.commands.measure.verdict import findings, headline
from villani.report.origin import cost_words
from villani.report.page import Pictures, Section
from villani.report.plain import guarded
from villani.report.terminal import print_findings, say, table
from villani.work.records import PsiRecord


def summary(records: Sequence[MeasurementRecord | TrainingRecord]) -> Section:
    """All measurements and training runs of a run; the point itself, not a displaced one, is what is told first."""
    measured = [r for r in records if isinstance(r, MeasurementRecord)]
    trained = [r for r in records if isinstance(r, TrainingRecord)]
    main = min((r for r in measured if r.psi), key=lambda r: r.displacement is not None, default=None)
    return Section(
        headline=headline(main) if main else "This run holds no measurement of Ψ yet.",
        findings=findings(main) if main else {},
        pictures=_pictures(guarded(measured), guarded(trained), guarded(main)),
        tables=tables(measured, trained, main),
        limits=_LIMITS,
        live=psi_table(main.psi[0]) if main else "",
        point=_point(main) if main else None,
    )


def show(record: MeasurementRecord, _: Path, console: Console) -> None:
    """The verdict in words, the statistics with their intervals, and Ψ at every λ and s."""
    print_findings(console, headline(record), findings(record))
    console.print(table(statistic_rows(record), without=["groups"]))
    console.print(table(psi_rows(record), without=PART_LABELS.values()))
    say(console, f"{cost_words(record.cost)}; {spent(record.cost)}")


def _pictures(
    measured: Sequence[MeasurementRecord], trained: Sequence[TrainingRecord], main: MeasurementRecord | None
) -> Pictures:
    """Name → title, figure, caption. The one named `parts` stands beside the sliders."""
    training = {
        f"training{i}": ("Training loss", figures.training_loss(one), "Loss of each logged batch.")
        for i, one in enumerate(trained)
    }
    if main is None:
        return training
    rays = {
        f"ray{i}": (f"Along the ray “{direction}”", figures.ray(points), _RAY_CAPTION)
        for i, (direction, points) in enumerate(_rays(measured, main).items())
    }
    grid = figures.psi_grid(main.psi) if len(main.psi) > 1 else None
    return {
        "parts": ("", figures.psi_parts(main.psi[0]), ""),
        "grid": ("Ψ over weight decay and temperature", grid, _GRID_CAPTION),
        **training,
        **rays,
        "constants": model_picture(main.constants) if main.constants else None,
        "gradient": ("How large is the gradient?", figures.gradient_norms(main), _GRADIENT_CAPTION),
        "layers": ("Curvature by layer", figures.layer_traces(main) if main.tensors else None, _LAYER_CAPTION),
        "tensors": ("Where the curvature sits", figures.tensor_traces(main), _TENSOR_CAPTION),
    }


_LIMITS = (
    "Nothing at infinity. Ψ at a point, or along finitely many rays, neither supports nor contradicts condition (iv).",
    "No mixing rate or generalisation bound follows from these numbers. Where log-Sobolev constants are shown, they "
    "come from the model's shapes and from λ and s, not from what was measured.",
    "That the loss is smooth, condition (i), was not examined here.",
    "Intervals hold one at a time, not all together, and lean on the groups being independent draws; with few groups "
    "they are approximate.",
    "λ is the coefficient of (λ/2)‖mθ‖² in the objective. AdamW is not gradient descent on that objective, so its "
    "weight decay is not this λ (THEORY.md §8), and no temperature s is implied by a learning rate.",
)
_RAY_CAPTION = (
    "Ψ at θ₀ + r·u, at the first λ and s asked for; bars are intervals. Quadratic growth along a ray is mostly the "
    "exact term λ²‖mθ‖²/s, which would be there with any data; the data-dependent part is Ψ − λ²‖mθ‖²/s + λ·d_m. Rays "
    "cannot detect that condition (iv) fails: orbits, curves on which rescaling leaves the loss unchanged, can "
    "(THEORY.md §2.2)."
)
_GRID_CAPTION = "Blue is positive, red negative, stronger is larger (logarithmic); grey: the interval contains 0."
_GRADIENT_CAPTION = (
    "The squared gradient norm that a mini-batch reports, against the unbiased estimate from pairs of independent "
    "groups. The gap is gradient noise. The unbiased figure may fall below zero by chance."
)
_TENSOR_CAPTION = "The tensors with the largest share of tr ∇²L, with intervals; grey: the interval contains 0."
_LAYER_CAPTION = (
    "The trace of each layer's diagonal block of ∇²L, with intervals over groups; a layer is the tensors that have the "
    "same number in their names, and tensors without one are left out."
)


def _rays(measured: Sequence[MeasurementRecord], main: MeasurementRecord) -> dict[str, list[tuple[float, PsiRecord]]]:
    """Direction → points at the main λ and s; the undisplaced point is on every ray."""
    origin = [(0.0, main.psi[0])] if main.displacement is None else []
    asked = (main.psi[0].weight_decay, main.psi[0].temperature)
    rays: dict[str, list[tuple[float, PsiRecord]]] = {}
    for record in measured:
        same = [psi for psi in record.psi if (psi.weight_decay, psi.temperature) == asked]
        if record.displacement and same:
            rays.setdefault(record.displacement.direction, list(origin)).append((record.displacement.radius, same[0]))
    return rays


def _point(record: MeasurementRecord) -> dict[str, object]:
    """What the page needs to recompute Ψ at any λ and s."""
    statistics = (
        record.loss, record.gradient_norm_squared, record.gradient_dot_parameters, record.hessian_trace,
    )  # fmt: skip
    return {
        "statistics": [estimate.value for estimate in statistics],
        "covariance": record.covariance,
        "quantile": _quantile(record),
        "decayedParameters": record.objective.decayed_parameters,
        "decayedNormSquared": record.decayed_norm_squared,
        "weightDecay": record.psi[0].weight_decay,
        "temperature": record.psi[0].temperature,
    }


def _quantile(record: MeasurementRecord) -> float | None:
    """Two-sided Student quantile; 0 where nothing is sampled, None where one group gives no error bar at all."""
    if not any(value for row in record.covariance for value in row):
        return 0.0
    if record.degrees_of_freedom <= 0:
        return None
    return float(stdtrit(record.degrees_of_freedom, (1 + record.design.confidence) / 2))
