"""Weight-decay schedules for any torch optimiser: one λ for each step, written into the groups that decay.

What a λ_t means is the optimiser's matter. With SGD's L2 term F changes with λ_t, and there is no one Gibbs law to
speak of. With AdamW λ_t is no λ of F at all (THEORY.md §8). A certificate needs every λ_t fixed before the data:
`ConstantMemory`, `AdamC` and `LeastCertificate` depend on steps and rates alone and may be used with one.
`GuardFollowing` looks at the data, and no bound of THEORY.md §5 covers a run that it steered; J schedules fixed
beforehand, each at δ/J, would be covered.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from villani.errors import InputError, check_positive
from villani.theory.complexity import certificate_decay


class NotFinite(InputError):
    """What a schedule measured is no number: the run has diverged."""


class DecaySchedule(ABC):
    """λ_t from each group's own λ₀ and learning rates.

    `attach` it once, then `step` after each step of the optimiser and of its learning-rate schedule, whose next rate it
    reads.

    Groups whose weight decay is 0 when it is attached never decay. After a resume: `load_state_dict`, then `attach`.
    """

    why_not_f = "λ varies in the run, and F with it"  # why no one F has this decay

    def __init__(self) -> None:
        self.steps = 0  # finished ones
        self._optimizer: Any = None  # and not its groups: load_state_dict makes new ones
        self._started: list[tuple[float, float]] = []  # (λ₀, η₀) of every group

    @abstractmethod
    def value(self, start: float, first_rate: float, rate: float) -> float:
        """λ of the step to come, in a group that decays.

        Args:
            start: its λ₀ > 0.
            first_rate: its η₀: the peak, where a learning-rate schedule tells (`initial_lr`).
            rate: η of the step to come.
        """

    def attach(self, optimizer: Any) -> None:
        """Take over an optimiser's weight decay, and set that of the step to come.

        Args:
            optimizer: anything with torch's `param_groups`.

        Raises:
            InputError: no group decays, or the groups are not those of the state that was loaded.
        """
        groups: list[dict[str, Any]] = optimizer.param_groups
        if not self._started:
            self._started = [(g.get("weight_decay", 0.0), g.get("initial_lr", g["lr"])) for g in groups]
        if len(groups) != len(self._started):
            raise InputError(f"the optimiser has {len(groups)} groups, the schedule's state {len(self._started)}")
        if not any(start for start, _ in self._started):
            raise InputError("no group of the optimiser has a weight decay > 0: there is nothing to schedule")
        self._optimizer = optimizer
        self._write()

    def detach(self) -> None:
        """Let go of the optimiser, so that what it holds can be freed; `current` is then empty."""
        self._optimizer = None

    def step(self) -> None:
        """A step is over: set λ of the next."""
        if self._optimizer is None:
            raise InputError("the schedule has no optimiser: call attach(optimizer) first")
        self.steps += 1
        self._write()

    @property
    def measures_next(self) -> bool:
        """Whether the next `step` looks at the model."""
        return False

    @property
    def current(self) -> list[float]:
        """λ of the step to come, of every group."""
        return [float(g.get("weight_decay", 0.0)) for g in self._groups]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON can hold it."""
        return {"steps": self.steps, "started": [list(pair) for pair in self._started]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where a state was taken."""
        self.steps = int(state["steps"])
        self._started = [(float(start), float(rate)) for start, rate in state["started"]]

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return [] if self._optimizer is None else self._optimizer.param_groups

    def _write(self) -> None:
        for group, (start, first) in zip(self._groups, self._started, strict=True):
            if start:
                group["weight_decay"] = self.value(start, first, float(group["lr"]))


class ConstantMemory(DecaySchedule):
    """λ_t = λ₀η₀/η_t, so that the memory of 1/(η_tλ_t) steps stays what it was at η₀ (Wang & Aitchison), up to a cap.

    Args:
        cap: largest λ; reached in a warm-up and where the rate goes to zero.

    Raises:
        InputError: the cap is not positive.
    """

    def __init__(self, *, cap: float) -> None:
        super().__init__()
        check_positive(cap=cap)
        self.cap = cap

    def value(self, start: float, first_rate: float, rate: float) -> float:
        """See `DecaySchedule.value`."""
        return self.cap if start * first_rate >= self.cap * rate else start * first_rate / rate


class AdamC(DecaySchedule):
    """λ_t = λ₀η_t/η₀ where a normalisation undoes the size of weights, λ₀ elsewhere (Defazio, arXiv 2506.02285).

    There the size of weights settles where ‖u‖/‖θ‖ = √(2λ/η), u the update: with λ ∝ η that does not move as the rate
    falls. In all, a run decays by λ₀Σ η_t²/η₀, which under a cosine is 3/4 of λ₀Σ η_t.

    Args:
        plain: tensors that keep λ₀, such as the output layer's. They get groups of their own, so that an optimiser's
            state is loaded after `attach`.
    """

    def __init__(self, plain: Collection[Any] = ()) -> None:
        super().__init__()
        self._plain = {id(tensor) for tensor in plain}

    def attach(self, optimizer: Any) -> None:
        """See `DecaySchedule.attach`."""
        for group in list(optimizer.param_groups):
            plain = [p for p in group["params"] if id(p) in self._plain]
            if plain and not group.get("plain"):
                group["params"] = [p for p in group["params"] if id(p) not in self._plain]
                optimizer.param_groups.append({**group, "params": plain, "plain": True})
        super().attach(optimizer)

    def value(self, start: float, first_rate: float, rate: float) -> float:
        """See `DecaySchedule.value`."""
        return start * rate / first_rate

    def _write(self) -> None:
        super()._write()
        for group, (start, _) in zip(self._groups, self._started, strict=True):
            if group.get("plain"):
                group["weight_decay"] = start


class LeastCertificate(DecaySchedule):
    """The λ_t of the least clipped c4 among those that shrink θ as much in all as λ₀ does: `certificate_decay`.

    It rises towards the end, as 1/(1/C + rate still to come), and knows steps and rates only, so that "fixed before the
    data" holds. For a certificate the noise has to follow: τ_t² = v(1 − (1 − η_tλ_t)²) at one v throughout, as
    `ChainPlan(decays=schedule.decays(λ₀))` has it; noise √(ηs) does not. Less of what was learned is kept in the same
    proportion as the bound falls, so that this is no free gain (docs/schedules.md).

    Args:
        rates: η of every step to come; a step beyond them keeps the last λ.

    Raises:
        InputError: rates that are not positive (leave out a last step of rate 0).
    """

    def __init__(self, rates: Sequence[float]) -> None:
        super().__init__()
        self.rates = np.asarray(rates, dtype=float)
        self._planned: dict[float, np.ndarray] = {}
        self.decays(1e-12)  # refuses bad rates here, not in the first step

    def decays(self, start: float) -> np.ndarray:
        """(K,) λ_t."""
        if start not in self._planned:
            self._planned[start] = certificate_decay(self.rates, start)
        return self._planned[start]

    def value(self, start: float, first_rate: float, rate: float) -> float:
        """See `DecaySchedule.value`.

        Raises:
            InputError: the optimiser's rate is not the planned one.
        """
        del first_rate
        at = min(self.steps, len(self.rates) - 1)
        if self.steps < len(self.rates) and not np.isclose(rate, self.rates[at], rtol=1e-6):
            raise InputError(f"step {at}: learning rate {rate:g} in place of the planned {self.rates[at]:g}")
        return float(self.decays(start)[at])


class GuardFollowing(DecaySchedule):
    """λ_t = max(λ₀, √λ²_guard), up to a cap: below it, condition (iv) is seen to fail at s on a Theorem-C orbit.

    λ²_guard is the largest over orbits of (sΔ_B L − ‖∇_B L‖²)/‖mA‖² (THEORY.md §8), measured every so many steps, each
    orbit's values averaged exponentially before the largest is taken, since the largest of noisy values is too large.

    A lower guard only: to respect it proves nothing, Theorem D's orbits defeat any λ, and a choice made on data is
    covered by no bound of §5. The interval is in steps, not seconds, so that a rerun takes the same decisions.

    Args:
        measure: from the number of finished steps to λ²_guard by orbit; values below 0 ask for nothing. For example
            `GuardMeter(objective, temperature).values`.
        every: steps between measurements.
        cap: largest λ.
        smoothing: weight of a new measurement in the average, in (0, 1].

    Raises:
        InputError: a number out of range.
    """

    def __init__(
        self, measure: Callable[[int], Mapping[str, float]], *, every: int, cap: float, smoothing: float = 0.3
    ) -> None:
        super().__init__()
        check_positive(cap=cap, every=every, smoothing=smoothing)
        if smoothing > 1:
            raise InputError(f"smoothing={smoothing:g}: expected a number in (0, 1]")
        self.measure, self.every, self.cap, self.smoothing = measure, every, cap, smoothing
        self.averages: dict[str, float] = {}

    @property
    def measures_next(self) -> bool:
        """See `DecaySchedule.measures_next`."""
        return (self.steps + 1) % self.every == 0

    def step(self) -> None:
        """See `DecaySchedule.step`; measures where it is time to.

        Raises:
            NotFinite: a measured value.
        """
        if self.measures_next:
            for name, value in self.measure(self.steps + 1).items():
                if not math.isfinite(value):
                    raise NotFinite(f"step {self.steps + 1}: λ²_guard of {name} is {value}: the run has diverged")
                old = self.averages.get(name, value)
                self.averages[name] = old + self.smoothing * (value - old)
        super().step()

    def value(self, start: float, first_rate: float, rate: float) -> float:
        """See `DecaySchedule.value`."""
        del first_rate, rate
        squared = max(self.averages.values(), default=0.0)
        return float(min(self.cap, max(start, max(squared, 0.0) ** 0.5)))

    def state_dict(self) -> dict[str, Any]:
        """See `DecaySchedule.state_dict`."""
        return super().state_dict() | {"averages": dict(self.averages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `DecaySchedule.load_state_dict`."""
        super().load_state_dict(state)
        self.averages = {name: float(value) for name, value in state["averages"].items()}
