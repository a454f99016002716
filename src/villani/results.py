"""What results have in common: they are equal by content, have a hash, and show, draw and save themselves. No torch.

What they show stands in records and pages, above every folder that makes a result: `commands/results.py` is imported
when it is asked for. Plain content is JSON: arrays are their bytes, so that no bit is lost, and nothing is pickled.
"""

import math
import os
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from villani.errors import InputError

_NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_DTYPES = ("float64", "float32", "int64", "int32", "bool")
_ABOVE = "villani.commands.results"  # imports every folder
LIMITS = {  # laws of intervals → where they are, for `restored`
    "ScaledLimits": "villani.estimate", "TraceLimits": "villani.curvature.limits",
    "SquareLimits": "villani.curvature.limits", "ShareLimits": "villani.curvature.limits",
    "PairedLimits": "villani.choice.paired",
}  # fmt: skip


class Content:
    """A dataclass that is equal to another where all they hold is equal, arrays included; a bool, and a hash."""

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(other) is not type(self):
            return NotImplemented
        return bool(_key(plain(self, whole=False)) == _key(plain(other, whole=False)))

    def __hash__(self) -> int:
        return hash_of(self)

    def __repr__(self) -> str:
        shown = [f"{field.name}={_short(getattr(self, field.name))}" for field in fields(self)]  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(shown)})"


class Shown:
    """What a result tells of itself, in Python and in notebooks."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold, exact; those of the command's record where there is one.

        Numbers that are not finite are None.

        Raises:
            InputError: a result that does not know what it was made of, such as that of an older version.
        """
        made: dict[str, Any] = _above().to_dict(self)
        return made

    def to_dataframe(self) -> Any:
        """A pandas DataFrame of its figures, a row each, with the units that `to_dict` has.

        Raises:
            InputError: pandas is not installed.
        """
        return _above().to_dataframe(self)

    def plot(self, name: str | None = None) -> Any:
        """A picture of its page, as a plotly Figure.

        Args:
            name: which; the first when None.

        Raises:
            InputError: no such picture; the line names those that there are.
        """
        return _above().plot(self, name)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that it holds as JSON, to the last bit; `villani.load` reads it.

        Args:
            path: of the file; one that is there is replaced.

        Raises:
            InputError: the file cannot be written, or the result holds what JSON cannot.
        """
        _above().save(self, path)

    def _repr_html_(self) -> str:
        return str(_above().html_of(self))


class Result(Shown, Content):
    """What a call returns."""


def plain(value: Any, *, whole: bool = True) -> Any:
    """A value as JSON can hold it, without loss; `restored` is its inverse.

    Args:
        value: of None, numbers, texts, arrays, tensors, dataclasses, records, and sequences and mappings of these.
        whole: refuse what cannot be restored; else an object of another kind stands for itself, by its identity.

    Raises:
        InputError: there is something else in it.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic):
        return plain(value.item(), whole=whole)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"number": str(float(value))}
    if isinstance(value, np.ndarray):
        return _bytes(value, str(value.dtype))
    if type(value).__module__.startswith("torch") and hasattr(value, "detach"):
        return _bytes(value.detach().cpu().numpy(), f"torch.{str(value.dtype).removeprefix('torch.')}")
    if is_dataclass(value) and not isinstance(value, type):
        own = {field.name: plain(getattr(value, field.name), whole=whole) for field in fields(value)}
        return own | ({"type": type(value).__name__} if type(value).__name__ in LIMITS else {})
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        items = [(plain(key, whole=whole), plain(one, whole=whole)) for key, one in value.items()]
        return dict(items) if all(isinstance(key, str) for key, _ in items) else [list(item) for item in items]
    if isinstance(value, Sequence):
        return [plain(one, whole=whole) for one in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if whole:
        raise InputError(f"a {type(value).__name__} is no data and cannot be saved; save the other figures one by one")
    return f"{type(value).__qualname__} at {id(value)}"


def hash_of(result: Any) -> int:
    """A hash of all that a result or record holds."""
    return hash((type(result).__name__, _key(plain(result, whole=False))))


def restored(kind: Any, content: Any) -> Any:
    """What `plain` was made of, by the type that it is to have; the content chooses no code.

    Raises:
        ValueError: the content is not of that type.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return content
    if origin in (Union, UnionType):
        return _one_of(inner, content)
    if origin is Literal:
        return _checked(content, any(type(content) is type(one) and content == one for one in inner), kind)
    if kind in (NoneType, None, bool, int, str):
        return _checked(content, type(content) is (NoneType if kind is None else kind), kind)
    if kind is float:
        if isinstance(content, dict) and list(content) == ["number"] and content["number"] in _NUMBERS:
            return _NUMBERS[content["number"]]
        return _checked(content, type(content) in (int, float), kind)
    if (origin or kind) is np.ndarray:
        return _array(content)
    if isinstance(kind, type) and kind.__module__ == "torch" and kind.__name__ == "Tensor":
        torch = import_module("torch")
        return torch.from_numpy(_array(content, "torch."))
    if origin in (tuple, list, Sequence):
        _checked(content, isinstance(content, list), kind)
        fixed = origin is tuple and not (len(inner) == 2 and inner[1] is Ellipsis)
        types = inner if fixed else inner[:1] * len(content)
        made = [restored(each, one) for each, one in zip(types, content, strict=True)]
        return made if origin is list else tuple(made)
    if origin in (dict, Mapping):
        named = isinstance(content, dict) and (inner[0] is str or not content)
        _checked(content, named or (isinstance(content, list) and all(len(pair) == 2 for pair in content)), kind)
        pairs = content.items() if named else content
        return {restored(inner[0], key): restored(inner[1], one) for key, one in pairs}
    if hasattr(kind, "model_validate"):
        return kind.model_validate(content)
    if is_dataclass(kind) or kind.__name__ == "Limits":
        return _dataclass(kind, content)
    raise TypeError(f"{kind} is in no result")


def _dataclass(kind: Any, content: Any) -> Any:
    _checked(content, isinstance(content, dict), kind)
    if kind.__name__ == "Limits":  # which of them, the file says by a name of the table
        name = content.get("type")
        if name not in LIMITS:
            raise ValueError(f"no law of intervals is called {name!r}")
        kind = getattr(import_module(LIMITS[name]), name)
        content = {key: one for key, one in content.items() if key != "type"}
    hints = get_type_hints(kind)
    own = {field.name: field for field in fields(kind)}
    for name in content:
        if name not in own:
            raise ValueError(f"{kind.__name__} has no {name!r}")
    for name, field in own.items():
        if name not in content and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{kind.__name__} lacks {name!r}")
    return kind(**{name: restored(hints[name], one) for name, one in content.items()})


def _one_of(kinds: Sequence[Any], content: Any) -> Any:
    failed: ValueError | None = None
    for kind in sorted(kinds, key=lambda kind: kind is not NoneType):
        try:
            return restored(kind, content)
        except ValueError as error:
            failed = error
    raise failed or ValueError("of no type")


def _checked(content: Any, fits: bool, kind: Any) -> Any:
    if not fits:
        raise ValueError(f"{str(content)[:40]!r} where {getattr(kind, '__name__', kind)} was expected")
    return content


def _bytes(array: Any, dtype: str) -> dict[str, Any]:
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    return {"dtype": dtype, "shape": list(array.shape), "bytes": b64encode(little.tobytes()).decode()}


def _array(content: Any, prefix: str = "") -> Any:
    if not isinstance(content, dict) or set(content) != {"dtype", "shape", "bytes"}:
        raise ValueError(f"{str(content)[:40]!r} where an array was expected")
    dtype = str(content["dtype"])
    if not dtype.startswith(prefix) or dtype.removeprefix(prefix) not in _DTYPES:
        raise ValueError(f"an array of {dtype[:40]!r}")
    own = np.dtype(dtype.removeprefix(prefix))
    flat = np.frombuffer(b64decode(content["bytes"], validate=True), own.newbyteorder("<")).astype(own)
    shape = tuple(restored(list[int], content["shape"]))
    if any(size < 0 for size in shape):
        raise ValueError("an array of negative size")
    return flat.reshape(shape)


def _key(content: Any) -> Any:
    """Plain content as something that has a hash; 1 and 1.0, and 0.0 and −0.0, are the same."""
    if isinstance(content, dict):
        return tuple(sorted((name, _key(one)) for name, one in content.items()))
    return tuple(map(_key, content)) if isinstance(content, list) else content


def _short(value: Any) -> str:
    """A field in a few characters."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{'×'.join(map(str, value.shape)) or 'one'} {value.dtype}"
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 3:
        return f"{len(value)} × {type(value[0]).__name__}"
    text = repr(value)
    if isinstance(value, Mapping) and len(text) > 80:
        return f"{len(value)} named"
    return text if len(text) <= 160 else f"{text[:159]}…"


def told(record: Any) -> str:
    """The record of a command in a line: its kind, and the sentence on top of its page."""
    return f"{type(record).__name__}({_above().headline(record)})"


def numbers() -> Any:
    """`report/numbers.py`, which rounds numbers for people; it lies above, too."""
    return import_module("villani.report.numbers")


def _above() -> Any:
    return import_module(_ABOVE)
