"""Whether a run goes over its text once and in order, which is what a prequential certificate is about.

What the settings of a Trainer tell is refused when it is made, and what its loader and its steps tell when training
begins; of Lightning's, all of it when training begins.
"""

import math
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler
from transformers import Trainer

from villani.errors import InputError
from villani.integrations.prequential import refused

_LOADING = ("get_train_dataloader", "_get_train_sampler")


def check_trainer(trainer: Any) -> None:
    """Refuse a Trainer under whose settings no run has such a certificate.

    Raises:
        InputError: which setting, and what to set.
    """
    args = trainer.args
    if args.world_size > 1 or args.n_gpu > 1:
        raise _several(max(args.world_size, args.n_gpu))
    if args.max_steps <= 0 and args.num_train_epochs > 1:
        raise _second_epoch(f"num_train_epochs={args.num_train_epochs:g}")
    own = [getattr(type(trainer), name) is getattr(Trainer, name) for name in _LOADING]
    sized = not isinstance(trainer.train_dataset, IterableDataset)
    if not sized:
        _check_workers("dataloader_num_workers", args.dataloader_num_workers)
    if all(own) and sized and args.train_sampling_strategy != "sequential":
        raise refused(
            f"train_sampling_strategy={args.train_sampling_strategy!r}: blocks have to come in the text's order; "
            "set 'sequential'"
        )
    if args.label_smoothing_factor or trainer.compute_loss_func is not None:
        name = "label_smoothing_factor" if args.label_smoothing_factor else "compute_loss_func"
        raise refused(f"{name} is set, and keeps the labels from the model, where blocks are scored; unset it")


def check_trainer_run(trainer: Any, state: Any, loader: Any) -> None:
    """Refuse what only the beginning of a Trainer's run tells.

    Raises:
        InputError: a search, a second epoch, blocks out of order, or a resume that goes over blocks again.
    """
    if state.is_hyper_param_search:
        raise refused("a search for settings trains on the text many times; fix the settings first")
    if state.num_train_epochs > 1 and not isinstance(loader.dataset, IterableDataset):
        raise refused(
            f"max_steps={state.max_steps} is more than one epoch: in a second one blocks are scored by weights "
            "that saw them"
        )
    check_loader(loader)
    if state.global_step and trainer.args.ignore_data_skip:
        raise refused("ignore_data_skip: a run that is resumed goes over the same blocks again; set it False")


def check_lightning_run(trainer: Any, task: Any) -> int | None:
    """Refuse a run of Lightning's that has no such certificate; the steps that are planned, None where a stream tells.

    Raises:
        InputError: why not.
    """
    if trainer.world_size > 1:
        raise _several(trainer.world_size)
    if trainer.global_step:
        raise refused(
            f"a run that is resumed at step {trainer.global_step} goes over blocks again in Lightning; begin anew"
        )
    if not task.automatic_optimization:
        raise refused("manual optimisation: when a batch is trained on is not known; use the automatic one")
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader):
        raise refused(f"batches come from a {type(loader).__name__}: expected one DataLoader")
    streamed = isinstance(loader.dataset, IterableDataset)
    if streamed:
        _check_workers("num_workers", loader.num_workers)
    check_loader(loader)
    batches, most = trainer.num_training_batches, trainer.max_steps
    steps = math.inf if math.isinf(batches) else math.ceil(batches / trainer.accumulate_grad_batches)
    if trainer.max_epochs != 1 and (most < 0 or (most > steps)):
        name = f"max_epochs={trainer.max_epochs}" if most < 0 else f"max_steps={most} of {steps} in an epoch"
        raise _second_epoch(name)
    planned = min(steps, most) if most >= 0 else steps
    return None if math.isinf(planned) else int(planned)


def check_loader(loader: Any) -> None:
    """Refuse batches that do not come in the data set's own order; that of an iterable one is its own.

    Raises:
        InputError: a sampler of another order, or of one that is not known.
    """
    if isinstance(loader.dataset, IterableDataset):
        return
    sampler = loader.batch_sampler
    while getattr(sampler, "batch_sampler", None) is not None:  # accelerate's, and what skips batches of a resume
        sampler = sampler.batch_sampler
    if sampler is not None and type(sampler) is not BatchSampler:
        raise refused(f"batches come from a {type(sampler).__name__}, whose order is not known")
    order = loader.sampler if sampler is None else sampler.sampler
    if not isinstance(order, SequentialSampler):
        raise refused(f"blocks come from a {type(order).__name__}: they have to come in the text's order")


def _several(devices: int) -> InputError:
    return refused(f"{devices} devices share a step's blocks: train on one")


def _second_epoch(setting: str) -> InputError:
    return refused(f"{setting}: in a second epoch blocks are scored by weights that saw them; train for one")


def _check_workers(name: str, workers: int) -> None:
    if workers > 1:
        raise refused(f"{name}={workers}: each may bring the same blocks of an iterable data set; use 1 or 0")
