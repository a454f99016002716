"""The ways to tr ∇²L: their names, which choices go together, and what a sample costs. No torch.

Names are written here and nowhere else: settings, options and records take their types, `get_args` of them is the list,
and `curvature/trace.py` has the sampler of each.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from villani.errors import InputError

TraceMethod = Literal["gauss-newton", "hutchinson", "taylor", "adjoint"]
Auto = Literal["auto"]  # the way is chosen from the model: `curvature/trace.py`
Trace = Literal[Auto, TraceMethod]
Blocks = Literal["whole", "layer", "tensor"]
ProductMethod = Literal["reverse-over-reverse", "forward-over-reverse", "finite-differences"]

_OWNERS: dict[str, TraceMethod] = {"blocks": "taylor", "products": "hutchinson"}  # the one way that a choice is for


@dataclass(frozen=True)
class Way:
    """One way to tr ∇²L.

    Attributes:
        trace: `gauss-newton`, `hutchinson`, `taylor` or `adjoint`; see `curvature/trace.py`.
        blocks: with `taylor`, what gets a probe of its own: the `whole` of θ, each `layer` or each `tensor`.
        products: with `hutchinson`, how ∇²L·v is had; see `curvature/products.py`.
        deflated: with `hutchinson` and products of the first kind, whether some directions are taken exactly.

    Raises:
        InputError: an unknown name, or choices that do not go together.
    """

    trace: TraceMethod = "gauss-newton"
    blocks: Blocks = "whole"
    products: ProductMethod = "reverse-over-reverse"
    deflated: bool = False

    def __post_init__(self) -> None:
        choices: dict[str, Any] = {"trace": TraceMethod, "blocks": Blocks, "products": ProductMethod}
        for name, names in choices.items():
            if getattr(self, name) not in get_args(names):
                raise InputError(f"{name}={getattr(self, name)!r}: expected {', '.join(get_args(names))}")
        for name, owner in _OWNERS.items():
            value = getattr(self, name)
            if value != get_args(choices[name])[0] and self.trace != owner:
                raise InputError(f"{name}={value!r} goes with trace={owner!r}, not with {self.trace!r}")
        if self.deflated and (self.trace, self.products) != ("hutchinson", "reverse-over-reverse"):
            other = self.trace if self.trace != "hutchinson" else self.products
            raise InputError(
                f"deflate goes with trace='hutchinson' and products='reverse-over-reverse', not with {other!r}"
            )

    def __str__(self) -> str:
        if self.trace == "taylor" and self.blocks != "whole":
            return f"{self.trace} by {self.blocks}"
        return self.trace

    @property
    def graphs(self) -> float:
        """Memory of a group's graph, in what a forward pass keeps for its backward pass: about 3 where a gradient is
        differentiated again (measured on SmolLM2-135M: 3.2 by `hutchinson`, 2.7 by `gauss-newton`)."""
        again = self.trace == "gauss-newton" or (self.trace == "hutchinson" and self.products != "finite-differences")
        return 3.0 if again else 1.0

    @property
    def key(self) -> str:
        """For the names of units of work."""
        return f"{self.trace}-{self.blocks}"

    @property
    def tells_tensors(self) -> bool:
        """Whether a sample tells the traces of single tensors; of layers, `blocks` 'layer' does too."""
        return self.trace != "taylor" or self.blocks == "tensor"
