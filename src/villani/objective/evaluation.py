"""What surrounds every forward pass that is measured, and is put back afterwards: arithmetic, modes, generators."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

_DEVICES = ("cpu", "cuda", "mps", "xpu")  # kinds that autocast knows


@contextmanager
def plain_arithmetic() -> Iterator[None]:
    """Arithmetic in the dtypes of its operands, and gradients of embeddings whole, whatever the surroundings ask for.

    Autocast and inference mode are off, products of float32 are not rounded to TF32 or bfloat16, and `padding_idx`,
    `scale_grad_by_freq` and `sparse` are ignored in lookups: they leave the loss as it is and change its gradient. An
    embedding bag's `padding_idx` stays, since it takes rows out of the loss itself.
    """
    lookup, bag = torch.embedding, torch.embedding_bag

    def whole_lookup(weight: torch.Tensor, indices: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return lookup(weight, indices)

    def whole_bag(
        weight: torch.Tensor, indices: torch.Tensor, offsets: torch.Tensor, _by_frequency: bool = False, mode: int = 0,
        _sparse: bool = False, *rest: Any,
    ) -> Any:  # fmt: skip
        return bag(weight, indices, offsets, False, mode, False, *rest)

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for kind in _DEVICES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if lookup.__name__ != whole_lookup.__name__:  # else this is in force already
            stack.enter_context(patch.object(torch, "embedding", whole_lookup))
            stack.enter_context(patch.object(torch, "embedding_bag", whole_bag))
        stack.enter_context(_float32_products())
        yield


@contextmanager
def _float32_products() -> Iterator[None]:
    """Products and convolutions of float32 are not rounded to TF32 or bfloat16."""
    backends: Any = torch.backends
    convolutions = backends.cudnn.allow_tf32  # on by default
    with ExitStack() as stack:
        if convolutions:
            backends.cudnn.allow_tf32 = False
            stack.callback(setattr, backends.cudnn, "allow_tf32", convolutions)
        try:
            before = torch.get_float32_matmul_precision()
        except RuntimeError:  # chosen backend by backend, which torch allows in place of one setting for all
            for place in (backends.cuda.matmul, backends.mkldnn.matmul):
                stack.callback(setattr, place, "fp32_precision", place.fp32_precision)
                place.fp32_precision = "ieee"
        else:
            if before != "highest":
                torch.set_float32_matmul_precision("highest")
                stack.callback(torch.set_float32_matmul_precision, before)
        yield


@contextmanager
def evaluating(model: nn.Module, device: torch.device, *, fused: bool = False) -> Iterator[None]:
    """Plain arithmetic, dropout off, twice-differentiable attention, deterministic kernels; all is put back afterwards.

    Generators of torch, numpy and Python come back too, and so does what accelerate wraps around `forward`, which would
    switch autocast on again. With `fused`, attention kernels are left to the model: enough where only first derivatives
    are taken.
    """
    modes = [(module, module.training) for module in model.modules()]
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filling: Any = torch.utils.deterministic
    fill = filling.fill_uninitialized_memory
    python, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002 (the caller's own global state)
    with ExitStack() as stack:
        stack.enter_context(plain_arithmetic())
        stack.enter_context(_whole_lookups(model))
        stack.enter_context(_unwrapped(model))
        if not fused:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]))
        stack.enter_context(torch.enable_grad())
        torch.use_deterministic_algorithms(True, warn_only=True)
        filling.fill_uninitialized_memory = False  # every `empty` would be written twice
        model.eval()
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            filling.fill_uninitialized_memory = fill
            for module, mode in modes:
                module.training = mode
            random.setstate(python)
            np.random.set_state(numpys)  # noqa: NPY002


def plain_lookups(model: nn.Module) -> list[nn.Embedding]:
    """The embeddings to which `padding_idx` is of the gradient alone; classes of their own may find positions by it."""
    return [m for m in model.modules() if isinstance(m, nn.Embedding) and type(m).forward is nn.Embedding.forward]


@contextmanager
def _whole_lookups(model: nn.Module) -> Iterator[None]:
    """The same as in `plain_arithmetic` for code that torch.compile has made, which follows attributes of modules."""
    kept = [(m, m.padding_idx, m.scale_grad_by_freq, m.sparse) for m in plain_lookups(model)]
    for module, *_ in kept:
        module.padding_idx, module.scale_grad_by_freq, module.sparse = None, False, False
    try:
        yield
    finally:
        for module, padding, by_frequency, sparse in kept:
            module.padding_idx, module.scale_grad_by_freq, module.sparse = padding, by_frequency, sparse


@contextmanager
def _unwrapped(model: nn.Module) -> Iterator[None]:
    wrapped = model.__dict__.get("forward") if "_original_forward" in model.__dict__ else None
    if wrapped is None:
        yield
        return
    model.forward = model.__dict__["_original_forward"]
    try:
        yield
    finally:
        model.forward = wrapped


@contextmanager
def same_threads() -> Iterator[None]:
    """Torch's number of CPU threads comes back, whatever is set inside; around a function, too."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
