"""A model's logits, or a loss, as an ATen graph: what `torch.export` makes of it, without the tracer's own traces."""

import io
import logging
import math
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.graph import _PyTreeCodeGen
from torch.fx.proxy import TracerBase
from torch.fx.subgraph_rewriter import replace_pattern_with_filters
from torch.utils import _pytree as pytree

from villani.errors import InputError
from villani.objective.batches import IGNORED, Batch
from villani.objective.decomposition import TABLE
from villani.objective.experts import of_every_expert
from villani.objective.objective import Objective
from villani.work.foreign import clipped

aten = torch.ops.aten
_INTERNAL = tuple(f"{folder}/" for folder in (Path(__file__).parents[1], Path(torch.__file__).parent))


class Logits(nn.Module):
    """The logits of a batch whose tensors are the inputs."""

    def __init__(self, objective: Objective, batch: Batch) -> None:
        super().__init__()
        self.model = objective.model
        self._objective, self._batch = objective, batch

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """(B, T, V) of the batch's inputs."""
        return self._objective.logits(self._batch.holding(tensors))


class Loss(nn.Module):
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
        """A scalar, of `inputs`."""
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


Exported = tuple[
    tuple[torch.fx.Node, ...],
    dict[torch.fx.Node, int],
    dict[torch.fx.Node, torch.Tensor],
    list[torch.fx.Node],
    Any,
]


def export(objective: Objective, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Exported:
    """Nodes, parameters, constants, input placeholders and output of a module that wraps the objective's model."""
    with (
        _traceable(objective, inputs) as (parameters_now, inputs),
        objective.evaluating(),
        of_every_expert() if isinstance(module, Loss) else nullcontext(),
        torch.no_grad(),
        _silence(),
        patch.object(TracerBase, "_filter_traceback_frames", _frames),
        patch.object(torch.fx.GraphModule, "recompile", compiled_when_called),
    ):
        try:
            exported = torch.export.export(module, inputs, strict=False).run_decompositions(dict(TABLE))
        except InputError:
            raise
        except Exception as error:  # torch.export fails in as many ways as there are models
            reason = clipped(next(iter(str(error).strip().splitlines()), type(error).__name__))
            raise InputError(
                f"{type(objective.model).__name__} cannot be traced: {reason}; trace='gauss-newton' needs no graph"
            ) from error
    graph = exported.graph_module.graph
    for node in list(graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:  # checks of the tracer's own
            graph.erase_node(node)
    graph.eliminate_dead_code()
    _fuse_gelu(exported.graph_module)
    index = {id(tensor): i for i, tensor in enumerate(parameters_now)}
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
    if "PARAMETER_MUTATION" in kinds:
        name = type(objective.model).__name__
        raise InputError(f"{name} writes to its own weights in eval mode, so that no figure belongs to one θ")
    nodes = tuple(node for node in graph.nodes if node.op != "output")
    return nodes, parameters, constants, users, outputs[kinds.index("USER_OUTPUT")]  # buffers may be written as well


@contextmanager
def _traceable(
    objective: Objective, inputs: tuple[torch.Tensor, ...]
) -> Iterator[tuple[list[torch.Tensor], tuple[torch.Tensor, ...]]]:
    """The tensors of θ, and the inputs, as the tracer is shown them: with no values where weights are streamed."""
    space = objective.parameters
    if space.weights is None:
        yield list(space.tensors), inputs
        return
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = [nn.Parameter(FakeTensor(mode, p.data, space.device), p.requires_grad) for p in space.tensors]
    place = {id(p): fake for p, fake in zip(space.tensors, fakes, strict=True)}
    owners = [(m, n, p) for m in objective.model.modules() for n, p in m._parameters.items() if id(p) in place]
    for module, name, parameter in owners:
        module._parameters[name] = place[id(parameter)]
    try:
        yield list(fakes), tuple(mode.from_tensor(t) for t in inputs)
    finally:
        for module, name, parameter in owners:
            module._parameters[name] = parameter


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
    if all(node.target is not aten.tanh.default for node in module.graph.nodes):
        return

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


_compile = torch.fx.GraphModule.recompile


def compiled_when_called(module: torch.fx.GraphModule) -> None:
    """Leave the Python code of a graph to be written when it is run: a fifth of tracing goes into what never is."""
    if isinstance(module.graph._codegen, _PyTreeCodeGen):
        info = module.graph._codegen.pytree_info
        module._in_spec, module._out_spec = info.in_spec, info.out_spec

    def forward(self: torch.fx.GraphModule, *tensors: Any, **others: Any) -> Any:
        _compile(self)
        return self.forward(*tensors, **others)

    type(module).forward = forward  # each graph module is of a class of its own


def _frames(_: Any, summary: traceback.StackSummary) -> traceback.StackSummary:
    """What the tracer keeps of a stack: the code below a wrapper's forward, helper functions included, torch left out.

    Its own filter keeps nothing but methods called forward.
    """
    own = [i for i, frame in enumerate(summary) if frame.filename == __file__ and frame.name == "forward"]
    below = summary[own[-1] + 1 :] if own else summary
    return traceback.StackSummary.from_list([frame for frame in below if not frame.filename.startswith(_INTERNAL)])
