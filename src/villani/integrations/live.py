"""What a training run measures of itself, and when; of no framework.

`Live` is told of every finished optimiser step. When its budget of time allows, it measures fixed probe groups at the θ
of the moment, leaves the run as it found it to the bit, and keeps account of the seconds it took. Where several
processes train one model, each has a `Live` and makes the same calls of it; process 0 decides, by its clock.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
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
from villani.integrations.figures import PREFIX, Figures, figures_of
from villani.integrations.gradients import GradientWatch
from villani.integrations.processes import one_line
from villani.integrations.run_model import RunModel
from villani.integrations.untouched import untouched as untouched
from villani.measurement.design import check_design, check_temperature
from villani.objective.objective import LossFunction, Objective, check_weight_decay
from villani.objective.parameters import ParameterSpace
from villani.objective.weights import refuse_streamed
from villani.streams import Purpose, word

log = logging.getLogger("villani")


class Live:
    """Measures a model in training.

    Args:
        model: in training; a Hugging Face causal language model, or any module with `loss_fn`; as the run calls it, in
            DistributedDataParallel or cut by `fully_shard` if it is.
        groups: the probe groups, fixed for the run, as `Objective` takes them; at least 3; the same in every process.
        temperature: s > 0 of Ψ_s.
        weight_decay: λ of Ψ_s; that of the optimiser by default.
        decay: the mask m; what decays in the optimiser by default.
        probes: in each group.
        trace: see `measure`.
        loss_fn: see `Objective`.
        max_overhead: seconds of measuring for each second of everything else, at most.
        every: steps from one measurement to the next, at those that it divides, whatever `max_overhead` says.
        at_start: whether to measure before the first step as well, whatever `max_overhead` says.
        at_end: whether to measure after the last, whatever `max_overhead` says.
        seed: of the probes, which are others at every step.
        schedule: of the weight decay. Its own measurements are made at its own steps and count as measuring.
        clock: seconds.
        replicas: the DistributedDataParallel that the model is within, if it is not that itself.
        wrapped_later: whether the run has still to wrap or cut the model: `adopt` takes what comes of it.

    Attributes:
        descent: what the steps before the last measurement descend; None before one.
        training_loss: holds the run's loss against L at a measurement. By default a run is taken to train with L.

    Raises:
        InputError: anything about these that cannot be measured, tried out on every group's loss and on the second
            derivatives of one row; tensor or pipeline parallelism, quantised weights, a schedule in several processes.
            What fails later is logged, and raises nothing.
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
        every: int | None = None,
        at_start: bool = False,
        at_end: bool = False,
        seed: int = 0,
        schedule: DecaySchedule | None = None,
        clock: Callable[[], float] = time.perf_counter,
        replicas: Any = None,
        wrapped_later: bool = False,
    ) -> None:
        refuse_streamed(model, "a training run", "load the model with streamed=False")
        self.groups, self.schedule = groups, schedule
        self._temperature, self._decay_asked, self._mask_asked = temperature, weight_decay, decay
        self._probes, self._trace, self._loss_fn, self._seed = probes, trace, loss_fn, seed
        self._max_overhead, self._clock = max_overhead, clock
        self._every, self._at_start, self._at_end = every, at_start, at_end
        self._tried = False
        self._optimizer: Any = None
        self._watch: GradientWatch | None = None
        self._warned: set[Any] = set()
        self._reason = ""
        self.budget: Budget | None = None
        self.measured = self.steps = 0
        self._step = 0  # of the run, resumptions counted
        self._measured_at: int | None = None
        self._silent = 0  # steps to come in which processes do not ask each other
        self._unheard: Exception | None = None
        self.descent: Descent | None = None
        self.training_loss: Callable[[Objective], TrainingLoss] | None = None
        self.adopt(model, replicas, try_out=not wrapped_later)

    def adopt(self, model: nn.Module, replicas: Any = None, *, try_out: bool = True) -> None:
        """Measure this model from now on, as one that the run has wrapped.

        Args:
            model: as of `Live`.
            replicas: as of `Live`.
            try_out: whether to, as `Live` does.

        Raises:
            InputError: as `Live`.
        """
        run = RunModel(model, self.groups, self._probes, self._trace, self._loss_fn, replicas)
        run.tried = self._tried
        self.model, self.processes, self._run = run.model, run.processes, run
        with self.processes.together():
            self._check()
        if try_out:
            run.try_out(
                self._mask_asked or "all",
                [self._probes, self._seed, self._temperature, self._decay_asked, self._mask_asked],
            )
        self._tried = run.tried

    def _check(self) -> None:
        """Refuse settings that no model could be measured with."""
        check_temperature(self._temperature)
        if self._decay_asked is not None:
            check_weight_decay(self._decay_asked)
        check_design(len(self.groups), self._probes, self._seed, finite=False)
        Budget(self._max_overhead)
        if self._every is not None and (not isinstance(self._every, int) or self._every < 1):
            raise InputError(f"every={self._every}: expected a number of steps, at least 1, such as 500")
        if self.processes.several and self.schedule is not None:
            raise InputError(
                f"{self.processes.size} processes: a decay schedule would have to agree among them; use one process"
            )

    def start(
        self, optimizer: Any, state: dict[str, Any] | None = None, *, scale: Callable[[], float] | None = None,
        watch: bool = True, step: int = 0,
    ) -> Figures:  # fmt: skip
        """The run begins, or goes on.

        Args:
            optimizer: with torch's `param_groups`, its own state already loaded.
            state: of `state_dict`, where the run goes on.
            scale: what the loss is multiplied by before `backward`, such as a GradScaler's `get_scale`.
            watch: see `GradientWatch`; not where several processes average gradients.
            step: how many steps came before, where the run goes on.

        Returns:
            figures to log; empty without `at_start`, and where the run goes on.

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
        alone = watch and not self.processes.several and not self._run.layout.sharded
        self._watch = GradientWatch(self.model, optimizer, scale) if alone else None
        self.budget, self._silent, self._unheard = Budget(self._max_overhead, self._clock), 0, None
        self._step, self._measured_at = step, None
        return self._measure_anyway(self.budget) if self._at_start and not step else {}

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
        self.steps += 1
        self._step = step
        if self.processes.several:
            return self._step_together(step, budget)
        budget.step()
        figures = self._follow_schedule(step, budget)
        if self._may_try(budget):
            try:
                self._try_cost(budget)
            except Exception as error:
                budget.failed()
                self._give_up("trial", step, error)
        return figures | self._measure_within(step, budget) if self._due(budget) else figures

    def _step_together(self, step: int, budget: Budget) -> Figures:
        """What process 0 decides by its clock; whatever goes wrong in one process is told to all, and stops nothing.

        Nothing is caught within: what is told takes everybody out of the outermost block, wherever each is.
        """
        try:
            budget.step()
        except Exception as error:  # the others are told when they next ask
            self._unheard = error
        if self._silent:
            self._silent -= 1
            return {}
        stage = "decision"
        try:
            with self.processes.together():
                may_try, due, self._silent = self.processes.broadcast(self._decision())
                if may_try:
                    stage = "trial"
                    self._try_cost(budget)
                    _, due, self._silent = self.processes.broadcast(self._decision())
                stage = "measurement"
                return self._measure_within(step, budget) if due else {}
        except Exception as error:
            self._give_up(stage, step, error)
            with suppress(Exception):  # the clock may be what has failed
                if stage != "decision":
                    budget.failed(whole=stage == "measurement")
            return {PREFIX + "failed": 1.0} if stage != "trial" else {}

    def _decision(self) -> tuple[bool, bool, int]:
        """Whether to try, whether to measure, and for how many steps not to ask again; that of process 0 holds."""
        assert self.budget is not None
        error, self._unheard = self._unheard, None
        if error:
            raise error
        wait = self._every - 1 - self._step % self._every if self._every else self.budget.steps_to_wait
        return self._may_try(self.budget), self._due(self.budget), wait

    def _may_try(self, budget: Budget) -> bool:
        return self._every is None and budget.may_try

    def _due(self, budget: Budget) -> bool:
        return self._step % self._every == 0 if self._every else budget.due

    def _try_cost(self, budget: Budget) -> None:
        """Time something short, to know what a measurement takes."""
        with budget.spending(), self._run.lent():
            work, times = self._run.trial()
            before = 0.0
            for _ in range(TRIALS):  # the first pays for what is slow once; the last counts
                before = self._clock()
                work()
                self._wait()
            budget.expect((self._clock() - before) * times)

    def _measure_anyway(self, budget: Budget) -> Figures:
        """A measurement in which the budget has no say; all processes make it together."""
        try:
            with self.processes.together():
                return self._measure_within(self._step, budget)
        except Exception as error:
            self._give_up("measurement", self._step, error)
            budget.failed(whole=True)
            return {PREFIX + "failed": 1.0}

    def _measure_within(self, step: int, budget: Budget) -> Figures:
        self._wait()  # what the run had still to do is not billed here
        with budget.spending(whole=True):
            measured = self._measured(step) if self.processes.several else self.measure(step)
        if PREFIX + "failed" in measured:
            budget.failed(whole=True)
        account: Figures = self.processes.broadcast(self._account())
        return measured | account

    def measure(self, step: int) -> Figures:
        """Measure now, whatever the budget says; `seconds` of it are not counted.

        A measurement that fails, as at weights that are not finite, is told in a warning and as `failed`: it does not
        stop the run. Where several processes train one model, all of them call this.
        """
        try:
            return self._measured(step)
        except Exception as error:  # whatever it is, the run is worth more
            self._give_up("measurement", step, error)
            return {PREFIX + "failed": 1.0}

    def _measured(self, step: int) -> Figures:
        with self._run.lent():
            decay = decay_of(self._optimizer, self.model) if self._optimizer is not None else None
            asked = self._decay_asked if self._decay_asked is not None else (decay.weight_decay if decay else 0.0)
            mask = self._mask_asked or (decay.mask if decay else "all")
            if self.processes.several:
                step, asked, mask = self.processes.broadcast([step, asked, mask])
            objective = self._run.objective(mask, asked)
            found = self._run.measured(objective, word(self._seed, Purpose.LIVE, step))
            told = figures_of(found, asked, self._temperature)
            if decay:
                told |= self._descended(decay, objective)
        self.measured += 1
        self._measured_at = step
        return {PREFIX + name: value for name, value in told.items()}

    def finish(self) -> Figures:
        """What measuring took of this session of the run: its seconds, and those for each second of everything else.

        With `at_end` it measures first, unless the last step was measured. A run that never was is warned of.
        """
        if self.budget is None:
            return {}
        last = self._measure_anyway(self.budget) if self._at_end and self._measured_at != self._step else {}
        if self._watch:
            self._watch.close()
        if not self.measured:
            log.warning(self._never(self.budget))
        return last | self._account()

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

    def _follow_schedule(self, step: int, budget: Budget) -> Figures:
        """λ of the step to come; where the schedule cannot tell, that of this one."""
        if not self.schedule:
            return {}
        before = self.schedule.steps
        try:
            with budget.spending(), self._run.lent() if self.schedule.measures_next else nullcontext():
                self.schedule.step()
        except Exception as error:
            self.schedule.steps = before + 1
            self._warn("schedule", f"step {step}: decay schedule: {one_line(error)}; weight decay stays as it is")
            return {PREFIX + "failed": 1.0}
        return {}

    def _descended(self, decay: Decay, objective: Objective) -> Figures:
        """What is known of the λ that the steps since the last measurement descend."""
        steps, loss, same = self._watch.take() if self._watch else Steps(), TrainingLoss(), True
        if self.processes.several:
            why = f"{self.processes.size} processes average their gradients: what that descends is not worked out"
            loss = TrainingLoss(None, {"devices": why})
        elif self.steps:
            try:
                same = same_in_training(objective)
                loss = self.training_loss(objective) if self.training_loss else loss
            except Exception as error:  # costs the comparison, not the measurement
                loss = TrainingLoss(None, {"comparison": f"the run's loss cannot be held against L: {one_line(error)}"})
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
        if self._every:
            return f"{words}: every={self._every} divides none of them; give fewer, or at_end=True"
        spent = f"max_overhead={self._max_overhead:g} allowed {self._max_overhead * budget.total:.2g} s of them"
        if budget.expected is None:
            return f"{words}: {spent}, too few to try out what one takes; raise max_overhead, or call measure(step)"
        return f"{words}: {spent}, and one is expected to take {budget.expected:.2g} s; raise it, or give less text"

    def _wait(self) -> None:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()

    def _give_up(self, what: str, step: int, error: Exception) -> None:
        self._reason = one_line(error)
        self._warn((what, self._reason), f"step {step}: not measured: {self._reason}")

    def _warn(self, kind: Any, message: str) -> None:
        """Once of a kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning(message)
