"""A model lent out in the middle of a run, and put back to the bit."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

_PLAIN = (bool, int, float, str, type(None))


def uncompiled(model: nn.Module) -> nn.Module:
    """The module that `torch.compile` wrapped, with the same tensors; itself if it is not compiled."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back what a measurement might move: θ, buffers, every generator, train modes, `.grad`, `requires_grad`, and
    plain attributes of modules, such as RWKV's note of whether its weights are rescaled. Needs one copy of θ.

    Inside, gradients are on; autocast, accelerate's own autocast around `forward`, inference mode and `torch.compile`,
    whose graphs have one derivative only, are off. Forward hooks of the user's do run.
    """
    python, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002 (the run's own global state)
    attributes = [(m, {k: v for k, v in vars(m).items() if isinstance(v, _PLAIN)}) for m in model.modules()]
    leaves = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    tables: list[tuple[dict[str, Any], dict[str, Any]]]
    tables = [(table, dict(table)) for m in model.modules() for table in (m._parameters, m._buffers)]
    tensors = {id(t): t for _, table in tables for t in table.values() if t is not None}
    copies = [(own, own.detach().clone()) for own in map(own_part, tensors.values())]
    with ExitStack() as stack:
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in {"cpu", *(p.device.type for p in model.parameters())}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        wrapped = model.__dict__.get("forward") if "_original_forward" in model.__dict__ else None
        try:
            if wrapped is not None:
                model.forward = model.__dict__["_original_forward"]
            for p, _, _ in leaves:
                p.grad = None  # so that whatever is added goes elsewhere
            yield
        finally:
            if wrapped is not None:
                model.forward = wrapped
            random.setstate(python)
            np.random.set_state(numpys)  # noqa: NPY002
            for module, plain in attributes:
                vars(module).update((k, v) for k, v in plain.items() if vars(module).get(k) is not v)
            for table, before in tables:
                table.clear()
                table.update(before)
            with torch.no_grad():
                for tensor, copy in copies:
                    if not torch.equal(tensor, copy):
                        tensor.copy_(copy)
            for p, grad, flag in leaves:
                p.grad = grad
                if p.requires_grad != flag:
                    p.requires_grad_(flag)


def is_sharded(tensor: torch.Tensor | None) -> bool:
    """Whether this process may have a part only; torch's distributed tensors are not loaded for those that are none."""
    return type(tensor).__name__ == "DTensor"


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process has of a tensor, in the same memory: a plain tensor; itself where it is one."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        part: torch.Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return part
