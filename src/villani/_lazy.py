"""The names that a package offers, read from its stub and imported when they are first used.

A package's `__init__.pyi` is the one place that says which names it has and where they live: type checkers read it, and
so does `attach`. No import of a submodule puts itself in the place of a name, unless the name stands for that submodule
(`from . import …`): `villani.report` is the function, and the folder `report/` is imported by its full name.
"""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any


class _Face(ModuleType):
    """A package whose names stay what its stub says."""

    def __setattr__(self, name: str, value: Any) -> None:
        taken = self.__dict__.get("_taken", frozenset())
        if not (name in taken and isinstance(value, ModuleType)):  # the import system binds submodules to their names
            super().__setattr__(name, value)


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package (PEP 562) from the imports in its stub.

    Args:
        package: its `__name__`.
        file: its `__file__`, beside which the stub lies.
    """
    homes: dict[str, tuple[str, str | None]] = {}  # name → (module, name there, or None for the module itself)
    for node in ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = alias.asname or alias.name
                homes[name] = (f"{package}.{alias.name}", None) if node.module is None else (node.module, alias.name)
    names = sorted(homes)
    sys.modules[package].__dict__["_taken"] = frozenset(n for n, (_, attribute) in homes.items() if attribute)
    sys.modules[package].__class__ = _Face

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, attribute = homes[name]
        value = import_module(module)
        if attribute is not None:
            value = getattr(value, attribute)
        setattr(sys.modules[package], name, value)
        return value

    return __getattr__, lambda: sorted(sys.modules[package].__all__), names
