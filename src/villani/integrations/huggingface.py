"""Live figures in Hugging Face's Trainer (transformers 5)."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from transformers import TrainerCallback

from villani.dynamics.schedules import DecaySchedule
from villani.errors import InputError
from villani.integrations.figures import Figures, logged
from villani.integrations.live import Live
from villani.integrations.order import check_trainer, check_trainer_run
from villani.integrations.prequential import RunScores, check_request
from villani.integrations.trainer_loss import TrainerLoss

_SCORES = "villani-scores"  # beside it
_KEY = "villani"  # in TrainerState.stateful_callbacks, which is saved with every checkpoint


class VillaniCallback(TrainerCallback):
    """Measures in `on_step_end` and logs through `Trainer.log`, so that every logger gets the figures.

        trainer = Trainer(model, arguments, train_dataset=…)
        trainer.add_callback(VillaniCallback(trainer, groups, temperature=1e-3))

    λ, η and what decays are read from the Trainer's optimiser, and its loss on its own batches is held against L, so
    that `villani/descended_lambda` is the λ of F that its steps descend, if there is one. The weights that come out
    have the same bits as without the callback, unless a decay schedule is given. Several processes (DDP, or FSDP with
    `fsdp_version` 2) measure together.

    With `certificate="prequential"` the run comes with a certified risk of its iterates, each on the blocks that it was
    about to be trained on: one epoch in the text's order, by any optimiser, at no further forward pass. It is logged at
    the end, written to `certificate.json` in the Trainer's output folder, and is `callback.scores.certificate`. Groups
    and a temperature are not needed then:

        trainer.add_callback(VillaniCallback(trainer, certificate="prequential"))

    Args:
        trainer: that it is added to.
        groups: fixed probe groups, (G, B, T) token ids or as `Objective` takes them; at least 3, 12 for good intervals;
            the same in every process. None to measure nothing, with a certificate alone.
        temperature: s > 0 of Ψ_s; with groups.
        schedule: of the weight decay; goes on after a resume.
        verbose: whether to log all figures, not the main eight of a measurement.
        certificate: what to certify the run by; see `integrations.prequential`.
        delta: δ of the certificate.
        candidates: settings that the run's were chosen from on this text; δ is divided by them.
        settings: further ones of `Live`: weight_decay, decay, probes, trace, loss_fn, max_overhead, every, at_start,
            at_end, seed, clock.

    Raises:
        InputError: what `Live` refuses, other parallelism than those two, or a schedule in several processes; what a
            certificate cannot be had of, as blocks that are shuffled or a second epoch. What only the wrapped weights
            or the batches tell is refused when training begins.
    """

    live: Live | None

    def __init__(
        self, trainer: Any, groups: torch.Tensor | Sequence[Any] | None = None, *, temperature: float | None = None,
        schedule: DecaySchedule | None = None, verbose: bool = False,
        certificate: Literal["prequential"] | None = None, delta: float = 0.05, candidates: int = 1, **settings: Any,
    ) -> None:  # fmt: skip
        check_request(groups, temperature, schedule, certificate, settings)
        if certificate:
            check_trainer(trainer)
        self._sharded = bool(trainer.is_fsdp_enabled)
        _check_parallelism(trainer)
        if trainer.args.world_size > 1 and schedule is not None:
            processes = trainer.args.world_size
            raise InputError(f"{processes} processes: a decay schedule would have to agree among them; use one")
        self.trainer, self._loss, self.live = trainer, TrainerLoss(trainer), None
        self._verbose, self._running = verbose, False
        self.scores = RunScores(delta=delta, candidates=candidates) if certificate else None
        if groups is not None and temperature is not None:
            self.live = Live(
                trainer.model, groups, temperature=temperature, schedule=schedule, wrapped_later=self._sharded,
                **settings,
            )  # fmt: skip
            self.live.training_loss = self._loss.compare

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The optimiser is there, with its state if the run resumes.

        Raises:
            InputError: what a decay schedule refuses, or sharded weights, or processes that differ; blocks out of
                order, or more than one epoch of them, with a certificate.
        """
        wrapped = self.trainer.model_wrapped  # hyperparameter search makes a new one
        stored = state.stateful_callbacks if state.global_step else {}
        figures: Figures = {}
        if self.scores:
            check_trainer_run(self.trainer, state, kwargs["train_dataloader"])
            self.scores.start(wrapped, done=state.global_step, stored=stored.get(_SCORES))
        if self.live:
            several = args.world_size > 1
            self.live.adopt(wrapped if several or self._sharded else kwargs["model"], try_out=several or self._sharded)
            scaler = getattr(self.trainer.accelerator, "scaler", None)
            figures = self.live.start(
                kwargs["optimizer"], stored.get(_KEY), scale=scaler.get_scale if scaler is not None else None,
                watch=args.world_size == 1, step=state.global_step,
            )  # fmt: skip
        self._loss.attach()
        self._running = True
        self._keep(state)
        if state.is_world_process_zero:
            self._log(figures, control)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A certificate is of one epoch."""
        if self.scores:
            self.scores.epoch()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A batch of an accumulated gradient is over."""
        if self.scores:
            self.scores.batch()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An optimiser step is over; with gradient accumulation that is once for all its batches."""
        if self.scores:
            self.scores.batch(state.global_step)
        figures = self.live.step(state.global_step) if self.live else {}
        if state.is_world_process_zero:
            self._log(figures, control)
            self._keep(state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the last epoch, log what comes at the end: in `on_train_end` loggers before this one have closed."""
        if control.should_training_stop or state.global_step >= state.max_steps:
            self._finish(state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log what measuring took, and the certificate, where no epoch ended."""
        self._finish(state, control)

    def _finish(self, state: Any, control: Any) -> None:
        if not self._running:
            return
        self._running = False
        self._loss.detach()
        figures = self.live.finish() if self.live else {}
        certificate = self.scores.finish(state.global_step, state.max_steps) if self.scores else None
        if certificate:
            certificate.write(self.trainer.args.output_dir)
            figures = figures | certificate.figures
        if state.is_world_process_zero:
            self._log(figures, control)

    def _keep(self, state: Any) -> None:
        # as entries of their own: ExportableState would make the Trainer construct this callback anew, without its data
        if self.live:
            state.stateful_callbacks[_KEY] = self.live.state_dict()
        if self.scores:
            state.stateful_callbacks[_SCORES] = self.scores.state_dict()

    def _log(self, figures: Figures, control: Any) -> None:
        if figures:
            wanted = control.should_log  # Trainer.log takes the wish for the Trainer's own log of this step as granted
            self.trainer.log(logged(figures, self._verbose))
            control.should_log = wanted


def _check_parallelism(trainer: Any) -> None:
    if trainer.is_deepspeed_enabled:
        raise InputError("weights are DeepSpeed's: gradients of its parts are not measured; use FSDP, fsdp_version 2")
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if trainer.is_fsdp_enabled and getattr(plugin, "fsdp_version", 1) != 2:
        raise InputError("FSDP of version 1 has no gradients of its parts: set fsdp_version 2 (fully_shard)")
    parallelism = getattr(trainer.accelerator, "parallelism_config", None)
    for name in ("tp", "cp", "sp"):
        size = getattr(parallelism, f"{name}_size", 1) or 1
        if size > 1:
            raise InputError(f"{name}_size={size} cuts tensors or sequences: measured is data parallelism, cut or not")
