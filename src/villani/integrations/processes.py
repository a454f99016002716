"""The processes of one training run, which take every decision and every measurement together.

All talk goes over a gloo group of its own, beside the run's collectives: no message of the run is overtaken, and none
waits for a GPU. Every exchange carries what went wrong, so that an exception in one process is raised in all.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import distributed

from villani.errors import InputError
from villani.work.team import Message, Team

_PATIENCE = timedelta(days=30)  # a slow step, or a checkpoint of one process, is no failure
_TOLD = "told to all processes"


class Processes(Team):
    """A `Team` in which whatever goes wrong in one process is told to all, not input alone.

    Args:
        ranks: of the default process group; this process alone by default. Each of them makes one of these at the same
            point of the run.
    """

    def __init__(self, ranks: Sequence[int] = ()) -> None:
        self._group: Any = None
        if len(ranks) < 2:
            super().__init__()
            return
        self._group = distributed.new_group(  # the others of the world need not know
            sorted(ranks), backend="gloo", timeout=_PATIENCE, use_local_synchronization=True
        )
        rank = distributed.get_rank(self._group)
        super().__init__(rank, len(ranks), partial(_exchange, self._group))

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that all leave alike: what goes wrong in one is raised in all when they next exchange, as InputError.

        One block may be in another: others may be in an inner one when they hear, so that only what holds the outermost
        may catch.
        """
        if not self.several:
            yield
            return
        own: InputError | None = None
        try:
            yield
        except Exception as error:
            if _heard(error):
                raise
            own = InputError(f"process {self.rank}: {one_line(error)}")
            own.__cause__ = error
        self._without_errors(own)

    def agree(self, facts: Mapping[str, Any]) -> None:
        """See `Team.agree`."""
        try:
            super().agree(facts)
        except InputError as error:
            error.add_note(_TOLD)  # every process sees it
            raise

    def ready(self) -> None:
        """Go on where nothing went wrong anywhere; stands before collectives of the model's, which tell of nothing.

        Raises:
            InputError: what went wrong.
        """
        if self.several:
            self._without_errors(None)

    def gathered(self, own: np.ndarray) -> list[np.ndarray]:
        """Everybody's array, in order of rank."""
        return [np.asarray(arrays["own"]) for _, arrays in self._told((None, {"own": own}))]

    def summed(self, own: np.ndarray) -> np.ndarray:
        """The sum of everybody's array, added in order of rank: the same bits in every process."""
        if not self.several:
            return own
        total: np.ndarray = np.sum(self.gathered(own), axis=0)
        return total

    def added(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over processes of a long vector on the CPU, in place."""
        if self.several:
            self.ready()
            distributed.all_reduce(tensor, group=self._group)
        return tensor

    def _without_errors(self, own: InputError | None) -> None:
        """An exchange that tells nothing but what went wrong."""

        def outcome() -> Message:
            if own:
                raise own
            return None, {}

        for message in self._share(outcome):
            if isinstance(message, InputError):
                raise message

    def _share(self, work: Callable[[], Message]) -> list[Message | InputError]:
        heard = super()._share(work)
        for message in heard:
            if isinstance(message, InputError):
                message.add_note(_TOLD)
        return heard


def one_line(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text[:300]}"


def _exchange(group: Any, message: Message) -> list[Message]:
    heard: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(heard, message, group=group)
    return heard


def _heard(error: BaseException | None) -> bool:
    """Whether an error, or one that was being handled when it came, was told to all."""
    while error is not None and _TOLD not in getattr(error, "__notes__", ()):
        error = error.__context__
    return error is not None
