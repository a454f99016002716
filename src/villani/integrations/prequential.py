"""The prequential certificate of a training run: every batch scored by the weights from before its step.

The scores are those of the training step's own forward pass, THEORY.md §5 (c″), which a hook on the model listens to.
Whose loop it is does not matter here: the Trainer's and Lightning's callbacks tell of epochs, batches and steps.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from villani.dynamics.certificate import Moments, token_bound
from villani.errors import InputError, check_whole
from villani.integrations.figures import PREFIX, Figures
from villani.integrations.label_scores import label_logs
from villani.integrations.untouched import uncompiled, untouched
from villani.objective.objective import IGNORED, Objective
from villani.statistics import Status
from villani.theory.constants import Smoothing

ALPHAS = (0.01, 0.1)  # fixed beforehand, both paid for
FILE = "certificate.json"
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

    @property
    def figures(self) -> Figures:
        """What a logger is given."""
        return {
            PREFIX + "certificate": self.value, PREFIX + "certificate_empirical": self.empirical,
            PREFIX + "certificate_excess": self.excess, PREFIX + "certificate_tokens": self.tokens,
        }  # fmt: skip


class RunScores:
    """Adds up what a run's steps say of their batches before they are trained on.

    Args:
        delta: δ of the certificate.
        candidates: settings that the run's were chosen from; δ is divided by them.

    Attributes:
        certificate: at the end of a run; None before, and where a hypothesis failed.
        refusal: the hypothesis that failed; empty where none did.

    Raises:
        InputError: δ or candidates out of range.
    """

    def __init__(self, *, delta: float = 0.05, candidates: int = 1) -> None:
        if not 0 < delta < 1:
            raise InputError(f"delta={delta:g}: expected a number between 0 and 1")
        check_whole(1, candidates=candidates)
        self.delta, self.candidates = float(delta), int(candidates)
        self.certificate: RunCertificate | None = None
        self.refusal = ""
        self._handles: list[Any] = []
        self._begun = self._tried = False
        self._objection: InputError | None = None  # to the model
        self._sums: torch.Tensor | None = None  # (A, 2) Σ ℓ and Σ ℓ² at every α, float64, where the model is
        self._counts = torch.zeros(3, dtype=torch.int64)  # tokens; labels that are no next tokens; rows padded before
        self._vocabulary = self._epochs = self._forwards = self._scored = 0

    def start(self, model: nn.Module, *, done: int = 0, stored: Mapping[str, Any] | None = None) -> None:
        """Training begins, or goes on.

        Args:
            model: whose forward pass the steps make, the outermost.
            done: steps of the optimiser that were made before a resume.
            stored: of `state_dict`, where the run goes on.

        Raises:
            InputError: weights that were trained before, or a resume without its scores.
        """
        if self._begun and not done:
            raise refused("the weights were trained before, on this text for all that is known; start from a new run")
        self._begun, self._tried, self._objection = True, False, None
        device = next(model.parameters()).device
        self._sums = torch.zeros(len(ALPHAS), 2, dtype=torch.float64, device=device)
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)
        self._epochs = self._forwards = self._scored = 0
        if done:
            if not stored or stored["steps"] != done:
                raise refused(f"the {done} steps before this resume were not scored; begin anew")
            self._sums += torch.tensor(stored["sums"], dtype=torch.float64, device=device)
            self._counts += torch.tensor(stored["counts"], device=device)
            self._vocabulary, self.refusal = stored["vocabulary"], stored["refusal"]
            self._scored = stored["steps"]
        self.stop()  # a run before may have ended in an exception
        self._handles = [
            model.register_forward_pre_hook(self._try_out, with_kwargs=True),
            model.register_forward_hook(self._listen, with_kwargs=True),
        ]

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
            self.refuse("a second epoch began, in which blocks are scored by weights that saw them")

    def batch(self, step: int | None = None) -> None:
        """A batch of a step is over; with `step`, the number of steps that are over, it was the last of its step."""
        if self._forwards != 1:
            self.refuse(f"{self._forwards} forward passes over a batch in training: expected one, that scores it")
        self._forwards = 0
        if step is not None:
            self._scored = step

    def finish(self, done: int, planned: int | None) -> RunCertificate | None:
        """Training is over after `done` steps: the certificate, or None and a line in the log that says why.

        Where the end of a stream ended it, no number of steps was planned.
        """
        self.stop()
        tokens, other, padded = (int(value) for value in self._counts)
        if planned is not None and done < planned:
            self.refuse(f"training stopped at step {done} of {planned}, so that m was not fixed")
        elif not tokens:
            self.refuse("no token was scored")
        elif other:
            self.refuse(f"{other} labels are not the next tokens of their blocks")
        elif padded:
            self.refuse(f"{padded} rows are padded on the left, which tells how many tokens are to come")
        elif self._sums is None or not bool(torch.isfinite(self._sums).all()):
            self.refuse("a score was not finite: training diverged")
        if not self.refusal:
            self.certificate = self._certify(tokens, done)
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

    def stop(self) -> None:
        """Leave the model alone."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def refuse(self, why: str) -> None:
        """A hypothesis failed; the first one that did is what is told."""
        self.refusal = self.refusal or why

    def _try_out(self, module: nn.Module, _: Any, kwargs: dict[str, Any]) -> None:
        """Before the first batch, see whether the model is causal and its loss that of next tokens."""
        if self._tried or not (module.training and torch.is_grad_enabled()):
            return
        self._tried = True
        try:
            if kwargs.get("input_ids") is not None:  # else the batch is refused
                model = uncompiled(module)
                with untouched(model):
                    Objective(model, [dict.fromkeys(("input_ids", "labels"), kwargs["input_ids"][:1])])
        except InputError as error:
            self._objection = error

    def _listen(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if not (module.training and torch.is_grad_enabled()) or self.refusal:
            return  # an evaluation, or nothing left to score
        self._forwards += 1
        try:
            self._note(args, kwargs, output)
        except Exception as error:  # whatever it is, the run is worth more
            self.refuse(f"a batch could not be scored: {type(error).__name__}: {str(error).splitlines()[0]}")
        if self._objection is not None and not self.refusal:  # what the output tells comes first, and ends no run
            raise self._objection

    @torch.no_grad()
    def _note(self, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        ids, labels, mask = (kwargs.get(name) for name in _INPUTS)
        if args or ids is None or labels is None:
            self.refuse("the model was not called with input_ids and labels by name")
            return
        if getattr(output, "logits", None) is None:
            self.refuse("the model gives no logits, as with a fused loss: switch that off")
            return
        if mask is not None and mask.dim() != 2:
            self.refuse(f"an attention_mask of {mask.dim()} dimensions: expected (B, T)")
            return
        more = [name for name, value in kwargs.items() if isinstance(value, torch.Tensor) and name not in _KNOWN]
        if more:
            self.refuse(f"{', '.join(more)} given to the model: expected blocks of token ids and no more")
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
            self.refuse(f"logits of {size} tokens, after {self._vocabulary} before")
        self._vocabulary = size
        assert self._sums is not None
        for row, alpha in zip(self._sums, ALPHAS, strict=True):
            losses = -torch.log((1 - alpha) * logs.exp() + alpha / size)
            row += torch.stack([losses.sum(), losses.square().sum()]).to(row.device)


_INPUTS = ("input_ids", "labels", "attention_mask")
_KNOWN = {*_INPUTS, "num_items_in_batch"}


def check_request(
    groups: Any, temperature: float | None, schedule: Any, certificate: str | None, settings: Mapping[str, Any]
) -> None:
    """Refuse arguments of a callback that do not go together.

    Raises:
        InputError: which.
    """
    if certificate not in (None, "prequential"):
        raise InputError(f"certificate={certificate!r}: expected 'prequential', or None for none")
    if (groups is None) != (temperature is None) or (groups is None and (certificate is None or settings)):
        raise InputError("groups and temperature go together; without them give certificate='prequential' alone")
    if groups is None and schedule is not None:
        raise InputError("schedule: give groups and a temperature with it")


def refused(why: str) -> InputError:
    """That a run has no such certificate."""
    return InputError(f"certificate='prequential': {why}")
