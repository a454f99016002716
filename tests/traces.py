"""Graphs that tests share: the same architecture, with the same buffers, is traced once for a form of batch.

Its forward pass is tried out once, too.

A trace takes most of a second and most commands make one. Two models have a graph in common only if every module is of
the same class with the same plain attributes, θ stands in the same places, buffers are equal to the bit, and nothing of
torch, transformers or the tracer is patched. What is in doubt is traced anew, and tests of tracing never share.
"""

import functools
import os
import sys
import types
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch._export.utils import _collect_all_valid_cia_ops
from torch.export import exported_program

from villani.objective import objective as objectives
from villani.objective.graph import LogitGraph
from villani.objective.objective import Objective
from villani.objective.trial import check_forward, labelled_row, was_tried

PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.Size)
CODE = (type, types.FunctionType, types.BuiltinFunctionType, functools.partial)
TRACED_CODE = ("torch", "transformers", "villani.objective")
_REAL = torch.float32
GRAPHS: dict[Any, Any] = {}  # what was not wanted for longest first
MOST = 96  # graphs, of a megabyte or two each


class Doubt(Exception):
    """What a graph depends on could not be written down."""


def plain(value: Any) -> Any:
    """A value as one that can be compared; Doubt where it is more than data."""
    if isinstance(value, (*PLAIN, *CODE)):
        return value
    if isinstance(value, torch.Tensor):
        entries = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
        return value.dtype, tuple(value.shape), entries.numpy().tobytes()
    if isinstance(value, list | tuple | set | frozenset):
        return type(value), tuple(map(plain, sorted(value, key=repr) if isinstance(value, set | frozenset) else value))
    if isinstance(value, dict):
        return tuple((plain(key), plain(entry)) for key, entry in value.items())
    if hasattr(value, "to_json_string"):  # a configuration
        return type(value), value.to_json_string(use_diff=False), getattr(value, "_attn_implementation", None)
    raise Doubt(type(value).__name__)


def architecture(objective: Objective) -> tuple[Any, ...]:
    """All of a model that a graph depends on, but for the values of θ."""
    theta = {id(t): (i, tuple(t.shape), t.dtype) for i, t in enumerate(objective.parameters.tensors)}
    parts: list[Any] = [torch.get_default_dtype(), torch.float32 is _REAL]
    for name, module in objective.model.named_modules():
        own = {key: value for key, value in vars(module).items() if key not in ("_modules", "training")}
        parameters = own.pop("_parameters")
        places = tuple((key, p if p is None else theta.get(id(p))) for key, p in parameters.items())
        if any(p is not None and place is None for (_, place), p in zip(places, parameters.values(), strict=True)):
            raise Doubt("a frozen tensor")
        held = {key: value for key, value in own.items() if not isinstance(value, nn.Module)}
        parts.append((name, type(module), places, plain(held)))
    return tuple(parts)


class Shared(dict[Any, Any]):
    """`Objective.traced` of an objective, which also has what other objectives made of the same architecture."""

    def __init__(self, objective: Objective, sharing: "Sharing") -> None:
        super().__init__()
        self.objective, self.sharing = weakref.ref(objective), sharing  # no circle: an objective goes when it is left

    def _key(self, key: Any) -> Any:
        objective = self.objective()
        if not isinstance(key, tuple) or key[0] not in ("logits", "loss") or objective is None or objective.streamed:
            return None
        try:
            known = architecture(objective) if self.sharing.allowed else None
        except (Doubt, RuntimeError, TypeError):  # also a tensor without values
            known = None
        lifted = self.sharing.test is not None and any(dtype == torch.float64 for dtype, _ in key[2])
        return known and (*key[:3], lifted, known)  # tests lift the casts of float64 to float32; fixtures do not

    def __contains__(self, key: Any) -> bool:
        if not super().__contains__(key) and (shared := self._key(key)) in GRAPHS:
            GRAPHS[shared] = GRAPHS.pop(shared)
            super().__setitem__(key, GRAPHS[shared])
        return super().__contains__(key)

    def __setitem__(self, key: Any, graph: Any) -> None:
        super().__setitem__(key, graph)
        if (shared := self._key(key)) is None:
            return
        if isinstance(graph, LogitGraph) and any(
            isinstance(t, torch.Tensor) for t in (graph.head.weight, graph.head.bias)
        ):
            return
        GRAPHS[shared] = replace(graph, constants={node: t.clone() for node, t in graph.constants.items()})
        if len(GRAPHS) > MOST:
            del GRAPHS[next(iter(GRAPHS))]


def patched(monkeypatch: pytest.MonkeyPatch) -> int:
    """How many attributes of traced code, and entries of tables, are replaced."""
    targets = [target for target, name, _ in monkeypatch._setattr if name != "set_num_threads"]
    owners = [target if isinstance(target, types.ModuleType | type) else type(target) for target in targets]
    names = [owner.__name__ if isinstance(owner, types.ModuleType) else owner.__module__ for owner in owners]
    entries = [table for table, *_ in monkeypatch._setitem if table is not os.environ and table is not sys.modules]
    return sum(name.startswith(TRACED_CODE) for name in names) + len(entries)


class Sharing:
    """Who may share: what runs outside tests (fixtures of modules), and tests but for those that patch traced code."""

    def __init__(self) -> None:
        self.test: pytest.MonkeyPatch | None = None
        self.before = 0
        self.tried: set[Any] = set()  # what is known of models whose forward pass was in order

    def begin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A test, of what its fixtures have patched so far."""
        self.test, self.before = monkeypatch, patched(monkeypatch)

    def refuse(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A test in which nothing is shared."""
        self.test, self.before = monkeypatch, -1

    def end(self) -> None:
        """The test is over."""
        self.test = None

    @property
    def allowed(self) -> bool:
        """Whether nothing that a trace depends on was patched since the test began."""
        return self.test is None or patched(self.test) == self.before

    def try_once(self, objective: Objective) -> None:
        """`check_forward`, where no model that is alike passed it; labels that are given are looked at every time."""
        known = None
        if self.allowed and not was_tried() and objective.loss_fn is None and labelled_row(objective) is None:
            with suppress(Doubt, RuntimeError, TypeError):
                known = architecture(objective), self.test is not None
        if known is None or known not in self.tried:
            check_forward(objective)
            self.tried |= {known} - {None}

    @contextmanager
    def through_session(self) -> Iterator[None]:
        """Every objective looks at what others traced."""
        made = Objective.__init__

        @functools.wraps(made)
        def init(objective: Objective, *args: Any, **options: Any) -> None:
            made(objective, *args, **options)
            objective.traced = Shared(objective, self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Objective, "__init__", init)
            patch.setattr(objectives, "check_forward", self.try_once)
            # which operations are composite does not change, and going through all is an eighth of tracing a toy
            patch.setattr(exported_program, "_collect_all_valid_cia_ops", functools.cache(_collect_all_valid_cia_ops))
            yield
