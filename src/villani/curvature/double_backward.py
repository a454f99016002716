"""Whether a model's own backward passes have the right derivative, before Hessian products are made of them.

A `torch.autograd.Function` may give the right gradient and differentiate to something else, because it saves numbers
that its graph knows nothing of. Operations of ATen are taken at their word; only where a loss has such a function is
a product held against that of the traced graph, in which ATen's operations stand in its place.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import BackwardCFunction

from villani.errors import InputError, out_of_memory
from villani.objective.graph import trace_loss
from villani.objective.objective import Batch, Objective
from villani.objective.trial import uncompiled

TOLERANCE = 1e-2  # of a tensor's share of Hv, or of a hundredth of Hv: float32 rounds to 10⁻⁵ of it
_FLOOR = 1e-2
_STIR = 0.1  # of ‖θ‖: away from zeros, which would hide what is multiplied by them


def check_double_backward(objective: Objective) -> None:
    """Refuse Hessian products by autograd where the model's own backward does not differentiate as its loss does.

    Once for an objective, on its first batch; where no backward is the model's own this takes one row's forward.

    Raises:
        InputError: products differ, or the loss cannot be traced, so that nobody knows.
    """
    if objective.doubly_checked or objective.streamed:
        return
    with uncompiled(), objective.evaluating():
        batch = next(objective.batches(0))
        one = batch.rows(0, 1) if isinstance(batch, Batch) else batch
        name = own_backward(objective.forward(one).loss)
        if name is not None:
            _check(objective, batch, name)
    objective.doubly_checked = True


def own_backward(loss: torch.Tensor) -> str | None:
    """The name of the first function in the graph of a loss whose backward pass is not torch's, if there is one."""
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, BackwardCFunction) or "CppNode" in node.name():
            return node.name().removesuffix("Backward")
        waiting += [following for following, _ in node.next_functions]
    return None


def _check(objective: Objective, batch: Any, name: str) -> None:
    tensors, model = objective.parameters.tensors, type(objective.model).__name__
    instead = "use trace='taylor' with blocks='tensor' or shares=0, or products='finite-differences'"
    generator = torch.Generator().manual_seed(0)
    vector = [torch.randn(t.shape, generator=generator, dtype=torch.float32).to(t) for t in tensors]
    away = [_STIR * v * float(t.detach().norm() / v.norm().clamp(min=1)) for v, t in zip(vector, tensors, strict=True)]
    try:
        graph = trace_loss(objective, batch)
    except InputError as error:
        raise InputError(
            f"{model} has a backward pass of its own ({name}), whose derivative cannot be checked since "
            f"{error}: use products='finite-differences'"
        ) from error
    with objective.displaced(away, 1.0):
        try:
            own = _product(objective.forward(batch).loss, tensors, vector)
        except Exception as error:  # one that cannot be differentiated twice says so where products are made
            if out_of_memory(error) or isinstance(error, torch.OutOfMemoryError):
                raise
            return
        leaves = [t.detach().requires_grad_() for t in tensors]
        expected = _product(graph.run(leaves), leaves, vector)
    whole = float(sum(e.double().square().sum() for e in expected)) ** 0.5
    shares = [float((a - b).norm()) / max(float(b.norm()), _FLOOR * whole) for a, b in zip(own, expected, strict=True)
              if whole > 0]  # fmt: skip
    if any(not share <= TOLERANCE for share in shares):
        worst = max(range(len(shares)), key=lambda i: shares[i])
        raise InputError(
            f"{model} has a backward pass of its own ({name}) whose derivative is wrong: Hv is off by "
            f"{shares[worst]:.2g} of itself in {objective.parameters.parameters[worst].name}; {instead}"
        )


def _product(
    loss: torch.Tensor, tensors: Sequence[torch.Tensor], vector: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    first = torch.autograd.grad(loss, tensors, create_graph=True, allow_unused=True, materialize_grads=True)
    slope = torch.stack([(g * v).sum() for g, v in zip(first, vector, strict=True)]).sum()
    if not slope.requires_grad:  # the loss is linear in θ
        return tuple(map(torch.zeros_like, tensors))
    return torch.autograd.grad(slope, tensors, allow_unused=True, materialize_grads=True)
