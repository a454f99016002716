"""The traced ATen graph of a model's logits: what Taylor mode walks over, with the source line of every operation."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx.subgraph_rewriter import replace_pattern_with_filters

from villani.errors import InputError
from villani.landscape.objective import Batch, Objective

aten = torch.ops.aten
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
        ids: the placeholder of the token ids.
        attention: the placeholder of the attention mask, or None.
        logits: the node of the logits, (B, T, V).
        head: the last linear map.
    """

    nodes: tuple[torch.fx.Node, ...]
    parameters: dict[torch.fx.Node, int]
    constants: dict[torch.fx.Node, torch.Tensor]
    ids: torch.fx.Node
    attention: torch.fx.Node | None
    logits: torch.fx.Node
    head: Head


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, attention: torch.Tensor | None = None) -> torch.Tensor:
        more = {} if attention is None else {"attention_mask": attention}
        logits: torch.Tensor = self.model(input_ids=ids, use_cache=False, **more).logits
        return logits


def trace_logits(objective: Objective, batch: Batch) -> LogitGraph:
    """Trace the forward pass for blocks of this shape (with or without a mask); about a second.

    Raises:
        InputError: the model has a loss function of its own, its forward cannot be exported, or its logits do not come
            from a linear map of features.
    """
    if objective.loss_fn is not None:
        raise InputError("a custom loss_fn is not traced: use trace='gauss-newton' or 'hutchinson'")
    inputs = (batch.ids,) if batch.attention is None else (batch.ids, batch.attention)
    with objective.evaluating(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            exported = torch.export.export(_Logits(objective.model), inputs, strict=False).run_decompositions({})
        except Exception as error:  # torch.export fails in as many ways as there are models
            reason = str(error).strip().splitlines()[0]
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
    output = next(node for node in graph.nodes if node.op == "output").args[0]
    logits: Any = output[0]
    return LogitGraph(
        nodes=tuple(node for node in graph.nodes if node.op != "output"),
        parameters=parameters,
        constants=constants,
        ids=users[0],
        attention=users[1] if len(users) > 1 else None,
        logits=logits,
        head=_find_head(logits, parameters),
    )


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


def _find_head(logits: torch.fx.Node, parameters: dict[torch.fx.Node, int]) -> Head:
    node: Any = logits
    while node.target in _PASSED_ON:
        node = node.args[0]
    weight = node.args[1] if node.target is aten.linear.default else None
    bias = node.args[2] if weight is not None and len(node.args) > 2 else None
    if weight not in parameters or (bias is not None and bias not in parameters):
        raise InputError(f"the logits come from {node.target}, not from a linear map of features: no head to integrate")
    return Head(node.args[0], parameters[weight], None if bias is None else parameters[bias], node)


def place(node: torch.fx.Node) -> str:
    """Where an operation comes from: its module path and the last source line of its stack, for people."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    return f"{path.removeprefix('model.') or 'the model'}: {lines[-1] if lines else node.target}"
