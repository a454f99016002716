"""The traced ATen graph of a model's logits, or of a loss, with the source line of every operation.

Taylor mode walks over the logits; the smoothness and coverage audits, and the search for symmetries, over the loss.
"""

import io
import logging
import math
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.fx.proxy import TracerBase
from torch.fx.subgraph_rewriter import replace_pattern_with_filters
from torch.utils import _pytree as pytree

from villani.errors import InputError
from villani.objective.batches import IGNORED, Batch
from villani.objective.decomposition import TABLE
from villani.objective.objective import Objective

aten = torch.ops.aten
_INTERNAL = tuple(f"{folder}/" for folder in (Path(__file__).parents[1], Path(torch.__file__).parent))
_PASSED_ON = {aten.alias.default, aten.clone.default, aten.contiguous.default, aten._to_copy.default}


@dataclass(frozen=True)
class Head:
    """The last linear map, from features to logits.

    Attributes:
        features: the node of its input, (B, T, D).
        weight: index of its (V, D) tensor in θ.
        bias: index of its (V,) tensor in θ, or None.
        node: the linear map itself.
    """

    features: torch.fx.Node
    weight: int
    bias: int | None
    node: torch.fx.Node


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

    def values(
        self,
        tensors: Sequence[torch.Tensor],
        wanted: Collection[torch.fx.Node],
        observe: Callable[[torch.fx.Node, Any, Any], None] = lambda *_: None,
    ) -> dict[torch.fx.Node, Any]:
        """Values of some nodes at θ = `tensors`, as `run` computes them; others are dropped after their last use.

        `observe(node, arguments, options)` is called at every operation, with values in the place of nodes.
        """
        recast = self.recast(tensors)
        uses: dict[torch.fx.Node, int] = dict.fromkeys(self.nodes, 0)
        for node in self.nodes:
            for used in node.all_input_nodes:
                uses[used] += 1

        def fit(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(recast) if recast and tensor.is_floating_point() else tensor

        values: dict[torch.fx.Node, Any] = {n: fit(t) for n, t in (*self.constants.items(), *self.inputs.items())}
        values |= {node: tensors[index] for node, index in self.parameters.items()}
        for node in self.nodes:
            if node.op != "call_function":
                continue
            values[node], arguments, options = execute(node, values.__getitem__, recast)
            observe(node, arguments, options)
            for used in node.all_input_nodes:
                uses[used] -= 1
                if uses[used] == 0 and used not in wanted:
                    values.pop(used, None)
        return {node: values[node] for node in wanted}


def execute(
    node: torch.fx.Node, value: Callable[[torch.fx.Node], Any], recast: torch.dtype | None
) -> tuple[Any, Any, Any]:
    """The result of one operation, its arguments and its options, with values in the place of nodes.

    `recast` takes the place of float32 and float64, if it is given. What is detached is passed on as it is.
    """

    def look(argument: Any) -> Any:
        if isinstance(argument, torch.fx.Node):
            return value(argument)
        return recast if recast and argument in (torch.float32, torch.float64) else argument

    arguments: Any = torch.fx.node.map_aggregate(node.args, look)
    options: Any = torch.fx.node.map_aggregate(node.kwargs, look)
    target: Any = aten.alias.default if node.target is aten.detach.default else node.target
    return target(*arguments, **options), arguments, options


class _Logits(nn.Module):
    def __init__(self, objective: Objective, batch: Batch) -> None:
        super().__init__()
        self.model = objective.model
        self._objective, self._batch = objective, batch

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self._objective.logits(self._batch.holding(tensors))


class _Loss(nn.Module):
    """The loss sum of a batch whose tensors are the inputs; what else a custom group holds is a constant."""

    def __init__(self, objective: Objective, batch: Any) -> None:
        super().__init__()
        self.model = objective.model
        self._objective = objective
        self._batch = batch
        if isinstance(batch, Batch):
            labels = batch.labels.clone() if batch.labels is batch.ids else batch.labels  # or export makes them one
            self._leaves: list[Any] = [labels, *batch.inputs.values()]
        else:
            self._leaves, self._tree = pytree.tree_flatten(batch)
        self.inputs = tuple(leaf for leaf in self._leaves if isinstance(leaf, torch.Tensor))

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        if self._objective.loss_fn is None:
            return self._cross_entropy(*tensors)
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, torch.Tensor) else leaf for leaf in self._leaves]
        return self._objective.forward(pytree.tree_unflatten(leaves, self._tree)).loss

    def _cross_entropy(self, labels: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        """`Objective.forward` without the selection of predicted positions, whose shape depends on data."""
        logits = self._objective.logits(self._batch.holding(inputs))[:, :-1].flatten(0, 1)  # (B(T−1), V)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        targets = labels[:, 1:].flatten()
        loss: torch.Tensor = nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        return loss


def trace_logits(objective: Objective, batch: Batch) -> LogitGraph:
    """Trace the forward pass for blocks of this form; about a second, once for an objective.

    Raises:
        InputError: the model has a loss function of its own, its forward cannot be exported, or its logits do not come
            from a linear map of features.
    """
    if objective.loss_fn is not None:
        raise InputError("a custom loss_fn is not traced: use trace='gauss-newton' or 'hutchinson'")
    key = _key("logits", objective, batch)
    if key in objective.traced:
        return objective.traced[key]  # type: ignore[no-any-return]
    inputs = batch.inputs
    nodes, parameters, constants, users, logits = _trace(objective, _Logits(objective, batch), tuple(inputs.values()))
    nodes, logits = _scale_features(nodes, logits)
    graph = objective.traced[key] = LogitGraph(
        nodes=nodes,
        parameters=parameters,
        constants=constants,
        inputs=dict(zip(inputs, users, strict=True)),
        logits=logits,
        head=_find_head(logits, parameters),
    )
    return graph


def trace_loss(objective: Objective, batch: Any) -> LossGraph:
    """Trace the loss of one batch (of `objective.batches(group)`), language model or custom; about a second.

    The graph is that of these shapes, and of this batch as far as a custom loss looked at values that are no tensors. A
    language model's is made once for each shape.

    Raises:
        InputError: the model or the loss function cannot be exported, or gives no scalar tensor.
    """
    module = _Loss(objective, batch)
    key = _key("loss", objective, batch) if isinstance(batch, Batch) and objective.loss_fn is None else None
    if key in objective.traced:
        known: LossGraph = objective.traced[key]
        return replace(known, inputs=dict(zip(known.inputs, module.inputs, strict=True)))
    nodes, parameters, constants, users, loss = _trace(objective, module, module.inputs)
    value = loss.meta.get("val") if isinstance(loss, torch.fx.Node) else loss
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or not isinstance(loss, torch.fx.Node):
        raise InputError("the loss cannot be traced: it is no tensor of one entry that an operation computed")
    graph = LossGraph(nodes, parameters, constants, dict(zip(users, module.inputs, strict=True)), loss)
    if key is not None:
        objective.traced[key] = graph
    return graph


def _key(what: str, objective: Objective, batch: Batch) -> tuple[Any, ...]:
    """What a language model's graph depends on, but for what is changed inside a module after it was traced."""
    tensors = objective.parameters.tensors
    return (
        what, batch.form, frozenset((t.dtype, t.device) for t in tensors), tuple(objective.model.named_modules()),
    )  # fmt: skip


_Traced = tuple[
    tuple[torch.fx.Node, ...],
    dict[torch.fx.Node, int],
    dict[torch.fx.Node, torch.Tensor],
    list[torch.fx.Node],
    Any,
]


def _trace(objective: Objective, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> _Traced:
    """Nodes, parameters, constants, input placeholders and output of a module that wraps the objective's model."""
    with (
        objective.evaluating(),
        torch.no_grad(),
        _silence(),
        patch.object(TracerBase, "_filter_traceback_frames", _frames),
    ):
        try:
            exported = torch.export.export(module, inputs, strict=False).run_decompositions(dict(TABLE))
        except InputError:
            raise
        except Exception as error:  # torch.export fails in as many ways as there are models
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise InputError(f"{type(objective.model).__name__} cannot be traced: {reason}") from error
    graph = exported.graph_module.graph
    for node in list(graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:  # checks of the tracer's own
            graph.erase_node(node)
    graph.eliminate_dead_code()
    _fuse_gelu(exported.graph_module)
    index = {id(p.tensor): i for i, p in enumerate(objective.parameters.parameters)}
    parameters: dict[torch.fx.Node, int] = {}
    constants: dict[torch.fx.Node, torch.Tensor] = {}
    users: list[torch.fx.Node] = []
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, exported.graph_signature.input_specs, strict=True):
        if spec.kind.name == "USER_INPUT":
            users.append(node)
            continue
        tensor = _tensor(exported, spec)
        if id(tensor) in index:
            parameters[node] = index[id(tensor)]
        else:
            constants[node] = tensor.detach()
    outputs: Any = next(node for node in graph.nodes if node.op == "output").args[0]
    kinds = [spec.kind.name for spec in exported.graph_signature.output_specs]
    nodes = tuple(node for node in graph.nodes if node.op != "output")
    return nodes, parameters, constants, users, outputs[kinds.index("USER_OUTPUT")]  # buffers may be written as well


@contextmanager
def _silence() -> Iterator[None]:
    """No warnings, log lines or dumped graphs: what the tracer has to say ends up in an InputError."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _fuse_gelu(module: torch.fx.GraphModule) -> None:
    """Write the tanh form of GELU, where a model spells it out, as the one operation that it is."""

    def spelled_out(x: Any) -> Any:
        inner = aten.add.Tensor(x, aten.mul.Tensor(aten.pow.Tensor_Scalar(x, 3.0), 0.044715))
        bracket = aten.add.Tensor(aten.tanh.default(aten.mul.Tensor(inner, math.sqrt(2 / math.pi))), 1.0)
        return aten.mul.Tensor(aten.mul.Tensor(x, 0.5), bracket)

    def fused(x: Any) -> Any:
        return aten.gelu.default(x, approximate="tanh")

    for match in replace_pattern_with_filters(module, spelled_out, fused):
        origin = match.nodes_map[next(n for n in match.nodes_map if n.target is aten.tanh.default)]
        for node in match.replacements:
            node.meta.update(origin.meta)


def _tensor(exported: Any, spec: Any) -> torch.Tensor:
    """The tensor behind a lifted input: a parameter by identity, so that tied weights stay one."""
    target = spec.target
    if target in exported.constants:
        return exported.constants[target]  # type: ignore[no-any-return]
    return exported.state_dict[target]  # type: ignore[no-any-return]


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


def _find_head(logits: torch.fx.Node, parameters: dict[torch.fx.Node, int]) -> Head:
    node: Any = logits
    while node.target in _PASSED_ON:
        node = node.args[0]
    weight = node.args[1] if node.target is aten.linear.default else None
    bias = node.args[2] if weight is not None and len(node.args) > 2 else None
    if weight is not None and (weight not in parameters or (bias is not None and bias not in parameters)):
        raise InputError("the head is frozen, or computed from other tensors: its weight or bias is no tensor of θ")
    if weight is None:
        raise InputError(f"the logits come from {node.target}, not from a linear map of features: no head to integrate")
    return Head(node.args[0], parameters[weight], None if bias is None else parameters[bias], node)


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


def _frames(_: Any, summary: traceback.StackSummary) -> traceback.StackSummary:
    """What the tracer keeps of a stack: the code below a wrapper's forward, helper functions included, torch left out.

    Its own filter keeps nothing but methods called forward.
    """
    own = [i for i, frame in enumerate(summary) if frame.filename == __file__ and frame.name == "forward"]
    below = summary[own[-1] + 1 :] if own else summary
    return traceback.StackSummary.from_list([frame for frame in below if not frame.filename.startswith(_INTERNAL)])
