"""Mixtures of experts as every expert's answer to every token, of which routing takes a few.

transformers sorts tokens by their experts, or picks the matrices that each token needs: which matrix meets which row is
up to the data, and nothing that reads a graph can follow it. The same function, in real arithmetic, is the sum over all
experts of what they give, times what routing gives them, 0 for most: products with tensors of θ.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

_INTERFACE = "transformers.integrations.moe"


def every_expert(experts: Any, hidden: torch.Tensor, places: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Σ_e share_e(n)·expert_e(x_n); costs as much as all experts for every token.

    Args:
        experts: a module of transformers that holds the matrices of all experts, (E, out, in) or transposed.
        hidden: x (N, D).
        places: (N, K) which experts each token takes; a number beyond the last is none.
        shares: (N, K) with which weights.
    """
    count = experts.down_proj.shape[0]
    bias = experts.has_bias
    first = "gate_up_proj" if experts.has_gate else "up_proj"
    inner = _products(hidden, experts, first, bias)  # (E, N, I)
    inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
    outer = _products(inner, experts, "down_proj", bias)  # (E, N, D)
    if getattr(experts, "has_post_expert_norm", False):
        outer = experts.post_expert_norm(outer)
    chosen = places.unsqueeze(-1) == torch.arange(count, device=places.device)  # (N, K, E)
    share = torch.where(chosen, shares.unsqueeze(-1).to(outer.dtype), 0.0).sum(dim=1)  # (N, E)
    return (outer * share.T.unsqueeze(-1)).sum(dim=0).to(hidden.dtype)


def _products(x: torch.Tensor, experts: Any, name: str, bias: bool) -> torch.Tensor:
    weight = getattr(experts, name)
    y = torch.matmul(x, weight if experts.is_transposed else weight.transpose(-2, -1))
    return y + getattr(experts, f"{name}_bias").unsqueeze(1) if bias else y


@contextmanager
def of_every_expert() -> Iterator[None]:
    """Mixtures of transformers compute `every_expert` for a while, whatever their configuration asks for."""
    module: Any = sys.modules.get(_INTERFACE)
    interface = getattr(module, "ALL_EXPERTS_FUNCTIONS", None)
    if interface is None:
        yield
        return

    def only(_: str | None, default: Callable[..., Any]) -> Callable[..., Any]:  # noqa: ARG001
        return every_expert

    with patch.object(interface, "get_interface", only):
        yield
