"""What was measured at one θ: five statistics, and from them Ψ_s with an interval for every λ and s.

Measure once, answer for every λ and s: the statistics determine Ψ_s = ‖∇F‖²/s − ΔF (THEORY.md §6), and no λ or s enters
the measurement.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from villani.measurement.design import check_temperature
from villani.objective.objective import check_weight_decay
from villani.objective.origin import Origin
from villani.results import Result
from villani.statistics import Array, Estimate, JointEstimate, exact


@dataclass(frozen=True)
class TensorStatistics:
    """One parameter tensor's share.

    Attributes:
        name: of the tensor.
        shape: of the tensor.
        decayed: whether it decays.
        norm_squared: ‖θ_t‖².
        hessian_trace: trace of its diagonal block of ∇²L; None with `shares=0` where probes did not tell tensors apart.
    """

    name: str
    shape: tuple[int, ...]
    decayed: bool
    norm_squared: float
    hessian_trace: Estimate | None


@dataclass(frozen=True)
class LayerStatistics:
    """One layer's share: the tensors that have the same first number in their names, or one tensor without a number.

    Attributes:
        name: the layer's number, or the tensor's name.
        parameters: how many.
        hessian_trace: trace of its diagonal block of ∇²L; None with `shares=0` where probes did not tell layers apart.
    """

    name: str
    parameters: int
    hessian_trace: Estimate | None


@dataclass(frozen=True, eq=False, repr=False)
class Measurement(Result):
    """What was measured at one θ, ready to answer for any λ and s.

    Attributes:
        joint: loss, ‖∇L‖², ⟨∇L, mθ⟩, tr ∇²L with their covariance.
        naive_gradient_norm_squared: mean of ‖∇L_g‖² over groups: what a mini-batch reports, too large by tr Σ/B.
        decayed_norm_squared: ‖mθ‖², exact.
        parameters: d.
        decayed_parameters: d_m.
        weight_decay: the objective's λ, the default of `psi`.
        gauss_newton_trace: the part of tr ∇²L that is never negative; None with `hutchinson`. Not a stand-in for it.
        tokens: predicted tokens in all groups.
        tensors: per tensor, in θ's order.
        layers: per layer, in θ's order.
        sketch: buckets of the gradient sketch, or None where gradients were kept whole.
        origin: what was measured; None at a displaced θ, as along a ray.
    """

    joint: JointEstimate
    naive_gradient_norm_squared: Estimate
    gauss_newton_trace: Estimate | None
    decayed_norm_squared: float
    parameters: int
    decayed_parameters: int
    weight_decay: float
    tokens: int
    tensors: tuple[TensorStatistics, ...]
    layers: tuple[LayerStatistics, ...]
    sketch: int | None
    origin: Origin | None = None

    def __repr__(self) -> str:
        return (
            f"Measurement(loss {self.loss}, ‖∇L‖² {self.gradient_norm_squared}, "
            f"⟨∇L, mθ⟩ {self.gradient_dot_parameters}, tr ∇²L {self.hessian_trace};\n"
            f"            d = {self.parameters:,}, {self.decayed_parameters:,} decay, λ = {self.weight_decay:g}, "
            f"{self.joint.n} groups; .psi(temperature=…) for Ψ)"
        )

    @property
    def loss(self) -> Estimate:
        """L, mean nats per predicted token."""
        return self.joint.component(0)

    @property
    def gradient_norm_squared(self) -> Estimate:
        """‖∇L‖², unbiased; near a stationary point it can come out negative."""
        return self.joint.component(1)

    @property
    def gradient_dot_parameters(self) -> Estimate:
        """⟨∇L, mθ⟩."""
        return self.joint.component(2)

    @property
    def hessian_trace(self) -> Estimate:
        """Tr ∇²L; add λ·d_m for the Laplacian of F."""
        return self.joint.component(3)

    def psi(self, weight_decay: float | None = None, *, temperature: float) -> Estimate:
        """Ψ_s = ‖∇F‖²/s − ΔF at this θ, with its five parts; THEORY.md §1, §6.

        The exact parts λ²‖mθ‖²/s and −λ·d_m carry no error, so λ moves the interval only through 2λ⟨∇L, mθ⟩/s.
        Its sign at one θ proves nothing about the Villani condition (iv), which concerns θ → ∞; at equilibrium its
        mean is negative (THEORY.md §1).

        Args:
            weight_decay: λ ≥ 0; the objective's own when not given.
            temperature: s > 0.

        Raises:
            InputError: λ or s outside its range.
        """
        decay = self.weight_decay if weight_decay is None else weight_decay
        check_weight_decay(decay)
        check_temperature(temperature)
        count = self.joint.n
        unit = np.eye(4)
        parts = {
            "decay_norm": exact(decay**2 * self.decayed_norm_squared / temperature, count),
            "cross": self.joint.linear(unit[2] * 2 * decay / temperature),
            "gradient_norm": self.joint.linear(unit[1] / temperature),
            "decay_laplacian": exact(-decay * self.decayed_parameters, count),
            "hessian_trace": self.joint.linear(-unit[3]),
        }
        weights = np.array([0.0, 1 / temperature, 2 * decay / temperature, -1.0])
        total = self.joint.linear(weights, parts["decay_norm"].value + parts["decay_laplacian"].value)
        return Estimate(total.value, total.sem, count, total.status, total.degrees_of_freedom, parts)

    def propagate(self, function: Callable[[Array], float]) -> Estimate:
        """A smooth function of (loss, ‖∇L‖², ⟨∇L, mθ⟩, tr ∇²L), by the delta method; see `JointEstimate.propagate`."""
        return self.joint.propagate(function)
