"""The figures of a measurement in a training run, by the names that loggers get."""

from villani.measurement.measurement import Measurement
from villani.statistics import Estimate

Figures = dict[str, float]
PREFIX = "villani/"
_DETAILS = frozenset({  # what is only logged on request; all else is: at most eight figures of a measurement
    "loss_sem", "gradient_dot_parameters", "gradient_dot_parameters_sem", "decayed_norm_squared", "lambda", "s",
    "learning_rate", "optimizer_weight_decay", "changed_steps", "descended_lambda", "gradient_factor", "lambda_is_of_F",
    "measuring_seconds", "seconds", "measurements",
})  # fmt: skip


def figures_of(measurement: Measurement, weight_decay: float, temperature: float) -> Figures:
    """Statistics, Ψ_s with its parts, and the standard error of each as `…_sem`; without the prefix."""
    psi = measurement.psi(weight_decay, temperature=temperature)
    estimates: dict[str, Estimate] = {
        "loss": measurement.loss, "gradient_norm_squared": measurement.gradient_norm_squared,
        "gradient_dot_parameters": measurement.gradient_dot_parameters, "hessian_trace": measurement.hessian_trace,
        "psi": psi,
    }  # fmt: skip
    estimates |= {f"psi_{name}": part for name, part in psi.parts.items()}
    figures = {name: estimate.value for name, estimate in estimates.items()}
    figures |= {f"{name}_sem": estimate.sem for name, estimate in estimates.items() if estimate.sem}
    return figures | {
        "decayed_norm_squared": measurement.decayed_norm_squared, "lambda": weight_decay, "s": temperature
    }  # fmt: skip


def logged(figures: Figures, verbose: bool) -> Figures:
    """Those that a logger gets: all if `verbose`, else Ψ and what it is made of, at most eight."""
    if verbose or PREFIX + "psi" not in figures:
        return figures

    def main(name: str) -> bool:
        return (name not in _DETAILS and not name.startswith("psi_")) or name == "psi_sem"

    return {name: value for name, value in figures.items() if main(name.removeprefix(PREFIX))}
