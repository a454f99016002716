"""Files in a folder that others made: they are data, and name no path outside it.

A checkpoint is read through these functions only, so that neither a link nor an index leads anywhere else, a device or
pipe is never opened, and JSON that says the same thing twice, or without end, is refused.
"""

import json
import stat
from pathlib import Path
from typing import Any

from villani.errors import InputError

_MOST = 2**26  # bytes of a JSON file of a checkpoint; the largest index of a published model is below 2²⁴

_DEEPEST = 256  # folders in each other; Python makes them by recursion


def local_path(text: str, what: str) -> Path:
    """What a user wrote as a path, with `~` filled in.

    Raises:
        InputError: `~name` of no such user, or a name longer than file systems allow.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
        if len(path.parts) > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} folders in each other")
    except (OSError, RuntimeError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).rstrip(".").lower()
        raise InputError(f"{what} {shortened(text)!r}: no such path can be ({reason}): check it") from None
    return path


def shortened(text: str, most: int = 80) -> str:
    """A name for a message: its ends, where it is long."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 :]}"


def is_regular(path: Path) -> bool:
    """Whether there is a regular file, at the end of links; not a folder, device, pipe or socket."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def inside(folder: Path, name: str) -> Path:
    """The regular file `name` of a folder.

    Raises:
        InputError: the name or a link leads out of the folder (the hub's cache, where links go to the blobs of the same
            model, excepted), or it is no regular file.
    """
    there = folder.resolve()
    roots = [there]
    if there.parent.name == "snapshots":  # folders of the hub's cache
        roots.append(there.parent.parent / "blobs")
    try:
        path = (there / name).resolve()
    except (OSError, RuntimeError, ValueError):  # a name too long, links in a circle, a NUL
        raise InputError(f"{folder.name}/{shortened(name)}: no such file can be") from None
    if Path(name).is_absolute() or ".." in Path(name).parts or not any(path.is_relative_to(root) for root in roots):
        raise InputError(
            f"{folder.name}/{shortened(name)} leads out of the folder: a checkpoint names files of its own only; copy "
            "the file in if you trust it"
        )
    if not is_regular(path):
        raise InputError(f"{folder.name}/{shortened(name)}: not a regular file")
    return there / name


def json_object(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of a folder.

    Raises:
        InputError: as `inside`; no JSON object, too large or too deep, or a key that is there twice.
    """
    file, place = inside(folder, name), f"{folder.name}/{name}"
    if file.stat().st_size > _MOST:
        raise InputError(f"{place}: {file.stat().st_size:,} bytes, and at most {_MOST:,} are read")
    try:
        content = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_unique, parse_constant=_refused)
    except RecursionError:
        raise InputError(f"{place} cannot be read as JSON: too deeply nested") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{place} cannot be read as JSON: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{place}: expected a JSON object")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} is there twice")
    return found


def _refused(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")
