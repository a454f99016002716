"""The traced ATen graph of a model's logits, or of a loss, with the source line of every operation.

Taylor mode reads the logits; the smoothness and coverage audits, and the search for symmetries, the loss.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from villani.errors import InputError
from villani.objective.batches import Batch
from villani.objective.export import Logits, Loss, export
from villani.objective.families import CAST, COPIED
from villani.objective.interpret import Evaluation, Placed, values_of
from villani.objective.objective import Objective

aten = torch.ops.aten
_PASSED_ON = {*COPIED, CAST}


@dataclass(frozen=True)
class Head:
    """The last linear map, from features to logits; where there is none, its features are the logits.

    Attributes:
        features: the node of its input, (B, T, D); of the logits, (B, T, V), where there is no head.
        weight: (V, D), an index in θ, or a tensor that does not move; None where there is no head.
        bias: (V,), an index in θ, or a tensor that does not move, or None.
        node: the linear map itself, if there is one.
        reason: why there is none, "" where there is one.
    """

    features: torch.fx.Node
    weight: int | torch.Tensor | None
    bias: int | torch.Tensor | None
    node: torch.fx.Node | None
    reason: str = ""


@dataclass(frozen=True)
class LogitGraph:
    """A model's forward pass for blocks of one shape.

    Attributes:
        nodes: in an order that can be executed; placeholders included.
        parameters: placeholder node → index of its tensor in θ.
        constants: placeholder node → buffer or constant tensor.
        inputs: the placeholders of what `Batch.inputs` holds, by name.
        logits: the node of the logits, (B, T, V).
        head: the last linear map.
    """

    nodes: tuple[torch.fx.Node, ...]
    parameters: dict[torch.fx.Node, int]
    constants: dict[torch.fx.Node, torch.Tensor]
    inputs: dict[str, torch.fx.Node]
    logits: torch.fx.Node
    head: Head

    @property
    def trunk(self) -> "LogitGraph":
        """The same up to the features, after whose last use of it a tensor of θ may go."""
        return replace(self, nodes=self.nodes[: self.nodes.index(self.head.features) + 1])

    def placed(self, batch: Batch) -> dict[torch.fx.Node, torch.Tensor]:
        """A batch's tensors by placeholder."""
        return {self.inputs[name]: tensor for name, tensor in batch.inputs.items()}


@dataclass(frozen=True)
class LossGraph:
    """The loss sum of one group's batch as a function of θ; `run` evaluates it.

    Attributes:
        nodes: in an order that can be executed; placeholders included.
        parameters: placeholder node → index of its tensor in θ; a tied tensor may have several, some without users.
        constants: placeholder node → buffer or constant tensor.
        inputs: placeholder node → the batch's tensor (labels, then `Batch.inputs`; or the tensors of a custom group).
        loss: the node of the loss, a scalar: what `Objective.forward(batch).loss` is.
    """

    nodes: tuple[torch.fx.Node, ...]
    parameters: dict[torch.fx.Node, int]
    constants: dict[torch.fx.Node, torch.Tensor]
    inputs: dict[torch.fx.Node, torch.Tensor]
    loss: torch.fx.Node

    def run(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The loss sum at θ = `tensors`, differentiable in them.

        With float64 tensors all of it is computed in float64, where the model would cast to float32 too; and with
        float32 tensors of a model in float64 all of it in float32. What the model detaches is not detached here: the
        derivative is that of the function computed.
        """
        loss: torch.Tensor = self.values(tensors, {self.loss})[self.loss]
        return loss

    def recast(self, tensors: Sequence[torch.Tensor]) -> torch.dtype | None:
        """What takes the place of float32 and float64 in the graph at θ = `tensors`; None where nothing does."""
        wide = tensors[0].dtype == torch.float64
        own = next((node.meta["val"].dtype for node in self.parameters if "val" in node.meta), tensors[0].dtype)
        return tensors[0].dtype if wide or own == torch.float64 else None

    def evaluation(self, tensors: Sequence[torch.Tensor]) -> Evaluation:
        """What computes at θ = `tensors`, as `run` does."""
        recast = self.recast(tensors)

        def fit(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(recast) if recast and tensor.is_floating_point() else tensor

        given = {n: fit(t) for n, t in (*self.constants.items(), *self.inputs.items())}
        return Evaluation(Placed(given, self.parameters, tensors), recast)

    def values(self, tensors: Sequence[torch.Tensor], wanted: Collection[torch.fx.Node]) -> dict[torch.fx.Node, Any]:
        """Values of some nodes at θ = `tensors`, as `run` computes them; others are dropped after their last use."""
        return values_of(self, self.evaluation(tensors), wanted)


def trace_logits(objective: Objective, batch: Batch) -> LogitGraph:
    """Trace the forward pass for blocks of this form; about a second, once for an objective.

    Raises:
        InputError: the model has a loss function of its own, or its forward cannot be exported.
    """
    if objective.loss_fn is not None:
        raise InputError("a custom loss_fn is not traced: use trace='gauss-newton' or 'hutchinson'")
    key = _key("logits", objective, batch)
    if key in objective.traced:
        return objective.traced[key]  # type: ignore[no-any-return]
    inputs = batch.inputs
    nodes, parameters, constants, users, logits = export(objective, Logits(objective, batch), tuple(inputs.values()))
    nodes, logits = _scale_features(nodes, logits)
    graph = objective.traced[key] = LogitGraph(
        nodes=nodes,
        parameters=parameters,
        constants=constants,
        inputs=dict(zip(inputs, users, strict=True)),
        logits=logits,
        head=_find_head(logits, {**constants, **parameters}),
    )
    return graph


def trace_loss(objective: Objective, batch: Any) -> LossGraph:
    """Trace the loss of one batch (of `objective.batches(group)`), language model or custom; about a second.

    The graph is that of these shapes, and of this batch as far as a custom loss looked at values that are no tensors. A
    language model's is made once for each shape.

    Raises:
        InputError: the model or the loss function cannot be exported, gives no scalar tensor, or has shapes that depend
            on data, as those of experts that take their tokens one after the other.
    """
    module = Loss(objective, batch)
    key = _key("loss", objective, batch) if isinstance(batch, Batch) and objective.loss_fn is None else None
    if key in objective.traced:
        known: LossGraph = objective.traced[key]
        return replace(known, inputs=dict(zip(known.inputs, module.inputs, strict=True)))
    nodes, parameters, constants, users, loss = export(objective, module, module.inputs)
    value = loss.meta.get("val") if isinstance(loss, torch.fx.Node) else loss
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or not isinstance(loss, torch.fx.Node):
        raise InputError("the loss cannot be traced: it is no tensor of one entry that an operation computed")
    if (loose := next(filter(_sized_by_data, nodes), None)) is not None:
        raise InputError(f"the loss cannot be traced: a shape depends on the tokens ({place(loose)})")
    graph = LossGraph(nodes, parameters, constants, dict(zip(users, module.inputs, strict=True)), loss)
    if key is not None:
        objective.traced[key] = graph
    return graph


def _sized_by_data(node: torch.fx.Node) -> bool:
    """Whether a value holds a tensor of a size that is not known before the graph is run."""
    tensors = [value for value in pytree.tree_leaves(node.meta.get("val")) if isinstance(value, torch.Tensor)]
    return any(isinstance(size, torch.SymInt) for tensor in tensors for size in tensor.shape)


def _key(what: str, objective: Objective, batch: Batch) -> tuple[Any, ...]:
    """What a language model's graph depends on, but for what is changed inside a module after it was traced."""
    tensors = objective.parameters.tensors
    return (
        what, batch.form, frozenset((t.dtype, t.device) for t in tensors), tuple(objective.model.named_modules()),
    )  # fmt: skip


def _scale_features(nodes: tuple[torch.fx.Node, ...], logits: Any) -> tuple[tuple[torch.fx.Node, ...], Any]:
    """Logits that are scaled by a number, s·Wh, as W(s·h): so that their head is a linear map."""
    node: Any = logits
    while node.target in _PASSED_ON:
        node = node.args[0]
    if node.target not in (aten.mul.Tensor, aten.div.Tensor) or not isinstance(node.args[1], int | float):
        return nodes, logits
    linear: Any = node.args[0]
    if linear.target is not aten.linear.default or len(linear.args) > 2 or len(linear.users) > 1:
        return nodes, logits
    graph, features = node.graph, linear.args[0]
    with graph.inserting_before(linear):
        scaled = graph.call_function(node.target, (features, node.args[1]))
    scaled.meta = {**node.meta, "val": features.meta["val"]}
    linear.replace_input_with(features, scaled)
    node.replace_all_uses_with(linear)
    graph.erase_node(node)
    return tuple(n for n in graph.nodes if n.op != "output"), linear if node is logits else logits


def headless(logits: torch.fx.Node, reason: str) -> Head:
    """Logits that are taken as they are, for a reason."""
    return Head(logits, None, None, None, reason)


def _find_head(logits: torch.fx.Node, tensors: Mapping[torch.fx.Node, Any]) -> Head:
    """`tensors`: placeholder → index in θ, or a tensor that does not move."""
    node: Any = logits
    while node.target in _PASSED_ON:
        node = node.args[0]
    if node.target is not aten.linear.default:
        return headless(logits, f"the logits come from {node.target}, not from a linear map of features: no head")
    weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
    if weight not in tensors or (bias is not None and bias not in tensors):
        return headless(logits, "the head is computed from other tensors: its weight or bias is no tensor of its own")
    return Head(node.args[0], tensors[weight], None if bias is None else tensors[bias], node)


def place(node: torch.fx.Node) -> str:
    """Where an operation comes from, for people: module path, file and line, source line."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    path = path.removeprefix("model").removeprefix(".") or "the model"
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    frames = [i for i, line in enumerate(lines) if line.startswith("File ")]
    if not frames:
        return f"{path}: {lines[-1] if lines else node.target}"
    file, number = lines[frames[-1]].split(", ")[:2]
    code = lines[frames[-1] + 1] if frames[-1] + 1 < len(lines) else str(node.target)
    return f"{path}: {Path(file.removeprefix('File ').strip(chr(34))).name}:{number.removeprefix('line ')}: {code}"
