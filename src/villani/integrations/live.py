"""What a training run measures of itself, and when; of no framework.

`Live` is told of every finished optimiser step. When its budget of time allows, it measures fixed probe groups at the θ
of the moment, leaves the run as it found it to the bit, and keeps account of the seconds it took.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from villani.curvature.trace import TraceMethod
from villani.dynamics.schedules import DecaySchedule
from villani.errors import InputError
from villani.landscape.objective import LossFunction, Objective, check_weight_decay
from villani.landscape.parameters import ParameterSpace
from villani.measurement import Measurement, check_design, check_temperature, measure
from villani.statistics import Estimate
from villani.streams import Purpose, word

Figures = dict[str, float]
log = logging.getLogger("villani")

DEAREST = 20  # forward passes that a probe of one group is taken to cost, before one was measured: 12 to 15 are usual
TRIALS = 2  # forward passes to know what one takes
_AGAIN = 4.0  # times the length of the run between trials
MARGIN = 1.25  # times the dearest of the last three measurements is what the next is expected to take
PREFIX = "villani/"


class Budget:
    """Keeps measuring ≤ `max_overhead` × everything else, in seconds, from what measuring was seen to take.

    Args:
        max_overhead: in (0, 1).
        clock: seconds.

    Raises:
        InputError: `max_overhead` out of range.
    """

    def __init__(self, max_overhead: float = 0.03, clock: Callable[[], float] = time.perf_counter) -> None:
        if not 0 < max_overhead < 1:
            raise InputError(f"max_overhead={max_overhead:g}: expected a number between 0 and 1, such as 0.03")
        self.max_overhead, self._clock = max_overhead, clock
        self.measuring = 0.0  # seconds
        self._start = self._last_step = clock()
        self._steps: list[float] = []
        self._expected: float | None = None
        self._tried = 0.0  # seconds into the run
        self._recent: list[float] = []

    @property
    def total(self) -> float:
        """Seconds since the start, measuring included."""
        return self._clock() - self._start

    @property
    def overhead(self) -> float:
        """Seconds of measuring for each second of everything else."""
        other = self.total - self.measuring
        return self.measuring / other if other > 0 else 0.0

    def step(self) -> None:
        """An optimiser step is over."""
        now = self._clock()
        self._steps = [*self._steps[-31:], now - self._last_step]
        self._last_step = now

    def affords(self, seconds: float) -> bool:
        """Whether so many seconds of measuring, now, keep to the budget."""
        return self.measuring + seconds <= self.max_overhead * (self.total - self.measuring)

    @property
    def due(self) -> bool:
        """Whether a measurement, a little dearer than the dearest of the last three, keeps to the budget."""
        return self._expected is not None and self.affords(self._expected)

    @property
    def may_try(self) -> bool:
        """Whether to try out what measuring takes: none was made yet, two training steps are affordable, and the run is
        four times as long as at the last trial, which may have met a busy moment.
        """
        again = not self._recent and self.total >= _AGAIN * self._tried
        return again and bool(self._steps) and self.affords(TRIALS * median(self._steps))

    def expect(self, seconds: float) -> None:
        """What a measurement is going to take, until one has been made; of several trials the least counts."""
        self._expected = min(seconds, self._expected or seconds)
        self._tried = self.total

    @contextmanager
    def spending(self, *, whole: bool = False) -> Iterator[None]:
        """Seconds that count as measuring; of a `whole` measurement they tell what the next will take."""
        before = self._clock()
        try:
            yield
        finally:
            now = self._clock()
            self.measuring += now - before
            self._last_step += now - before  # the time of a step is without them
            if whole:
                self._recent = [*self._recent[-2:], now - before]
                self._expected = MARGIN * max(self._recent)


@dataclass(frozen=True)
class Decay:
    """The weight decay that an optimiser applies.

    Attributes:
        weight_decay: of the groups that decay; the largest where they differ.
        objective: the λ of F that it is, or None (THEORY.md §8).
        why: in a sentence.
        mask: the tensors that decay, for `ParameterSpace`.
    """

    weight_decay: float
    objective: float | None
    why: str
    mask: str


def decay_of(optimizer: Any, model: nn.Module) -> Decay:
    """Which λ of F, if any, an optimiser's weight decay is, and on what; a wrapper's `optimizer` is looked at."""
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    decays = {id(p): float(g.get("weight_decay", 0.0)) for g in optimizer.param_groups for p in g["params"]}
    trained = [(name, decays.get(id(p), 0.0)) for name, p in model.named_parameters() if p.requires_grad]
    values = {value for _, value in trained if value}
    if not values:
        return Decay(0.0, 0.0, "No decay: F is the loss.", "all")
    names = [name for name, value in trained if value]
    mask = "all" if len(names) == len(trained) else ParameterSpace.matching(names)
    largest, kind = max(values), type(optimizer).__name__
    if len(values) > 1:
        return Decay(largest, None, f"groups decay at {len(values)} different rates: no one λ of F", mask)
    if isinstance(optimizer, torch.optim.SGD):
        return Decay(largest, largest, "SGD's L2 term is the gradient of (λ/2)‖mθ‖² with λ = weight_decay", mask)
    if type(optimizer) is torch.optim.Adam and not optimizer.param_groups[0].get("decoupled_weight_decay", False):
        return Decay(largest, largest, "Adam with L2 has the fixed points of F, at another noise than F's", mask)
    return Decay(largest, None, f"{kind} is no gradient descent on F: its weight decay is no λ of F", mask)


class Live:
    """Measures a model in training.

    Args:
        model: in training; a Hugging Face causal language model, or any module with `loss_fn`.
        groups: the probe groups, fixed for the run, as `Objective` takes them; at least 3.
        temperature: s > 0 of Ψ_s.
        weight_decay: λ of Ψ_s; that of the optimiser by default.
        decay: the mask m; what decays in the optimiser by default.
        probes: in each group.
        trace: see `measure`.
        loss_fn: see `Objective`.
        max_overhead: seconds of measuring for each second of everything else, at most.
        seed: of the probes, which are others at every step.
        schedule: of the weight decay. Its own measurements are made at its own steps and count as measuring.
        clock: seconds.

    Raises:
        InputError: anything about these that cannot be measured.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: torch.Tensor | Sequence[Any],
        *,
        temperature: float,
        weight_decay: float | None = None,
        decay: str | None = None,
        probes: int = 1,
        trace: TraceMethod | None = None,
        loss_fn: LossFunction | None = None,
        max_overhead: float = 0.03,
        seed: int = 0,
        schedule: DecaySchedule | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        check_temperature(temperature)
        if weight_decay is not None:
            check_weight_decay(weight_decay)
        check_design(len(groups), probes, seed, finite=False)
        Budget(max_overhead)
        self.model, self.groups, self.schedule = model, groups, schedule
        self._temperature, self._decay_asked, self._mask_asked = temperature, weight_decay, decay
        self._probes, self._trace, self._loss_fn, self._seed = probes, trace, loss_fn, seed
        self._max_overhead, self._clock = max_overhead, clock
        self._optimizer: Any = None
        self._warned: set[str] = set()
        self.budget: Budget | None = None
        self.measured = 0
        self._objective(decay or "all", 0.0)  # refuses what cannot be measured before the run starts

    def start(self, optimizer: Any, state: dict[str, Any] | None = None) -> None:
        """The run begins, or goes on.

        Args:
            optimizer: with torch's `param_groups`, its own state already loaded.
            state: of `state_dict`, where the run goes on.

        Raises:
            InputError: what `DecaySchedule.attach` refuses.
        """
        self._optimizer = optimizer
        if self.schedule:
            if state and state.get("schedule"):
                self.schedule.load_state_dict(state["schedule"])
            self.schedule.attach(optimizer)
        self.budget = Budget(self._max_overhead, self._clock)

    def step(self, step: int) -> Figures:
        """An optimiser step is over.

        Args:
            step: how many are, counted over resumptions: it keys the probes.

        Returns:
            figures to log; empty where nothing was measured.
        """
        if self.budget is None:
            raise InputError("call start(optimizer) before the first step")
        budget = self.budget
        budget.step()
        if self.schedule:
            with budget.spending(), untouched(self.model) if self.schedule.measures_next else nullcontext():
                self.schedule.step()
        if budget.may_try:
            try:
                with budget.spending(), untouched(self.model):
                    trial, before = self._objective("all", 0.0), 0.0
                    for _ in range(TRIALS):  # the first pays for what is slow once; the last counts
                        before = self._clock()
                        trial.loss(0)
                        self._wait()
                    budget.expect((self._clock() - before) * DEAREST * self._probes * len(self.groups))
            except (InputError, torch.OutOfMemoryError) as error:
                self._warn(f"step {step}: not measured: {error}")
        if not budget.due:
            return {}
        self._wait()  # what the run had still to do is not billed here
        with budget.spending(whole=True):
            figures = self.measure(step)
        return figures | self._account()

    def measure(self, step: int) -> Figures:
        """Measure now, whatever the budget says; `seconds` of it are not counted.

        A measurement that fails, as at weights that are not finite, is told in a warning and as `failed`: it does not
        stop the run.
        """
        decay = decay_of(self._optimizer, self.model) if self._optimizer is not None else None
        asked = self._decay_asked if self._decay_asked is not None else (decay.weight_decay if decay else 0.0)
        mask = self._mask_asked or (decay.mask if decay else "all")
        if self._decay_asked is None and decay and decay.objective is None:
            self._warn(f"{decay.why}; Ψ is that of F at that λ, which this run does not descend")
        try:
            with untouched(self.model):
                found = measure(
                    self._objective(mask, asked), self._probes, word(self._seed, Purpose.LIVE, step),
                    trace=self._trace, shares=0,
                )  # fmt: skip
        except (InputError, torch.OutOfMemoryError) as error:
            self._warn(f"step {step}: not measured: {error}")
            return {PREFIX + "failed": 1.0}
        self.measured += 1
        told = _figures(found, asked, self._temperature)
        if decay:
            rate = float(self._optimizer.param_groups[0]["lr"])
            own = 1.0 if self._decay_asked is not None or decay.objective is not None else 0.0
            told |= {"learning_rate": rate, "optimizer_weight_decay": decay.weight_decay, "lambda_is_of_F": own}
        return {PREFIX + name: value for name, value in told.items()}

    def finish(self) -> Figures:
        """What measuring took of this session of the run: its seconds, and those for each second of everything else."""
        return self._account() if self.budget else {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON can hold it."""
        return {"schedule": self.schedule.state_dict() if self.schedule else None}

    def _account(self) -> Figures:
        assert self.budget is not None
        numbers = {
            "overhead": self.budget.overhead, "measuring_seconds": self.budget.measuring,
            "seconds": self.budget.total, "measurements": float(self.measured),
        }  # fmt: skip
        return {PREFIX + name: value for name, value in numbers.items()}

    def _objective(self, mask: str, weight_decay: float) -> Objective:
        """Made afresh, since a run may freeze and thaw parameters."""
        return Objective(self.model, self.groups, weight_decay, mask, loss_fn=self._loss_fn)

    def _wait(self) -> None:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            log.warning(message)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back what a measurement might move: every generator, train modes, `.grad`, buffers, `requires_grad`.

    Inside, gradients are on, and inference mode is off; `Objective.evaluating` does the rest. Forward hooks of the
    user's do run.
    """
    python, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002 (the run's own global state)
    modes = [(module, module.training) for module in model.modules()]
    leaves = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    tables = [(module, dict(module._buffers)) for module in model.modules()]
    copies = {id(b): (b, b.detach().clone()) for _, table in tables for b in table.values() if b is not None}
    with ExitStack() as stack:
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        try:
            for p, _, _ in leaves:
                p.grad = None  # so that whatever is added goes elsewhere
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpys)  # noqa: NPY002
            for module, mode in modes:
                module.training = mode
            for module, table in tables:
                module._buffers.clear()
                module._buffers.update(table)
            with torch.no_grad():
                for buffer, copy in copies.values():
                    if not torch.equal(buffer, copy):
                        buffer.copy_(copy)
            for p, grad, flag in leaves:
                p.grad = grad
                if p.requires_grad != flag:
                    p.requires_grad_(flag)


def _figures(found: Measurement, weight_decay: float, temperature: float) -> Figures:
    psi = found.psi(weight_decay, temperature=temperature)
    told: dict[str, Estimate] = {
        "loss": found.loss, "gradient_norm_squared": found.gradient_norm_squared,
        "gradient_dot_parameters": found.gradient_dot_parameters, "hessian_trace": found.hessian_trace, "psi": psi,
    }  # fmt: skip
    told |= {f"psi_{name}": part for name, part in psi.parts.items()}
    figures = {name: estimate.value for name, estimate in told.items()}
    figures |= {f"{name}_sem": estimate.sem for name, estimate in told.items() if estimate.sem}
    return figures | {"decayed_norm_squared": found.decayed_norm_squared, "lambda": weight_decay, "s": temperature}
