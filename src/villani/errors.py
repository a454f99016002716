"""What stops the work without being a bug: bad input, and the loss of another process."""

import math
from numbers import Integral, Real
from typing import Any


class InputError(ValueError):
    """Bad input, told in one line: what was wrong, the value seen, what to do.

    The command line prints the message and exits with 2. Everything else that goes wrong exits with 1.
    """


class LostProcess(BaseException):
    """Another process of a shared run is gone; what was finished is kept. The command line exits with 1.

    Like KeyboardInterrupt it comes at any moment, so that no handler of other errors may take it for its own.
    """

    def __init__(self) -> None:
        super().__init__(
            "another process of this run was lost; what was finished is kept, and the same command resumes"
        )


def check_positive(**named: float) -> None:
    """Refuse numbers that are not finite and > 0, by name."""
    for name, value in named.items():
        if not is_number(value) or not 0 < value < math.inf:
            raise InputError(f"{name}={_shown(value)}: expected a finite number > 0")


def check_nonnegative(**named: float) -> None:
    """Refuse numbers that are not finite and ≥ 0, by name."""
    for name, value in named.items():
        if not is_number(value) or not 0 <= value < math.inf:
            raise InputError(f"{name}={_shown(value)}: expected a finite number ≥ 0")


def check_whole(least: float, **named: Any) -> None:
    """Refuse what is no whole number (Python's or numpy's) or less than `least`, by name."""
    for name, value in named.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise InputError(f"{name}={value!r}: expected a whole number")
        if value < least:
            raise InputError(f"{name}={value}: expected at least {least}")


def _shown(value: Any) -> str:
    return f"{value:g}" if is_number(value) else repr(value)


def is_number(value: Any) -> bool:
    """Whether it is a real number, Python's or numpy's."""
    return isinstance(value, Real) and not isinstance(value, bool)


_MEMORY = ("allocate memory", "out of memory", "bad_alloc", "can't start new thread", "failed to map segment")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused: by Python, by torch's allocator, or to its libraries when they are loaded."""
    if isinstance(error, RuntimeError | ImportError):
        return any(words in str(error) for words in _MEMORY)
    return isinstance(error, MemoryError)


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
