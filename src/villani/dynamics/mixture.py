"""A mixture of weights that one pass went through: the mean of their probabilities, THEORY.md §5 (c″).

ln is concave, so that the mixture's loss on any document is at most the mean of the losses of its members (Jensen).
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from villani.dynamics.chain import label_probabilities
from villani.errors import InputError
from villani.objective.evaluation import evaluating
from villani.objective.objective import IGNORED
from villani.statistics import Array
from villani.theory.constants import Smoothing
from villani.work import foreign
from villani.work.ledger import write_atomically
from villani.work.stretches import checksum, read_state, write_state

FILE = "mixture.json"
_REMEDY = "give the mixture folder of a `villani certify --iid-documents` run"

Checksum = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class MixtureContent(BaseModel):
    """What `mixture.json` holds: all but the weights."""

    model_config = ConfigDict(extra="forbid", strict=True)

    alpha: float = Field(gt=0, lt=1, description="prediction smoothing, that of the certificate")
    vocabulary: int = Field(ge=2, description="V of the smoothing")
    shares: list[float] = Field(
        min_length=1, description="of the members, in sum 1: of the documents each was scored on"
    )
    checksums: list[Checksum] = Field(description="sha256 over those of the members' files")
    dtype: Literal["float32", "float64"] = Field(description="of the weights, and of the arithmetic")
    names: list[str] = Field(description="of the tensors in each file, in their order")
    certified: float = Field(description="risk on a new document, nats per token")
    delta: float = Field(gt=0, lt=1)
    documents: int = Field(ge=1, description="n, that the certificate is from")


def write_member(folder: Path, index: int, model: nn.Module) -> Array:
    """The present weights of a model as a member; (32,) bytes, the checksum."""
    write_state(_member(folder, index), list(model.parameters()))
    return checksum(_member(folder, index))


def write_mixture(folder: Path, content: MixtureContent) -> None:
    """What makes members a mixture; last, when all is known.

    Raises:
        InputError: a member's file is gone.
    """
    for index in range(len(content.shares)):
        if not _member(folder, index).is_file():
            raise InputError(f"{_member(folder, index)}: the iterate is not there any more; use another --run")
    write_atomically(folder / FILE, content.model_dump_json(indent=1) + "\n")


def mix(logs: Iterable[ArrayLike], shares: Sequence[float], smoothing: Smoothing) -> Array:
    """ln of the mean of smoothed probabilities, from ln p of every member, each (m,)."""
    alpha, floor = smoothing.alpha, smoothing.alpha / smoothing.vocabulary
    pairs = zip(logs, shares, strict=True)
    return np.asarray(np.log(sum(share * ((1 - alpha) * np.exp(np.asarray(one)) + floor) for one, share in pairs)))


class Mixture:
    """Predicts with the mean of the probabilities of a pass's iterates, smoothed as they were certified.

        mixture = villani.Mixture("config:gpt-neo-125m?layers=2&width=64", "runs/…/mixture-0")
        logs = mixture.log_probabilities(ids)  # (B, T − 1)

    Its risk on a new document is at most `certified` with probability 1 − δ over the documents of the run, if these and
    the new one are independent draws of one law, cut into blocks as the run cut them; nothing here can check that.

    Args:
        model: of the same shape, whose own weights are left alone and do not matter; or what `load_model` takes.
        folder: `mixture-…` in the folder of a run.

    Attributes:
        alpha: prediction smoothing: p is (1 − α)·mean + α/V.
        shares: (K,) weights of the members, in sum 1.
        certified: the certified risk of a new document: its mean nats per token.
        delta: δ of that.
        documents: n, that it is from.

    Raises:
        InputError: no mixture there, a file that is not the run's, or another model.
    """

    def __init__(self, model: nn.Module | str, folder: str | Path) -> None:
        self._folder = Path(folder)
        path = self._folder / FILE
        self._content = content = foreign.validated(MixtureContent, foreign.read_json(path, _REMEDY), path, _REMEDY)
        if (
            len(content.checksums) != len(content.shares)
            or min(content.shares) < 0
            or abs(sum(content.shares) - 1) > 1e-9
        ):
            raise InputError(f"{path}: shares and checksums of members do not go together; {_REMEDY}")
        if isinstance(model, str):
            from villani.inputs.models import load_model

            model = load_model(model, dtype=getattr(torch, content.dtype)).model
        own = [name for name, _ in model.named_parameters()]
        if own != content.names:
            raise InputError(
                f"{path}: the mixture has {len(content.names)} tensors, and the model {len(own)} or others by name; "
                "give the model that the run was of"
            )
        if any(p.dtype != getattr(torch, content.dtype) for p in model.parameters()):
            raise InputError(f"{path}: the mixture's weights are {content.dtype}, and the model's are not; convert it")
        self._model = model
        find: Any = getattr(model, "get_input_embeddings", None)
        self._known = min(content.vocabulary, int(find().num_embeddings) if find else content.vocabulary)
        self.alpha, self.shares = content.alpha, list(content.shares)
        self.certified, self.delta, self.documents = content.certified, content.delta, content.documents

    def __len__(self) -> int:
        """K, members."""
        return len(self.shares)

    def log_probabilities(self, ids: ArrayLike, labels: ArrayLike | None = None, *, micro_tokens: int = 4096) -> Array:
        """ln p of the tokens of a batch, each given those before it in its row; members are loaded one at a time.

        Args:
            ids: (B, T) token ids, rows of a document as the run cut it, padded on the right.
            labels: (B, T), −100 where nothing is predicted; `ids` by default.
            micro_tokens: tokens in one forward pass at most.

        Returns:
            (B, T − 1) float64: of tokens 1 to T − 1 of each row, NaN where nothing is predicted.

        Raises:
            InputError: not such a batch; a member's file that is gone or was changed.
        """
        tokens = self._batch("ids", ids)
        targets = tokens if labels is None else self._batch("labels", labels)
        if targets.shape != tokens.shape:
            raise InputError(f"labels of shape {tuple(targets.shape)}: expected {tuple(tokens.shape)}, that of ids")
        wrong = (targets != IGNORED) & (targets != tokens)
        if bool(wrong[:, 1:].any()):
            raise InputError("labels: expected the ids themselves, or −100 where nothing is predicted")
        wanted = (targets[:, 1:] != IGNORED).numpy()
        smoothing = Smoothing(self._content.vocabulary, self.alpha)
        out = np.full(wanted.shape, np.nan)
        if wanted.any():
            out[wanted] = mix(self._scores(tokens, targets, micro_tokens), self.shares, smoothing)
        return out

    def loss(self, ids: ArrayLike, labels: ArrayLike | None = None) -> float:
        """Mean nats per predicted token; of the rows of one document, what the certificate is about.

        Raises:
            InputError: as `log_probabilities`, or nothing is predicted.
        """
        logs = self.log_probabilities(ids, labels)
        if np.isnan(logs).all():
            raise InputError("nothing is predicted in this batch: give labels that are not all −100")
        return -float(np.nanmean(logs))

    def _batch(self, name: str, values: ArrayLike) -> torch.Tensor:
        tokens = torch.as_tensor(values)
        if tokens.dim() != 2 or tokens.shape[1] < 2 or tokens.dtype not in (torch.int64, torch.int32):
            raise InputError(
                f"{name} of shape {tuple(tokens.shape)}, {tokens.dtype}: expected whole numbers (B, T), T ≥ 2"
            )
        least = IGNORED if name == "labels" else 0
        if tokens.numel() and not least <= int(tokens.min()) <= int(tokens.max()) < self._known:
            raise InputError(f"{name} from {int(tokens.min())} to {int(tokens.max())}: the model knows {self._known}")
        return tokens.long().cpu()

    def _scores(self, ids: torch.Tensor, labels: torch.Tensor, micro_tokens: int) -> Iterator[Array]:
        """(m,) ln p of the predicted tokens under every member."""
        own = list(self._model.parameters())
        before = [tensor.detach().clone() for tensor in own]
        try:
            for index, expected in enumerate(self._content.checksums):
                read_state(_member(self._folder, index), own, np.frombuffer(bytes.fromhex(expected), dtype=np.uint8))
                with evaluating(self._model, own[0].device, fused=True):
                    yield label_probabilities(self._model, ids, labels, micro_tokens=micro_tokens)[0]
        finally:
            with torch.no_grad():
                for tensor, value in zip(own, before, strict=True):
                    tensor.copy_(value)


def _member(folder: Path, index: int) -> Path:
    return folder / f"iterate-{index}.safetensors"
