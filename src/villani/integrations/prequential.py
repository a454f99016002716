"""The prequential certificate of a Trainer's run: every batch scored by the weights from before its step.

The scores are those of the training step's own forward pass, THEORY.md §5 (c″): where its loss is a cross-entropy, the
log-probabilities lie in the graph that its backward pass is going to use, and are read there.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import BatchSampler, IterableDataset, SequentialSampler
from transformers import Trainer

from villani.dynamics.certificate import Moments, token_bound
from villani.errors import InputError, check_whole
from villani.objective.objective import IGNORED
from villani.statistics import Status
from villani.theory.constants import Smoothing

ALPHAS = (0.01, 0.1)  # fixed beforehand, both paid for
FILE = "certificate.json"
_ROWS = 16  # whose exponentials stay in a cache
_PREDICTOR = (
    "the weights from before each step on the blocks of that step, with dropout as the step drew it, on average over "
    "the epoch"
)
_HYPOTHESES = (
    "blocks in the text's order, each scored before it is trained on, and once; the weights to begin with never saw "
    "them; settings fixed before the text; whether a token is predicted (a label of −100) is settled by those before it"
)
log = logging.getLogger("villani")


@dataclass(frozen=True)
class RunCertificate:
    """A certified risk of a run's iterates, nats per token: empirical + excess.

    Attributes:
        value: the bound.
        empirical: smoothed loss of the blocks before they were trained on.
        excess: what the bound adds.
        delta: δ in all, for all α and candidates.
        candidates: settings that these were chosen from; δ is divided by them.
        alpha: prediction smoothing of the best bound.
        tokens: m.
        vocabulary: V; guessing has a risk of ln V.
        steps: of the optimiser.
        bound: linear | Bernstein.
        choice: β or t, from a grid that is paid for.
        predictor: whose risk it is: not that of the last weights.
        about: what the risk is the mean over.
        hypotheses: what has to hold.
        status: certified.
    """

    value: float
    empirical: float
    excess: float
    delta: float
    candidates: int
    alpha: float
    tokens: int
    vocabulary: int
    steps: int
    bound: str
    choice: float | None
    predictor: str
    about: str
    hypotheses: str
    status: Status

    def write(self, folder: str | Path) -> None:
        """To `certificate.json` in a folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / FILE).write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", "utf-8")


class RunScores:
    """Adds up what a Trainer's steps say of their batches before they are trained on.

    Args:
        trainer: whose training it is.
        delta: δ of the certificate.
        candidates: settings that the run's were chosen from; δ is divided by them.

    Attributes:
        certificate: at the end of a run; None before, and where a hypothesis failed.
        refusal: the hypothesis that failed; empty where none did.

    Raises:
        InputError: δ or candidates out of range; settings under which no run has such a certificate.
    """

    def __init__(self, trainer: Any, *, delta: float = 0.05, candidates: int = 1) -> None:
        if not 0 < delta < 1:
            raise InputError(f"delta={delta:g}: expected a number between 0 and 1")
        check_whole(1, candidates=candidates)
        self.trainer, self.delta, self.candidates = trainer, float(delta), int(candidates)
        self.certificate: RunCertificate | None = None
        self.refusal = ""
        self._handle: Any = None
        self._begun = False
        self._sums: torch.Tensor | None = None  # (A, 2) Σ ℓ and Σ ℓ² at every α, float64, where the model is
        self._counts = torch.zeros(3, dtype=torch.int64)  # tokens; labels that are no next tokens; rows padded before
        self._vocabulary = self._epochs = self._forwards = self._scored = 0
        self._check_settings()

    def _check_settings(self) -> None:
        trainer, args = self.trainer, self.trainer.args
        if args.world_size > 1 or args.n_gpu > 1:
            raise _refused(f"{max(args.world_size, args.n_gpu)} devices share a step's blocks: train on one")
        if args.max_steps <= 0 and args.num_train_epochs > 1:
            raise _refused(
                f"num_train_epochs={args.num_train_epochs:g}: in a second epoch blocks are scored by weights that saw "
                "them; train for one"
            )
        own = [getattr(type(trainer), name) is getattr(Trainer, name) for name in _LOADING]
        sized = not isinstance(trainer.train_dataset, IterableDataset)
        if not sized and args.dataloader_num_workers > 1:
            raise _refused(
                f"dataloader_num_workers={args.dataloader_num_workers}: each may bring the same blocks of an iterable "
                "data set; use 1 or 0"
            )
        if all(own) and sized and args.train_sampling_strategy != "sequential":
            raise _refused(
                f"train_sampling_strategy={args.train_sampling_strategy!r}: blocks have to come in the text's order; "
                "set 'sequential'"
            )
        if args.label_smoothing_factor or trainer.compute_loss_func is not None:
            name = "label_smoothing_factor" if args.label_smoothing_factor else "compute_loss_func"
            raise _refused(f"{name} is set, and keeps the labels from the model, where blocks are scored; unset it")

    def start(self, model: nn.Module, state: Any, loader: Any, stored: Mapping[str, Any] | None) -> None:
        """Training begins, or goes on.

        Args:
            model: whose forward pass the steps make, the outermost.
            state: of the Trainer.
            loader: of its batches.
            stored: of `state_dict`, where the run goes on.

        Raises:
            InputError: a hypothesis that fails already.
        """
        if self._begun and not state.global_step:
            raise _refused("the weights were trained before, on this text for all that is known; start from a new run")
        self._begun = True
        if state.is_hyper_param_search:
            raise _refused("a search for settings trains on the text many times; fix the settings first")
        if state.num_train_epochs > 1 and not isinstance(loader.dataset, IterableDataset):
            raise _refused(
                f"max_steps={state.max_steps} is more than one epoch: in a second one blocks are scored by weights "
                "that saw them"
            )
        _check_order(loader)
        device = next(model.parameters()).device
        self._sums = torch.zeros(len(ALPHAS), 2, dtype=torch.float64, device=device)
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)
        self._epochs = self._forwards = self._scored = 0
        if state.global_step:
            if self.trainer.args.ignore_data_skip:
                raise _refused("ignore_data_skip: a run that is resumed goes over the same blocks again; set it False")
            if not stored or stored["steps"] != state.global_step:
                raise _refused(f"the {state.global_step} steps before this resume were not scored; begin anew")
            self._sums += torch.tensor(stored["sums"], dtype=torch.float64, device=device)
            self._counts += torch.tensor(stored["counts"], device=device)
            self._vocabulary, self.refusal = stored["vocabulary"], stored["refusal"]
            self._scored = stored["steps"]
        self._stop()  # a run before may have ended in an exception
        self._handle = model.register_forward_hook(self._listen, with_kwargs=True)

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        sums = [] if self._sums is None else self._sums.tolist()
        return {
            "steps": self._scored, "sums": sums, "counts": self._counts.tolist(), "vocabulary": self._vocabulary,
            "refusal": self.refusal,
        }  # fmt: skip

    def epoch(self) -> None:
        """An epoch begins."""
        self._epochs += 1
        if self._epochs > 1:
            self._refuse("a second epoch began, in which blocks are scored by weights that saw them")

    def batch(self, step: int | None = None) -> None:
        """A batch of a step is over; with `step`, the number of steps that are over, it was the last of its step."""
        if self._forwards != 1:
            self._refuse(f"{self._forwards} forward passes over a batch in training: expected one, that scores it")
        self._forwards = 0
        if step is not None:
            self._scored = step

    def finish(self, state: Any) -> RunCertificate | None:
        """Training is over: the certificate, or None and a line in the log that says why."""
        self._stop()
        tokens, other, padded = (int(value) for value in self._counts)
        if state.global_step < state.max_steps:
            self._refuse(f"training stopped at step {state.global_step} of {state.max_steps}, so that m was not fixed")
        elif not tokens:
            self._refuse("no token was scored")
        elif other:
            self._refuse(f"{other} labels are not the next tokens of their blocks")
        elif padded:
            self._refuse(f"{padded} rows are padded on the left, which tells how many tokens are to come")
        elif self._sums is None or not bool(torch.isfinite(self._sums).all()):
            self._refuse("a score was not finite: training diverged")
        if not self.refusal:
            self.certificate = self._certify(tokens, state.global_step)
        else:
            log.warning("no prequential certificate: %s", self.refusal)
        return self.certificate

    def _certify(self, tokens: int, steps: int) -> RunCertificate:
        assert self._sums is not None
        level = self.delta / self.candidates / len(ALPHAS)
        bounds = []
        for alpha, (one, two) in zip(ALPHAS, (self._sums / tokens).tolist(), strict=True):
            smoothing = Smoothing(self._vocabulary, alpha)
            bounds.append((token_bound(Moments(smoothing, one, two), tokens, 0.0, level), alpha))
        bound, alpha = min(bounds, key=lambda pair: pair[0].value)
        return RunCertificate(
            bound.value, bound.empirical, bound.excess, self.delta, self.candidates, alpha, tokens, self._vocabulary,
            steps, bound.name, bound.choice, _PREDICTOR, bound.about, f"{_HYPOTHESES}; {bound.hypotheses}",
            bound.status,
        )  # fmt: skip

    def _stop(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _refuse(self, why: str) -> None:
        self.refusal = self.refusal or why

    def _listen(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if not (module.training and torch.is_grad_enabled()) or self.refusal:
            return  # an evaluation, or nothing left to score
        self._forwards += 1
        try:
            self._note(args, kwargs, output)
        except Exception as error:  # whatever it is, the run is worth more
            self._refuse(f"a batch could not be scored: {type(error).__name__}: {str(error).splitlines()[0]}")

    @torch.no_grad()
    def _note(self, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        ids, labels, mask = (kwargs.get(name) for name in _INPUTS)
        if args or ids is None or labels is None:
            self._refuse("the model was not called with input_ids and labels by name")
            return
        if getattr(output, "logits", None) is None:
            self._refuse("the model gives no logits, as with a fused loss: switch that off")
            return
        if mask is not None and mask.dim() != 2:
            self._refuse(f"an attention_mask of {mask.dim()} dimensions: expected (B, T)")
            return
        more = [name for name, value in kwargs.items() if isinstance(value, torch.Tensor) and name not in _KNOWN]
        if more:
            self._refuse(f"{', '.join(more)} given to the model: expected blocks of token ids and no more")
            return
        targets = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)  # (B, T)
        wanted = targets != IGNORED
        logs = label_logs(output, targets)[wanted.flatten()].double()  # (n,)
        following = nn.functional.pad(ids[:, 1:], (0, 1), value=IGNORED)
        counts = [wanted.sum(), (wanted & (targets != following)).sum()]
        left = torch.zeros((), device=ids.device) if mask is None else (mask[:, 1:] > mask[:, :-1]).any(dim=1).sum()
        self._counts += torch.stack([*counts, left.to(counts[0])]).to(self._counts.device)
        size = output.logits.shape[-1]
        if self._vocabulary not in (0, size):
            self._refuse(f"logits of {size} tokens, after {self._vocabulary} before")
        self._vocabulary = size
        assert self._sums is not None
        for row, alpha in zip(self._sums, ALPHAS, strict=True):
            losses = -torch.log((1 - alpha) * logs.exp() + alpha / size)
            row += torch.stack([losses.sum(), losses.square().sum()]).to(row.device)


_INPUTS = ("input_ids", "labels", "attention_mask")
_KNOWN = {*_INPUTS, "num_items_in_batch"}
_LOADING = ("get_train_dataloader", "_get_train_sampler")


def label_logs(output: Any, targets: torch.Tensor) -> torch.Tensor:
    """ln p of every target (B·T,) of a model's output, of no meaning where the target is −100.

    Read from the graph of its loss, where that is the cross-entropy of these very targets, else made of its logits.

    Args:
        output: with `logits` (B, T, V), and `loss` or None.
        targets: (B, T) int64, −100 where not predicted.
    """
    flat = targets.flatten()
    places = flat.clamp(min=0)[:, None]
    table = _softmax_of(getattr(output, "loss", None), flat)
    if table is not None:
        return table.gather(1, places)[:, 0]
    logits = output.logits.flatten(0, 1)  # (B·T, V)
    if logits.shape[0] != len(flat):
        raise InputError(f"logits for {logits.shape[0]} places, of {len(flat)} tokens")
    parts = []
    for piece, place in zip(logits.split(_ROWS), places.split(_ROWS), strict=True):
        part = piece.to(torch.promote_types(piece.dtype, torch.float32))
        parts.append(part.gather(1, place)[:, 0] - torch.logsumexp(part, 1))
    return torch.cat(parts)


def _softmax_of(loss: Any, targets: torch.Tensor) -> torch.Tensor | None:
    """(B·T, V) ln p that a loss was made of, if these were its targets."""
    node = getattr(loss, "grad_fn", None)
    for _ in range(4):  # a loss that is divided by a count, or scaled
        if node is None or type(node).__name__ == "NllLossBackward0":
            break
        node = next((parent for parent, _ in node.next_functions if parent is not None), None)
    if type(node).__name__ != "NllLossBackward0":
        return None
    own: Any = node
    table: torch.Tensor = own._saved_self
    seen: torch.Tensor = own._saved_target
    return table if seen.shape == targets.shape and torch.equal(seen, targets.to(seen.device)) else None


def _check_order(loader: Any) -> None:
    """Refuse batches that do not come in the data set's own order; that of an iterable one is its own."""
    if isinstance(loader.dataset, IterableDataset):
        return
    sampler = loader.batch_sampler
    while getattr(sampler, "batch_sampler", None) is not None:  # accelerate's, and what skips batches of a resume
        sampler = sampler.batch_sampler
    if sampler is not None and type(sampler) is not BatchSampler:
        raise _refused(f"batches come from a {type(sampler).__name__}, whose order is not known")
    order = loader.sampler if sampler is None else sampler.sampler
    if not isinstance(order, SequentialSampler):
        raise _refused(f"blocks come from a {type(order).__name__}: they have to come in the text's order")


def _refused(why: str) -> InputError:
    return InputError(f"certificate='prequential': {why}")
