"""The model of a training run as measurements see it, however it lies over processes: lent out, tried out, measured.

A plain model is measured by this process alone. Copies of one model (DistributedDataParallel) share the groups: each
process measures some of them on its own copy, and all get the same bits as one process would. Parts of one model
(`fully_shard`) are measured together; see `integrations/sharded.py`.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from villani.curvature.ways import TraceMethod
from villani.errors import InputError
from villani.integrations.layout import layout_of
from villani.integrations.passes import Passes
from villani.integrations.processes import one_line
from villani.integrations.sharded import GRADIENTS, ShardedObjective
from villani.integrations.untouched import own_part, untouched
from villani.measurement.measure import measure
from villani.measurement.measurement import Measurement
from villani.objective.objective import Batch, LossFunction, Objective
from villani.objective.trial import already_tried
from villani.work.work import Work

DEAREST = 20  # forward passes that a probe of one group is taken to cost, before one was measured: 12 to 15 are usual


class RunModel:
    """A run's model and its probe groups.

    Args:
        model: as the run trains it.
        groups: as `Objective` takes them; the same in every process.
        probes: in each group.
        trace: see `measure`.
        loss_fn: see `Objective`.
        replicas: the DistributedDataParallel that the model is within, if it is not that itself.

    Attributes:
        model: to measure; within wrappers.
        processes: that train it together.
        tried: whether `try_out` was made; a forward pass is not tried out again at every measurement.

    Raises:
        InputError: see `layout_of`.
    """

    def __init__(
        self, model: nn.Module, groups: torch.Tensor | Sequence[Any], probes: int, trace: TraceMethod | None = None,
        loss_fn: LossFunction | None = None, replicas: Any = None,
    ) -> None:  # fmt: skip
        layout = self.layout = layout_of(model, replicas)
        self.groups, self._probes, self._trace, self._loss_fn = groups, probes, trace, loss_fn
        self.model, self.processes = layout.model, layout.processes
        self._passes = Passes(self.model, layout.processes) if layout.sharded else None
        self.tried = False

    @contextmanager
    def lent(self) -> Iterator[None]:
        """The model to measure, put back to the bit in the end; see `untouched`, `Passes.lent`. Fails in all alike."""
        with ExitStack() as stack:
            with self.processes.together():
                stack.enter_context(self._passes.lent() if self._passes else untouched(self.model))
            with self.processes.together():
                yield

    def objective(self, mask: str = "all", weight_decay: float = 0.0) -> Objective:
        """Made afresh, since a run may freeze and thaw parameters."""
        if self._passes:
            if self._trace not in (None, "hutchinson"):
                raise InputError(
                    f"trace={self._trace!r}: cut weights have first derivatives only: expected 'hutchinson', by finite "
                    "differences"
                )
            made = ShardedObjective(self.layout, list(self.groups), self._passes, weight_decay, mask, self._loss_fn)
            self.processes.ready()
            return made
        with already_tried() if self.tried else nullcontext():
            return Objective(self.model, self.groups, weight_decay, mask, loss_fn=self._loss_fn)

    def try_out(self, mask: str, settings: Sequence[Any]) -> None:
        """Refuse what can never be measured: tries every group's loss, and second derivatives of one row.

        Args:
            mask: of the decay.
            settings: what has to be the same in every process, as JSON can hold it.

        Raises:
            InputError: why; in every process.
        """
        try:
            with self.lent():
                self._agree(settings)
                objective = self.objective(mask)
                if isinstance(objective, ShardedObjective):
                    objective.try_out()
                else:
                    self._try_whole(objective)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"these groups cannot be measured with this model: {one_line(error)}") from None
        self.tried = True

    def trial(self) -> tuple[Callable[[], Any], float]:
        """Something short to time, and how many times as long a measurement is taken to be; inside `lent`."""
        objective = self.objective()
        if isinstance(objective, ShardedObjective):
            return partial(objective.gradient_sum, [0], fused=True), len(self.groups) * (1 + GRADIENTS * self._probes)
        return partial(objective.loss, 0), DEAREST * self._probes * -(-len(self.groups) // self.processes.size)

    def measured(self, objective: Objective, seed: int) -> Measurement:
        """The five statistics; inside `lent`. The same bits in every process."""
        if isinstance(objective, ShardedObjective):
            return objective.measured(self._probes, seed)
        return measure(objective, self._probes, seed, trace=self._trace, shares=0, work=Work(team=self.processes))

    def _try_whole(self, objective: Objective) -> None:
        with objective.evaluating():
            for group in range(len(objective.groups)):
                for piece in objective.batches(group):
                    objective.forward(piece)
        piece = next(objective.batches(0))
        if isinstance(piece, Batch):
            piece = next(row for i in range(len(piece.ids)) if (row := piece.rows(i, i + 1)).tokens)
        small = Objective(self.model, [piece], finite=True, loss_fn=self._loss_fn)
        measure(small, 2, 0, trace=self._trace, shares=0)

    def _agree(self, settings: Sequence[Any]) -> None:
        """Refuse processes that were not started alike: their statistics would not be of one F."""
        if self.processes.several:
            named = [(name, tuple(p.shape), str(p.dtype), p.requires_grad) for name, p in self.model.named_parameters()]
            whole = [own_part(p) for p in self.model.parameters() if own_part(p) is p]
            self.processes.agree(
                {
                    "parameters": _checksum([str(named)]), "groups": _checksum(self.groups), "settings": list(settings),
                    "values of what each has whole": _checksum(whole) if self._passes else "",
                }
            )  # fmt: skip


def _checksum(tree: Any) -> str:
    """Of the tensors and plain values in a tree; what else there is does not enter."""
    digest = hashlib.sha256()
    for leaf in tree_leaves(tree):
        if isinstance(leaf, torch.Tensor):
            digest.update(f"{tuple(leaf.shape)}{leaf.dtype}".encode())
            digest.update(leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(leaf, str | int | float | bool):
            digest.update(repr(leaf).encode())
    return digest.hexdigest()[:16]
