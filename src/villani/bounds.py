"""Which numbers any command takes: one place, for options, TOML files and witnesses alike.

Wide enough for every use that has a meaning, and narrow enough that no product of two of them overflows, no loop runs
for ever and no library gets a number that it cannot hold. What a command needs beyond that, it checks itself.
"""

import math
import os
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from villani.errors import InputError

SEED = 2**63 - 1
LEAST, MOST = 1e-100, 1e100  # sizes of λ, s, η and the like
_COUNT = 10**9  # of anything that is counted
_LARGEST = {
    "seed": SEED,
    "steps": 10**7,
    "prior_steps": 10**7,
    "candidates": 10**18,  # nothing loops over them
    "threads": max(64, 4 * (os.cpu_count() or 1)),
}
_FREE = {"parameters"}  # of a potential: its own domain says which


def check_bounds(settings: BaseModel) -> None:
    """Refuse a number that no command can use, in the settings of any command.

    Raises:
        InputError: an integer out of range, or a float that is not finite, or too large or small; by the field's name.
    """
    for name in type(settings).model_fields:
        _check(name, getattr(settings, name))


def check_number(name: str, value: float) -> None:
    """As `check_bounds`, one number by its name."""
    _check(name, value)


def _check(name: str, value: Any) -> None:
    if isinstance(value, BaseModel):
        for inner in type(value).model_fields:
            _check_named(f"{name}.{inner}", inner, getattr(value, inner))
    else:
        _check_named(name, name, value)


def _check_named(shown: str, name: str, value: Any) -> None:
    if isinstance(value, BaseModel):
        _check(shown, value)
    elif isinstance(value, list | tuple):
        for one in value:
            _check_named(shown, name, one)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            _check_named(f"{shown} {key}", name, one)
    elif isinstance(value, int) and not isinstance(value, bool):
        largest = _LARGEST.get(name, _COUNT)
        if value > largest or value < -largest:
            raise InputError(f"{shown}={_short(value)}: expected at most {largest}")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{shown}={value:g}: expected a finite number")
        if value and name not in _FREE and not LEAST <= abs(value) <= MOST:
            raise InputError(f"{shown}={value:g}: expected 0, or a size between {LEAST:g} and {MOST:g}")


def _short(value: int) -> str:
    """A whole number for a message; Python prints none of more than 4,300 digits."""
    if abs(value) < 10**18:
        return str(value)
    return f"{'-' if value < 0 else ''}about 10^{math.floor(math.log10(abs(value)))}"
