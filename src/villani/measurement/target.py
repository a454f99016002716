"""The error that is wanted, of which figure."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from villani.bounds import check_number
from villani.errors import InputError
from villani.measurement.design import check_temperature
from villani.measurement.measurement import Measurement
from villani.objective.objective import Objective, check_weight_decay
from villani.statistics import Estimate, GroupSums, sampled_statistics

Quantity = Literal["hessian_trace", "psi"]


@dataclass(frozen=True)
class Target:
    """The wanted standard error.

    Attributes:
        error: > 0.
        relative: whether it is a share of the figure's own size.
        quantity: the figure: tr ∇²L, or Ψ_s at the λ and s that follow.
        weight_decay: λ.
        temperature: s.
    """

    error: float
    relative: bool = True
    quantity: Quantity = "hessian_trace"
    weight_decay: float = 0.0
    temperature: float = 1e-3

    def __post_init__(self) -> None:
        check_number("target_error", self.error)
        if not 0 < self.error < math.inf:
            raise InputError(f"target_error={self.error}: expected a finite number > 0")
        check_weight_decay(self.weight_decay)
        check_temperature(self.temperature)

    def estimate(self, measurement: Measurement) -> Estimate:
        """The figure as it was measured."""
        if self.quantity == "psi":
            return measurement.psi(self.weight_decay, temperature=self.temperature)
        return measurement.hessian_trace

    def figure(self, objective: Objective, sums: GroupSums) -> Estimate:
        """The figure from some groups."""
        joint = sampled_statistics(sums)
        if self.quantity == "hessian_trace":
            return joint.component(3)
        space = objective.parameters
        decay, s = self.weight_decay, self.temperature
        exact = decay**2 * float(space.norms_squared()[space.decayed].sum()) / s - decay * space.decayed_size
        return joint.linear(np.array([0.0, 1 / s, 2 * decay / s, -1.0]), exact)

    def allowed(self, value: float) -> float:
        """The largest standard error that is good enough."""
        return self.error * abs(value) if self.relative else self.error
