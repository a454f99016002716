"""What a training run measures of itself, and when; of no framework.

`Live` is told of every finished optimiser step. When its budget of time allows, it measures fixed probe groups at the θ
of the moment, leaves the run as it found it to the bit, and keeps account of the seconds it took.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from villani.curvature.ways import TraceMethod
from villani.dynamics.schedules import DecaySchedule
from villani.errors import InputError
from villani.integrations.budget import TRIALS, Budget
from villani.integrations.descent import (
    SAME_LOSS,
    Decay,
    Descent,
    Steps,
    TrainingLoss,
    altered_gradients,
    decay_of,
    descent_of,
    same_in_training,
)
from villani.integrations.gradients import GradientWatch
from villani.integrations.untouched import uncompiled, untouched
from villani.measurement.design import check_design, check_temperature
from villani.measurement.measure import measure
from villani.measurement.measurement import Measurement
from villani.objective.objective import Batch, LossFunction, Objective, check_weight_decay
from villani.objective.parameters import ParameterSpace
from villani.objective.trial import already_tried
from villani.objective.weights import refuse_streamed
from villani.statistics import Estimate
from villani.streams import Purpose, word

Figures = dict[str, float]
log = logging.getLogger("villani")

DEAREST = 20  # forward passes that a probe of one group is taken to cost, before one was measured: 12 to 15 are usual
PREFIX = "villani/"


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

    Attributes:
        descent: what the steps before the last measurement descend; None before one.
        training_loss: holds the run's loss against L at a measurement. By default a run is taken to train with L.

    Raises:
        InputError: anything about these that cannot be measured, tried out on every group's loss and on the second
            derivatives of one row. What fails later is logged, and raises nothing.
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
        refuse_streamed(model, "a training run", "load the model with streamed=False")
        Budget(max_overhead)
        self.model, self.groups, self.schedule = uncompiled(model), groups, schedule
        self._temperature, self._decay_asked, self._mask_asked = temperature, weight_decay, decay
        self._probes, self._trace, self._loss_fn, self._seed = probes, trace, loss_fn, seed
        self._max_overhead, self._clock = max_overhead, clock
        self._optimizer: Any = None
        self._watch: GradientWatch | None = None
        self._warned: set[Any] = set()
        self._reason = ""
        self.budget: Budget | None = None
        self.measured = self.steps = 0
        self.descent: Descent | None = None
        self.training_loss: Callable[[Objective], TrainingLoss] | None = None
        self._rehearsed = False
        self._rehearse()
        self._rehearsed = True

    def start(
        self, optimizer: Any, state: dict[str, Any] | None = None, *, scale: Callable[[], float] | None = None,
        watch: bool = True,
    ) -> None:  # fmt: skip
        """The run begins, or goes on.

        Args:
            optimizer: with torch's `param_groups`, its own state already loaded.
            state: of `state_dict`, where the run goes on.
            scale: what the loss is multiplied by before `backward`, such as a GradScaler's `get_scale`.
            watch: see `GradientWatch`; not where several processes average gradients.

        Raises:
            InputError: no `param_groups`, or what `DecaySchedule.attach` refuses.
        """
        if not hasattr(optimizer, "param_groups"):
            raise InputError(f"{type(optimizer).__name__} has no param_groups: give the torch optimiser within it")
        self._optimizer = optimizer
        self.steps = 0
        if self.schedule:
            if state and state.get("schedule"):
                self.schedule.load_state_dict(state["schedule"])
            self.schedule.attach(optimizer)
        if self._watch:
            self._watch.close()
        self._watch = GradientWatch(self.model, optimizer, scale) if watch else None
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
        self.steps += 1
        figures = self._follow_schedule(step, budget)
        if budget.may_try:
            try:
                with budget.spending(), untouched(self.model):
                    trial, before = self._objective("all", 0.0), 0.0
                    for _ in range(TRIALS):  # the first pays for what is slow once; the last counts
                        before = self._clock()
                        trial.loss(0)
                        self._wait()
                    budget.expect((self._clock() - before) * DEAREST * self._probes * len(self.groups))
            except Exception as error:
                budget.failed()
                self._give_up("trial", step, error)
        if not budget.due:
            return figures
        self._wait()  # what the run had still to do is not billed here
        with budget.spending(whole=True):
            measured = self.measure(step)
        if PREFIX + "failed" in measured:
            budget.failed(whole=True)
        return figures | measured | self._account()

    def measure(self, step: int) -> Figures:
        """Measure now, whatever the budget says; `seconds` of it are not counted.

        A measurement that fails, as at weights that are not finite, is told in a warning and as `failed`: it does not
        stop the run.
        """
        try:
            with untouched(self.model):
                decay = decay_of(self._optimizer, self.model) if self._optimizer is not None else None
                asked = self._decay_asked if self._decay_asked is not None else (decay.weight_decay if decay else 0.0)
                objective = self._objective(self._mask_asked or (decay.mask if decay else "all"), asked)
                found = measure(
                    objective, self._probes, word(self._seed, Purpose.LIVE, step), trace=self._trace, shares=0
                )
                told = _figures(found, asked, self._temperature)
                if decay:
                    told |= self._descended(decay, objective)
        except Exception as error:  # whatever it is, the run is worth more
            self._give_up("measurement", step, error)
            return {PREFIX + "failed": 1.0}
        self.measured += 1
        return {PREFIX + name: value for name, value in told.items()}

    def finish(self) -> Figures:
        """What measuring took of this session of the run: its seconds, and those for each second of everything else.

        A run that was never measured is warned of.
        """
        if self.budget is None:
            return {}
        if self._watch:
            self._watch.close()
        if not self.measured:
            log.warning(self._never(self.budget))
        return self._account()

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

    def _rehearse(self) -> None:
        """Refuse what can never be measured before the run starts."""
        try:
            with untouched(self.model):
                objective = self._objective(self._mask_asked or "all", 0.0)
                with objective.evaluating():
                    for group in range(len(objective.groups)):
                        for piece in objective.batches(group):
                            objective.forward(piece)
                piece = next(objective.batches(0))
                if isinstance(piece, Batch):
                    piece = next(row for i in range(len(piece.ids)) if (row := piece.rows(i, i + 1)).tokens)
                small = Objective(self.model, [piece], finite=True, loss_fn=self._loss_fn)
                measure(small, 2, 0, trace=self._trace, shares=0)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"these groups cannot be measured with this model: {_words(error)}") from None

    def _follow_schedule(self, step: int, budget: Budget) -> Figures:
        """λ of the step to come; where the schedule cannot tell, that of this one."""
        if not self.schedule:
            return {}
        before = self.schedule.steps
        try:
            with budget.spending(), untouched(self.model) if self.schedule.measures_next else nullcontext():
                self.schedule.step()
        except Exception as error:
            self.schedule.steps = before + 1
            self._warn("schedule", f"step {step}: decay schedule: {_words(error)}; weight decay stays as it is")
            return {PREFIX + "failed": 1.0}
        return {}

    def _descended(self, decay: Decay, objective: Objective) -> Figures:
        """What is known of the λ that the steps since the last measurement descend."""
        steps, loss, same = self._watch.take() if self._watch else Steps(), TrainingLoss(), True
        if self.steps:
            try:
                same = same_in_training(objective)
                loss = self.training_loss(objective) if self.training_loss else loss
            except Exception as error:  # costs the comparison, not the measurement
                loss = TrainingLoss(None, {"comparison": f"the run's loss cannot be held against L: {_words(error)}"})
        altered = altered_gradients(self.model)
        found = self.descent = descent_of(decay, loss, steps, same=same, altered=altered)
        asked, own = objective.weight_decay, found.weight_decay
        there = own is not None and math.isclose(asked, own, rel_tol=SAME_LOSS)
        if there and asked and self._mask_asked:
            decayed = ParameterSpace(self.model, decay.mask).decayed
            there = bool((objective.parameters.decayed == decayed).all())
        if not (found.exact and there):
            words = "; ".join(found.why.values()) or f"λ = {asked:g} and its mask were given, and are not the run's"
            self._warn(
                ("descent", *found.why),
                f"{words}; Ψ is that of F at that λ, which this run does not descend"
                + (": no λ of F belongs to its steps" if own is None else f": its last step's λ is {own:.6g}"),
            )
        told = {
            "learning_rate": float(self._optimizer.param_groups[0]["lr"]), "optimizer_weight_decay": decay.weight_decay,
            "lambda_is_of_F": float(found.exact and there), "changed_steps": float(steps.changed),
        }  # fmt: skip
        told |= {"descended_lambda": own} if own is not None else {}
        return told | ({"gradient_factor": found.factor} if found.factor is not None else {})

    def _never(self, budget: Budget) -> str:
        """Why a run was never measured."""
        words = f"no measurement was made in {self.steps} steps of {budget.total:.3g} s"
        if self._reason:
            return f"{words}: {self._reason}"
        spent = f"max_overhead={self._max_overhead:g} allowed {self._max_overhead * budget.total:.2g} s of them"
        if budget.expected is None:
            return f"{words}: {spent}, too few to try out what one takes; raise max_overhead, or call measure(step)"
        return f"{words}: {spent}, and one is expected to take {budget.expected:.2g} s; raise it, or give less text"

    def _objective(self, mask: str, weight_decay: float) -> Objective:
        """Made afresh, since a run may freeze and thaw parameters."""
        with already_tried() if self._rehearsed else nullcontext():
            return Objective(self.model, self.groups, weight_decay, mask, loss_fn=self._loss_fn)

    def _wait(self) -> None:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()

    def _give_up(self, what: str, step: int, error: Exception) -> None:
        self._reason = _words(error)
        self._warn((what, self._reason), f"step {step}: not measured: {self._reason}")

    def _warn(self, kind: Any, message: str) -> None:
        """Once of a kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning(message)


def _words(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text[:300]}"


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
