"""A value with its first- and second-order terms along probes: what Taylor mode carries through a graph."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

Tangents = dict[int, torch.Tensor]


class Jet:
    """A value with first-order terms by probe and second-order terms by class (d²/dε², not halved)."""

    __slots__ = ("first", "second", "x")

    def __init__(self, x: torch.Tensor, first: Tangents | None = None, second: Tangents | None = None) -> None:
        self.x = x
        self.first = first or {}
        self.second = second or {}


class Probed(Jet):
    """A parameter that is used once, with probes that are drawn where they are used.

    Attributes:
        probes: their numbers.
        draw: (probe, shape) → independent random signs of this shape.
    """

    __slots__ = ("draw", "probes")

    def __init__(
        self, x: torch.Tensor, probes: Sequence[int], draw: Callable[[int, Sequence[int]], torch.Tensor]
    ) -> None:
        super().__init__(x)
        self.probes = probes
        self.draw = draw

    def drawn(self) -> Jet:
        """With one probe for all sequences."""
        return Jet(self.x, {k: self.draw(k, self.x.shape) for k in self.probes})

    def spread(self, sequences: int, shape: torch.Size) -> Jet:
        """A vector (E,) with a probe for every sequence, for a value of this shape, (B, …, E) or (B·T, E)."""
        size = shape[-1]
        rows = shape.numel() // size // sequences
        draws = {k: self.draw(k, (sequences, 1, size)) for k in self.probes}
        return Jet(self.x, {k: t.expand(sequences, rows, size).contiguous().view(shape) for k, t in draws.items()})


def as_jet(value: Any) -> Jet:
    """A plain tensor or number does not move."""
    return value if isinstance(value, Jet) else Jet(value)


def add_to(sums: Tangents, key: int, term: torch.Tensor) -> None:
    """sums[key] += term, not in place."""
    sums[key] = sums[key] + term if key in sums else term


def mapped(a: Jet, f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor | None = None) -> Jet:
    """f applied to every order, f linear; `x` replaces the value where f has a constant part."""
    return Jet(
        f(a.x) if x is None else x, {k: f(t) for k, t in a.first.items()}, {c: f(t) for c, t in a.second.items()}
    )
