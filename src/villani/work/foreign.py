"""Files that somebody else may have written: data, never instructions, read whole or refused in one line.

Every such file comes in through here. What is wrong with it becomes an `InputError` that names the file and says what
to do with it; nothing in it chooses code, and nothing is unpickled. No torch.
"""

import io
import json
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from villani.errors import InputError, out_of_memory

M = TypeVar("M", bound=BaseModel)
MOST_TEXT = 1 << 28  # bytes of a file of text
_LONGEST = 160  # characters of a reason
_LONGEST_PATTERN = 2000
_REPEATS = 4  # in a pattern that comes from a file: Python's matcher may take time exponential in them
_PANIC = "PanicException"  # of libraries in Rust: no Exception, and of no class that can be imported


@contextmanager
def reading(name: object, remedy: str) -> Iterator[None]:
    """A block that reads a foreign file, and makes one line of whatever goes wrong in it.

    For reading alone: work on what was read stands outside, so that no fault of villani's passes for one of the file.

    Args:
        name: of the file, as the line begins.
        remedy: how the line ends.

    Raises:
        InputError: for any error but an interruption.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        if out_of_memory(error):  # which is no fault of the file
            raise InputError(f"{name}: not enough memory for it: give a smaller one, or a higher ulimit") from error
        raise InputError(f"{name}: {reason(error)}; {remedy}") from error


def reason(error: BaseException) -> str:
    """What an error says, in one short line; its kind where that says more."""
    if isinstance(error, ValidationError):
        return first_problem(error)
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    plain = isinstance(error, ValueError) and text  # which say what is wrong by themselves
    return clipped(text if plain else f"{type(error).__name__} {text}".strip())


def clipped(text: str) -> str:
    """A text of somebody else's, short enough for a line."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def pattern_of(text: str, name: str) -> re.Pattern[str]:
    """A regular expression; whether it may be run unseen is another question.

    Raises:
        InputError: it is none, or longer or deeper than any use of one; `name` begins the line.
    """
    if len(text) > _LONGEST_PATTERN:
        raise InputError(f"{name}: a pattern of {len(text):,} characters; at most {_LONGEST_PATTERN:,} are read")
    try:
        return re.compile(text)
    except re.error as error:
        raise InputError(f"{name} is not a regular expression: {clipped(str(error))}") from None
    except (RecursionError, OverflowError) as error:
        raise InputError(f"{name} is not a regular expression: {reason(error)}") from None


def check_unseen(text: str, name: str) -> None:
    """Refuse a pattern from a file that Python's matcher could spend years on; `name` begins the line.

    Raises:
        InputError: it repeats too much.
    """
    repeats = len(re.findall(r"[*+{?]", text.replace(r"\.", "")))
    if repeats > _REPEATS or re.search(r"\)[*+{]", text):
        raise InputError(f"{name} repeats too much to be run unseen")


def first_problem(error: ValidationError) -> str:
    """The place and the reason of the first thing that does not fit."""
    detail = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return clipped(f"{'.'.join(map(str, detail['loc'])) or 'top level'}: {detail['msg']}")


def read_content(path: Path, most: int, remedy: str) -> bytes:
    """The bytes of a regular file.

    Raises:
        InputError: none there, another kind of file, more than `most` bytes, or not readable.
    """
    with reading(path, remedy):
        if not path.exists():
            raise InputError(f"{path}: no such file; {remedy}")
        if not path.is_file():
            raise InputError(f"{path}: not a file; {remedy}")
        if path.stat().st_size > most:
            raise InputError(f"{path}: larger than {most:,} bytes; {remedy}")
        return path.read_bytes()


def json_value(content: bytes | str) -> Any:
    """What JSON says, to be called within `reading`; twice the same name in an object, NaN and Infinity are refused."""
    return json.loads(content, object_pairs_hook=_once, parse_constant=_no_constant)


def read_json(path: Path, remedy: str) -> Any:
    """The JSON in a file of UTF-8 text.

    Raises:
        InputError: as `read_content`, or not JSON.
    """
    content = read_content(path, MOST_TEXT, remedy)
    with reading(f"{path}: not JSON", remedy):
        return json_value(content)


def read_toml(path: Path, remedy: str) -> dict[str, Any]:
    """The TOML in a file of UTF-8 text.

    Raises:
        InputError: as `read_content`, or not TOML.
    """
    content = read_content(path, MOST_TEXT, remedy)
    with reading(f"{path}: not a TOML file", remedy):
        return tomllib.loads(content.decode())


def validated(kind: type[M], content: Any, name: object, remedy: str) -> M:
    """Content as a typed object.

    Raises:
        InputError: it does not fit.
    """
    with reading(name, remedy):
        return kind.model_validate(content)


def arrays(archive: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz archive, to be called within `reading`."""
    with np.load(io.BytesIO(archive), allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def read_vector(path: Path, remedy: str) -> NDArray[Any]:
    """The (d,) vector of finite floats in an .npy file.

    Raises:
        InputError: none there, or it holds something else.
    """
    with reading(f"{path}: not a vector", remedy):
        if not path.is_file():
            raise InputError(f"{path}: no such file; {remedy}")
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.ndarray) or found.dtype not in (np.float32, np.float64):
            raise ValueError("expected 32-bit or 64-bit floats")
        if not np.isfinite(found).all():
            raise ValueError("an entry is not finite")
        vector: NDArray[Any] = found.reshape(-1)
        return vector


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{clipped(twice)!r} stands there twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
