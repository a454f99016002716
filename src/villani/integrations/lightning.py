"""Live figures in Lightning; to install it: pip install 'villani[lightning]'."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from torch import nn

from villani.dynamics.schedules import DecaySchedule
from villani.errors import InputError
from villani.integrations.descent import TrainingLoss
from villani.integrations.figures import Figures, logged
from villani.integrations.live import Live
from villani.integrations.order import check_lightning_run
from villani.integrations.prequential import RunScores, check_request

_STRATEGIES = ("DDPStrategy", "ModelParallelStrategy")  # for several processes


class VillaniCallback(Callback):  # type: ignore[misc] # its types are not looked at: mypy would take minutes over them
    """Measures in `on_train_batch_end`, after batches that ended in an optimiser step, and writes to every logger.

        Trainer(callbacks=[VillaniCallback(groups, temperature=1e-3, module=lambda task: task.model)])

    The weights that come out have the same bits as without the callback, unless a decay schedule is given.

    With `certificate="prequential"` the run comes with a certified risk of its iterates, as with the Trainer's
    callback: one epoch in the text's order, where `training_step` calls the model with `input_ids` and `labels` by
    name. It is logged at the end, written to `certificate.json` in the logger's folder, or else in `default_root_dir`,
    and is `callback.scores.certificate`.

        Trainer(callbacks=[VillaniCallback(certificate="prequential", module=lambda task: task.model)], max_epochs=1)

    Args:
        groups: fixed probe groups, as `Objective` takes them; at least 3, 12 for good intervals; the same in every
            process. None to measure nothing, with a certificate alone.
        temperature: s > 0 of Ψ_s; with groups.
        module: the model within the LightningModule, whose parameters are θ; itself by default.
        schedule: of the weight decay; goes on after a resume.
        verbose: whether to log all figures, not the main eight of a measurement.
        certificate: what to certify the run by; see `integrations.prequential`.
        delta: δ of the certificate.
        candidates: settings that the run's were chosen from on this text; δ is divided by them.
        settings: further ones of `Live`: weight_decay, decay, probes, trace, loss_fn, max_overhead, every, at_start,
            at_end, seed, clock.

    Raises:
        InputError: arguments that do not go together; what `Live` refuses and a certificate cannot be had of, when
            training starts.
    """

    def __init__(
        self, groups: torch.Tensor | Sequence[Any] | None = None, *, temperature: float | None = None,
        module: Callable[[Any], nn.Module] = lambda task: task, schedule: DecaySchedule | None = None,
        verbose: bool = False, certificate: Literal["prequential"] | None = None, delta: float = 0.05,
        candidates: int = 1, **settings: Any,
    ) -> None:  # fmt: skip
        check_request(groups, temperature, schedule, certificate, settings)
        self.scores = RunScores(delta=delta, candidates=candidates) if certificate else None
        self._planned: int | None = None
        self.groups, self.module, self._verbose = groups, module, verbose
        self.settings = {"temperature": temperature, "schedule": schedule} | settings
        self.live: Live | None = None
        self._state: dict[str, Any] | None = None
        self._seen = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """The optimiser is there, with its state if the run resumes.

        Raises:
            InputError: several optimisers, processes that are neither DDP's nor `fully_shard`'s, what `Live` refuses.
        """
        if len(trainer.optimizers) != 1:
            raise InputError(f"{len(trainer.optimizers)} optimisers: expected one")
        strategy = trainer.strategy
        if trainer.world_size > 1 and type(strategy).__name__ not in _STRATEGIES:
            raise InputError(
                f"{type(strategy).__name__} in {trainer.world_size} processes: expected one of {', '.join(_STRATEGIES)}"
            )
        module = self.module(pl_module)
        _check_forward(module)
        self._seen = trainer.global_step
        if self.scores:
            self._planned = check_lightning_run(trainer, pl_module)
            self.scores.start(module)
        if self.groups is not None:
            self._start_live(trainer, module, self.groups)

    def _start_live(self, trainer: Any, module: nn.Module, groups: torch.Tensor | Sequence[Any]) -> None:
        self.live = Live(module, groups, replicas=trainer.strategy.model, **self.settings)
        if trainer.world_size > self.live.processes.size:
            raise InputError(
                f"the model of {self.live.processes.size} process is not what {trainer.world_size} train together: "
                "give DDPStrategy, or call fully_shard on it in configure_model"
            )
        if trainer.gradient_clip_val and "value" in str(trainer.gradient_clip_algorithm or "").lower():
            why = f"gradients are clipped by value, at {trainer.gradient_clip_val:g}: not by a factor"
            self.live.training_loss = lambda _: TrainingLoss(None, {"clipped by value": why})
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = scaler.get_scale if scaler is not None else None
        self._log(trainer, self.live.start(trainer.optimizers[0], self._state, scale=scale, step=self._seen))

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """A certificate is of one epoch."""
        if self.scores:
            self.scores.epoch()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A batch is over, and perhaps a step."""
        stepped = trainer.global_step != self._seen
        self._seen = trainer.global_step
        if self.scores:
            self.scores.batch(self._seen if stepped else None)
        if self.live is not None and stepped:
            self._log(trainer, self.live.step(trainer.global_step))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Log what measuring took, and the certificate."""
        figures = self.live.finish() if self.live is not None else {}
        if self.scores:
            if trainer.should_stop and self._planned is None:
                self.scores.refuse(f"training was stopped at step {trainer.global_step}, so that m was not fixed")
            certificate = self.scores.finish(trainer.global_step, self._planned)
            if certificate:
                certificate.write(Path(trainer.log_dir or trainer.default_root_dir))
                figures = figures | certificate.figures
        self._log(trainer, figures)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """A run that broke has no certificate."""
        if self.scores:
            self.scores.stop()

    def state_dict(self) -> dict[str, Any]:
        """Saved with every checkpoint."""
        return self.live.state_dict() if self.live else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint, before training starts."""
        self._state = state_dict

    def _log(self, trainer: Any, figures: Figures) -> None:
        if figures and trainer.is_global_zero:  # not pl_module.log, which drops what comes between two of its own steps
            for logger in trainer.loggers:
                logger.log_metrics(logged(figures, self._verbose), step=trainer.global_step)


def _check_forward(module: nn.Module) -> None:
    """Refuse a LightningModule that has no `forward` of its own, and name what in it has one."""
    if not isinstance(module, LightningModule) or type(module).forward is not LightningModule.forward:
        return
    within = [name for name, child in module.named_children() if any(True for _ in child.parameters())]
    example = within[0] if within else "model"
    raise InputError(
        f"{type(module).__name__} has no forward of its own: say which module in it is the model, such as "
        f"module=lambda task: task.{example}"
    )
