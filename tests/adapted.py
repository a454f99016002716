"""Low-rank adapters around linear layers, by plain torch: what PEFT's wrappers compute."""

import torch
from torch import nn


class Adapted(nn.Module):
    """x ↦ f(x) + s·B(Ax), with f frozen."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, rank: int = 2, scale: float = 1.5) -> None:
        super().__init__()
        like = next(base.parameters())
        self.base, self.scale = base.requires_grad_(False), scale
        self.lora_A = nn.Parameter(torch.randn(rank, inputs).to(like) / 3)
        self.lora_B = nn.Parameter(torch.randn(outputs, rank).to(like) / 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.scale * nn.functional.linear(nn.functional.linear(x, self.lora_A), self.lora_B)


def adapt(model: nn.Module, *paths: str) -> nn.Module:
    """A model in place, with adapters at some linear layers and all else frozen."""
    model.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for path in paths:
            owner, _, leaf = path.rpartition(".")
            layer = model.get_submodule(path)
            rows, columns = layer.weight.shape if isinstance(layer, nn.Linear) else layer.weight.T.shape
            setattr(model.get_submodule(owner), leaf, Adapted(layer, columns, rows))
    return model
