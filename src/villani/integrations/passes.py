"""A forward and backward pass through a model that `fully_shard` cut, in the middle of a run that must not notice.

The model's hooks gather weights and reduce gradients: collectives that every process has to call in the same order. A
process whose pass fails, as at a user's hook or for want of memory, would leave the others waiting. So in the first
pass all ask each other before each of those calls whether to make it, over a group of their own: where one has failed,
all stop before the same call. That pass notes the order of the calls, and in those after it a process that fails makes
what is left of them, with zeros for gradients, which costs nothing where none does; its error is told at the next
exchange. (Of torch, 2.13 to 2.15: parts of `FSDPParamGroup` that have no public name.)
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from villani.errors import InputError
from villani.integrations.layout import fsdp_groups, fsdp_states
from villani.integrations.processes import Processes
from villani.integrations.untouched import untouched

_CALLS = ("pre_forward", "post_forward", "pre_backward", "post_backward")
_SETTINGS = {  # of a parameter group: what a pass here is made with; None is torch's own: a mean over processes
    "reduce_grads": True, "all_reduce_grads": True, "reshard_after_backward": True, "unshard_in_backward": True,
    "gradient_divide_factor": None, "reduce_scatter_unused_params": False, "_all_reduce_hook": None,
    "_all_reduce_hook_stream": None, "_partial_reduce_output": None,
}  # fmt: skip
Call = tuple[int, str, tuple[int, ...]]  # parameter group, one of _CALLS, parameters that have a gradient


class Passes:
    """Passes through one model.

    Args:
        model: with `fully_shard` somewhere in it.
        processes: that have it; without them nobody is asked in the first pass.
    """

    def __init__(self, model: nn.Module, processes: Processes | None = None) -> None:
        self.model, self._processes = model, processes or Processes()
        self._order: list[Call] = []  # of the first pass that succeeded
        self._calls: list[Call] = []  # of this one
        self._replaying = self._asking = False

    def backward(self, loss: Callable[[], torch.Tensor]) -> None:
        """Forward and backward; gradients of its parts are left in `.grad`.

        Raises:
            Exception: whatever either raises, once every collective of a whole pass has been made; in the first pass,
                in all processes alike, as `Processes.together` tells it.
        """
        self._calls = []
        if not self._order:
            self._first(loss)
            return
        groups = fsdp_groups(self.model)
        try:
            loss().backward()
        except Exception:
            with torch.no_grad():
                self._finish(groups)
            raise

    def _first(self, loss: Callable[[], torch.Tensor]) -> None:
        """A pass of which nobody knows what calls it makes."""
        self._asking = True
        try:
            with self._processes.together():
                loss().backward()
        except Exception:
            self._reset()
            raise
        finally:
            self._asking = False
        self._order = list(self._calls)

    def _finish(self, groups: list[Any]) -> None:
        """What is left of the collectives, as the processes whose pass goes well make them."""
        self._replaying = True
        try:
            for index, name, with_gradient in self._order[len(self._calls) :]:
                group = groups[index]
                if name == "pre_forward":
                    group.pre_forward(None, (), {})
                elif name == "post_forward":
                    group.post_forward(None, None, None)
                elif name == "pre_backward":
                    group.pre_backward(True)
                else:
                    for i, p in enumerate(group.fsdp_params):
                        whole = getattr(p, "_unsharded_param", None)
                        if whole is not None:
                            whole.grad = torch.zeros_like(whole) if i in with_gradient else None
                    group.post_backward()
        finally:
            self._replaying = False
            self._reset()

    def _reset(self) -> None:
        """Parts, not wholes, in every module, and nothing pending; as torch does after an iteration that failed."""
        for state in fsdp_states(self.model):
            if state._is_root:
                state._reset_iter_state()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """`untouched`, and FSDP's own state put back: flags of accumulation, gradients that wait, what it has gathered.

        Inside, gradients are means over processes of what `backward` is called on, in the dtype of θ.

        Raises:
            InputError: the model is not the outermost that `fully_shard` cut.
        """
        groups, states = fsdp_groups(self.model), fsdp_states(self.model)
        for state in states:  # outermost first, which then are the roots that a forward pass would make of them
            if state._is_root is None:
                state._lazy_init()
        if not any(state._is_root for state in states):
            raise InputError("the model is a part of a module that fully_shard cut: give that whole module")
        gathered = [group for group in groups if group.is_unsharded]
        with ExitStack() as stack:
            for group in groups:
                stack.enter_context(_attributes(group, _SETTINGS))
                for p in group.fsdp_params:
                    stack.enter_context(_attributes(p, {"unsharded_accumulated_grad": None}))
            for state in states:
                stack.enter_context(
                    _attributes(state, {"_states_to_forward_prefetch": [], "_states_to_backward_prefetch": []})
                )
            for context in {id(s._state_ctx): s._state_ctx for s in states}.values():
                stack.enter_context(_attributes(context, {"is_last_backward": True}))
                context.post_optim_event = None  # for good: what comes next has to wait for the θ that is put back
            self._reset()
            stack.callback(partial(_gather, gathered))
            for owner in [*states, *groups]:
                stack.enter_context(_in_full_precision(owner))
            stack.enter_context(untouched(self.model))
            stack.callback(self._reset)
            for p in self.model.parameters():
                stack.enter_context(_without_hooks(p))
            for index, group in enumerate(groups):
                stack.enter_context(self._noting(index, group))
            yield

    @contextmanager
    def _noting(self, index: int, group: Any) -> Iterator[None]:
        """Note the calls that lead to collectives; those of a replay belong to no pass."""

        def noted(name: str, call: Callable[..., Any], *args: Any, **named: Any) -> Any:
            wholes = [getattr(p, "_unsharded_param", None) for p in group.fsdp_params]
            with_gradient = tuple(i for i, w in enumerate(wholes) if w is not None and w.grad is not None)
            if self._asking and name != "post_forward":  # which is no collective
                self._processes.ready()
            result = call(*args, **named)
            if not self._replaying:
                self._calls.append((index, name, with_gradient))  # not what has failed: it will be made again
            return result

        for name in _CALLS:
            vars(group)[name] = partial(noted, name, getattr(group, name))
        try:
            yield
        finally:
            for name in _CALLS:
                del vars(group)[name]


def _gather(groups: list[Any]) -> None:
    for group in groups:
        group.unshard()
        group.wait_for_unshard()


@contextmanager
def _attributes(owner: Any, values: dict[str, Any]) -> Iterator[None]:
    """Attributes that there are, with other values for a while."""
    before = {name: getattr(owner, name) for name in values if hasattr(owner, name)}
    for name in before:
        setattr(owner, name, values[name])
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextmanager
def _in_full_precision(owner: Any) -> Iterator[None]:
    """Gather and reduce in θ's own dtype, into other buffers than the run's, which may hold gradients that wait.

    Args:
        owner: a state, which casts what goes into its module and comes out; or its parameters.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    params = getattr(owner, "fsdp_params", None)
    if params is None:
        with _attributes(owner, {"_mp_policy": policy}):
            yield
        return
    with _attributes(owner, {"mp_policy": policy}):
        buffers = [(p, p.all_gather_outputs, vars(p).pop("_unsharded_param", None)) for p in params]
        for p in params:
            p.all_gather_outputs = []
        owner._init_mp_dtypes()
        try:
            yield
        finally:
            for p, outputs, whole in buffers:
                p.all_gather_outputs = outputs
                vars(p).pop("_unsharded_param", None)
                if whole is not None:
                    p._unsharded_param = whole
    owner._init_mp_dtypes()


@contextmanager
def _without_hooks(p: Any) -> Iterator[None]:
    """A parameter whose gradient steps no optimiser and is looked at by nobody."""
    hooks = p._post_accumulate_grad_hooks or {}
    before = dict(hooks)
    hooks.clear()
    try:
        yield
    finally:
        hooks.update(before)
