"""Criterion (iv) along straight rays θ₀ + r·u: Ψ in its five parts, and how much of its growth is data; THEORY.md §6.

The exact parts of Ψ, λ²‖mθ‖²/s − λd_m, are quadratic on every ray, whatever the network. What is left, the
data-dependent part, is therefore fitted beside the total. Growth on rays proves nothing about (iv): the same models
fail it on rescaling orbits, which rays miss (THEORY.md §2.2).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from villani.criteria.parabola import QuadraticFit, fit_quadratic
from villani.criteria.shifts import rounding
from villani.curvature.blocks import layers_of
from villani.curvature.probes import random_direction
from villani.curvature.ways import TraceMethod
from villani.errors import InputError
from villani.measurement.measure import measure
from villani.measurement.measurement import Measurement
from villani.objective.objective import Objective
from villani.objective.parameters import ParameterSpace
from villani.objective.weights import refuse_streamed
from villani.results import Content
from villani.statistics import Estimate
from villani.streams import Purpose, stream
from villani.work.work import Work

UnitVector = list[torch.Tensor]
KINDS = ("random", "gradient", "parameters", "layer")  # of directions
_LEAST = 4  # radii: a parabola has three coefficients


@dataclass(frozen=True)
class RaySeries:
    """Ψ along a ray for one λ and s; n radii.

    Attributes:
        weight_decay: λ.
        temperature: s.
        radii: (n,) r, in the units of θ.
        psi: (n,) Ψ_s with its parts.
        parts: (n,) each: `decay_norm` and `decay_laplacian` exact, `cross`, `gradient_norm`, `hessian_trace` measured.
        data: (n,) Ψ_s − λ²‖mθ‖²/s + λd_m, what depends on the data.
        fit: of `psi`.
        data_fit: of `data`.
        exact_quadratic: λ²‖mu‖²/s, the exact part's share of `fit.quadratic`; `data_fit.quadratic` is the rest.
    """

    weight_decay: float
    temperature: float
    radii: tuple[float, ...]
    psi: tuple[Estimate, ...]
    parts: Mapping[str, tuple[Estimate, ...]]
    data: tuple[Estimate, ...]
    fit: QuadraticFit
    data_fit: QuadraticFit
    exact_quadratic: float


@dataclass(frozen=True, eq=False, repr=False)
class Ray(Content):
    """Measurements at θ₀ + r·u with the same groups and probes, ready to answer for any λ and s.

    Attributes:
        radii: (n,) r, in the units of θ.
        measurements: (n,) one for each r.
        decayed_share: ‖mu‖²; 1 where everything that moves decays.
        rounding: relative error below which a measured number is taken for exact.
    """

    radii: tuple[float, ...]
    measurements: tuple[Measurement, ...]
    decayed_share: float
    rounding: float

    def psi(self, weight_decay: float | None = None, *, temperature: float) -> RaySeries:
        """Ψ_s along the ray, its parts and fits, for λ (the objective's own when not given) and s > 0.

        Raises:
            InputError: λ or s outside its range.
        """
        psi = tuple(m.psi(weight_decay, temperature=temperature) for m in self.measurements)
        decay = self.measurements[0].weight_decay if weight_decay is None else weight_decay
        parts = {name: tuple(value.parts[name] for value in psi) for name in psi[0].parts}
        weights = np.array([0.0, 1 / temperature, 2 * decay / temperature, -1.0])
        joints = [m.joint for m in self.measurements]
        data = tuple(joint.linear(weights) for joint in joints)
        draws = np.stack([weights @ joint.deviations for joint in joints])  # (n, K)
        covariance = draws @ draws.T
        np.fill_diagonal(covariance, [value.sem**2 for value in data])  # the sketch's noise included
        size = np.sum([[abs(e.value) for e in parts[name]] for name in parts if name != "decay_laplacian"], axis=0)
        floor = self.rounding * (np.maximum(size, 1e-6 * size.max()) if size.any() else np.ones(len(size)))
        freedom = min(joint.degrees_of_freedom for joint in joints)
        radii = np.array(self.radii)
        fit, data_fit = (
            fit_quadratic(radii, np.array([e.value for e in series]), covariance, floor, joints[0].n, freedom)
            for series in (psi, data)
        )
        share = decay**2 * self.decayed_share / temperature
        return RaySeries(decay, temperature, self.radii, psi, parts, data, fit, data_fit, share)


def directions(
    objective: Objective, seed: int = 0, *, random: int = 3, layers: bool = False
) -> dict[str, Callable[[], UnitVector]]:
    """Unit directions by name, each made when called, since it is a copy of θ in float64.

    `random 0`, …: uniform on the sphere; `gradient`: ∇L/‖∇L‖ of all groups; `parameters`: θ/‖θ‖; with `layers`,
    `layer NAME`: uniform on the sphere of one layer's coordinates. The last two kinds look at θ when called.

    Raises:
        InputError: a negative seed or count; when called, ∇L or θ is 0.
    """
    if seed < 0 or random < 0:
        raise InputError(f"seed={seed}, random={random}: expected non-negative integers")
    space = objective.parameters
    if objective.streamed:
        names = [*(f"random {index}" for index in range(random)), "gradient", "parameters"]
        names += [f"layer {name}" for name in layers_of(space)] if layers else []
        return dict.fromkeys(names, partial(_left_out, objective))
    made: dict[str, Callable[[], UnitVector]] = {
        f"random {index}": partial(random_direction, space, seed, index) for index in range(random)
    }
    made["gradient"] = lambda: _unit(objective.gradient(), "the gradient")
    made["parameters"] = lambda: _unit([t.detach().to(torch.float64, copy=True) for t in space.tensors], "θ")
    for name, members in layers_of(space).items() if layers else ():
        made[f"layer {name}"] = partial(_confined, space, seed, members)
    return made


def _left_out(objective: Objective) -> UnitVector:
    refuse_streamed(objective.model, "a direction", "load the model with streamed=False where it fits")
    return []


def check_kinds(names: Sequence[str]) -> None:
    """Refuse a name that is of no kind of direction, whatever the model.

    Raises:
        InputError: one is.
    """
    for name in names:
        if not any(_is_kind(name, kind) for kind in KINDS):
            raise InputError(f"direction {name!r} is unknown: expected {', '.join(KINDS)}")


def kinds(offered: Mapping[str, Callable[[], UnitVector]], names: Sequence[str]) -> dict[str, Callable[[], UnitVector]]:
    """Those of the `directions` that are named, or of a kind that is (`random`, `layer`).

    Raises:
        InputError: a name of none.
    """
    for name in names:
        if not any(_is_kind(key, name) for key in offered):
            raise InputError(f"direction {name!r} is unknown: expected layer, {', '.join(offered)}")
    return {key: made for key, made in offered.items() if any(_is_kind(key, name) for name in names)}


def walk(
    objective: Objective,
    direction: UnitVector,
    radii: Sequence[float],
    *,
    groups: Sequence[int] | None = None,
    probes: int = 1,
    seed: int = 0,
    trace: TraceMethod | None = None,
    work: Work | None = None,
    name: str = "",
) -> Ray:
    """Measure at θ₀ + r·u for each r, with the same groups and probes; θ comes back bit for bit.

    Args:
        objective: at θ₀.
        direction: u, ‖u‖ = 1, as tensors of θ's shapes.
        radii: at least 4 different r, in the units of θ; 0 and negative ones are allowed.
        groups, probes, seed, trace: as of `measure`.
        work: keeps finished groups under the name and the radius: one scope for each θ₀, groups, seed and probes.
        name: of the direction, one for each in a scope; the point r = 0 is the same on all.

    Raises:
        InputError: too few radii, a direction of the wrong shape or length or, with work, without a name; or as
            `measure`, with the radius.
    """
    where = tuple(float(r) for r in radii)
    if len(set(where)) < max(_LEAST, len(where)) or not np.isfinite(where).all():
        raise InputError(f"radii={list(where)}: expected at least {_LEAST} different finite numbers")
    if work is not None and not name:
        raise InputError("name is empty: work keeps what is measured under the name of the direction, give it one")
    work = work or Work()
    space = objective.parameters
    if [u.shape for u in direction] != [t.shape for t in space.tensors]:
        raise InputError(f"direction has {len(direction)} tensors: expected the shapes of θ's {len(space.tensors)}")
    squares = np.array([float(u.double().square().sum()) for u in direction])
    if not abs(squares.sum() - 1) < 1e-5:
        raise InputError(f"direction has length {squares.sum() ** 0.5:.6g}: expected 1")
    measurements = []
    for index, radius in enumerate(where):
        with objective.displaced(direction, radius):
            at = f"at/{name}/{radius!r}" if radius else "at/0"
            try:
                there = measure(
                    objective, probes, seed, trace=trace, groups=groups, shares=0,
                    work=work.scope(at).part(index, len(where)),
                )  # fmt: skip
            except InputError as error:
                raise InputError(f"radius {radius:g}: {error}") from None
        measurements.append(there)
    return Ray(where, tuple(measurements), float(squares[space.decayed].sum()), rounding(space.dtype))


def _is_kind(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name} ")


def _unit(pieces: UnitVector, what: str) -> UnitVector:
    """Divided by their norm, in place."""
    norm = float(sum(float(piece.square().sum()) for piece in pieces)) ** 0.5
    if not 0 < norm < float("inf"):
        raise InputError(f"{what} has length {norm:g}: it gives no direction, leave it out")
    return [piece.div_(norm) for piece in pieces]


def _confined(space: ParameterSpace, seed: int, members: Sequence[int]) -> UnitVector:
    """Uniform on the unit sphere of some tensors' coordinates; the zeros elsewhere take no memory."""
    zero = torch.zeros((), dtype=torch.float64, device=space.tensors[0].device)
    pieces = [zero.expand(t.shape) for t in space.tensors]
    draws = [
        torch.from_numpy(np.asarray(stream(seed, Purpose.DIRECTION, 0, i, 1).standard_normal(space.tensors[i].shape)))
        for i in members
    ]
    for i, piece in zip(members, _unit(draws, "a random direction"), strict=True):
        pieces[i] = piece.to(zero)
    return pieces
