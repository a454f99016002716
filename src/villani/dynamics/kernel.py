"""The kernel of a Langevin chain: λ, s, the method and its step sizes. No torch.

`villani.dynamics.langevin` has what a step does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from villani.errors import InputError, check_nonnegative, check_positive
from villani.statistics import Array

Method = Literal["noisy-sgd", "matched", "mala"]
Schedule = Literal["constant", "cosine"]
FLOOR = 0.1  # share of the learning rate that a cosine schedule ends at


@dataclass(frozen=True)
class Kernel:
    """How a chain moves: the transition of each of its steps.

    Attributes:
        weight_decay: λ ≥ 0.
        temperature: s > 0; the law aimed at is exp(−2F/s) whatever the step sizes.
        learning_rate: η > 0, the largest step.
        steps: how many.
        method: see `langevin`.
        momentum: μ in [0, 1), with noisy-sgd only.
        schedule: constant; cosine: from η down to η/10.

    Raises:
        InputError: a number out of range, or things that do not go together.
    """

    weight_decay: float
    temperature: float
    learning_rate: float
    steps: int
    method: Method = "noisy-sgd"
    momentum: float = 0.0
    schedule: Schedule = "constant"

    def __post_init__(self) -> None:
        check_nonnegative(weight_decay=self.weight_decay)
        check_positive(temperature=self.temperature, learning_rate=self.learning_rate)
        if self.steps < 1:
            raise InputError(f"steps={self.steps}: expected at least 1")
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum={self.momentum:g}: expected a number in [0, 1)")
        if self.momentum and self.method != "noisy-sgd":
            raise InputError(f"momentum={self.momentum:g}: goes with noisy-sgd, not with {self.method}")
        if self.method != "mala" and self.learning_rate * self.weight_decay >= 2:
            raise InputError(
                f"learning_rate={self.learning_rate:g}: the decay alone diverges for ηλ ≥ 2; use η < "
                f"{2 / self.weight_decay:g}"
            )

    @property
    def beta(self) -> float:
        """β = 2/s."""
        return 2 / self.temperature

    def step_size(self, step: int) -> float:
        """η at a step."""
        if self.schedule == "constant":
            return self.learning_rate
        falling = (1 + math.cos(math.pi * step / self.steps)) / 2
        return self.learning_rate * (FLOOR + (1 - FLOOR) * falling)

    def times(self, steps: Sequence[int] | NDArray[Any]) -> Array:
        """Time of the diffusion at which each step begins: the sum of η/(1 − μ) before it."""
        sizes = np.array([self.step_size(step) for step in range(self.steps)])
        times: Array = np.concatenate([[0.0], np.cumsum(sizes)])[np.asarray(steps, dtype=int)] / (1 - self.momentum)
        return times

    def noise(self, step: int, decayed: bool) -> float:
        """Standard deviation of the noise of a step."""
        size = self.step_size(step)
        variance = (1 - self.momentum) * size * self.temperature
        if self.method == "matched" and decayed:
            variance *= 1 - size * self.weight_decay / 2
        return math.sqrt(variance)
