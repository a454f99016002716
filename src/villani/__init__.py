"""villani: what weight decay does to a Transformer's loss landscape, and which guarantees really follow.

The names are those of `__init__.pyi`; each is imported when it is first used, so that `villani.theory` and `--help` do
not wait for torch.
"""

from villani._lazy import attach

__version__ = "0.1.0"

__getattr__, __dir__, _names = attach(__name__, __file__)
__all__ = [*_names, "__version__"]
