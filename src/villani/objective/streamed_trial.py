"""What `objective/trial.py` asks of a forward pass, of a model whose weights are streamed.

The traced graph answers most of it: it shows whether anything is random or written to. Causality is tried out as
there, with rows that go through the graph side by side, so that each tensor is read once for all of them.
"""

from functools import partial
from typing import Any

import torch
from torch import nn

from villani.errors import InputError
from villani.objective.batches import IGNORED, Batch, takes
from villani.objective.export import export
from villani.objective.graph import LogitGraph, LossGraph, place, trace_logits
from villani.objective.interpret import Evaluation, Placed, interpret, values_of
from villani.objective.objective import Objective
from villani.objective.trial import (
    check_before,
    check_max_norm,
    check_shift,
    fullest_row,
    labelled_row,
    other_rows,
    to_unit_gain,
    was_tried,
)


def check_streamed(objective: Objective) -> None:
    """Refuse a forward pass that is no function of θ, or sees what it is to predict; reads θ once.

    Raises:
        InputError: as of `check_forward`.
    """
    if was_tried():
        return
    check_max_norm(objective)
    _check_labels(objective)
    row = fullest_row(objective.groups[0])
    if row is None:
        return
    row = row.to(objective.device)
    graph = trace_logits(objective, row.plain())
    name = type(objective.model).__name__
    for node in graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise InputError(f"{name} is random in eval mode ({place(node)}): fix its random numbers")
    wanted = row.labels[0, 1:] != IGNORED
    others = list(other_rows(objective, row, graph.logits.meta["val"].shape[-1]))
    weights = objective.parameters.weights
    assert weights is not None
    gains = {p.name: partial(_gained, index=i) for i, p in enumerate(objective.parameters.parameters)}
    with weights.changing(gains), objective.evaluating(), torch.no_grad():
        logits = [z[0, :-1][wanted] for z in _side_by_side(objective, graph, [row, *(other for _, other in others)])]
    if bool(torch.isfinite(logits[0]).all()):
        for (j, _), moved in zip(others, logits[1:], strict=True):
            check_before(row, j, logits[0], moved, name)


def _gained(tensor: torch.Tensor, index: int) -> torch.Tensor:
    return to_unit_gain(tensor.clone(), torch.Generator().manual_seed(index))


def _side_by_side(objective: Objective, graph: LogitGraph, rows: list[Batch]) -> list[torch.Tensor]:
    """Logits (1, T, V) of every row."""
    values = objective.parameters.values
    runs = [Evaluation(Placed(graph.constants | graph.placed(row), graph.parameters, values)) for row in rows]
    logits: list[Any] = []
    for at in zip(*(interpret(graph, run) for run in runs), strict=True):
        if at[0][0] is graph.logits:
            logits = [value for _, value in at]
    return logits


class _OwnLoss(nn.Module):
    """The loss that a model computes itself from labels."""

    def __init__(self, objective: Objective, row: Batch) -> None:
        super().__init__()
        self.model = objective.model
        self._objective, self._row = objective, row

    def forward(self, labels: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        """A scalar."""
        given = self._row.holding(inputs).inputs
        loss: torch.Tensor = self._objective.model(**given, labels=labels, **self._objective.options).loss
        return loss


def _check_labels(objective: Objective) -> None:
    """As of `check_forward`: refuse labels made for a model whose own loss does not shift them; ids are clear."""
    if "labels" not in takes(objective.model)[0]:
        return
    row = labelled_row(objective)
    if row is None:
        return
    try:
        inputs = (row.labels.clone(), *row.inputs.values())
        nodes, parameters, constants, users, loss = export(objective, _OwnLoss(objective, row), inputs)
    except InputError:  # it has no loss of its own for them
        return
    placed = Placed({**constants, **dict(zip(users, inputs, strict=True))}, parameters, objective.parameters.values)
    graph = LossGraph(nodes, parameters, constants, {}, loss)
    with objective.evaluating(), torch.no_grad():
        own = float(values_of(graph, Evaluation(placed), {loss})[loss])
        logits = next(iter(_side_by_side(objective, trace_logits(objective, row.plain()), [row])))
    check_shift(row, own, logits, type(objective.model).__name__)
