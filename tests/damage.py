"""Damage to files, byte by byte and structure by structure, from a seed: what tests and the longer campaign both do."""

import contextlib
import copy
import json
import random
import sqlite3
from pathlib import Path
from typing import Any

VALUES: list[Any] = [
    None, True, -1, 0, 1, 7, 0.5, -1e300, 1e-300, 2**70, float("nan"), float("inf"), "", "x", "../../etc/passwd",
    "<script>x</script>", "é\x00\x1b[2J\n", "1e5", [], {}, [[]], [None], [1, 2, 3], {"x": 1},
]  # fmt: skip


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, cut out, repeated or put in; or the end cut off."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(len(found) + 1)
        length = rng.choice((1, 1, 4, 64))
        match rng.randrange(5):
            case 0:
                found[place : place + length] = rng.randbytes(min(length, len(found) - place))
            case 1:
                del found[place : place + length]
            case 2:
                found[place:place] = rng.randbytes(length)
            case 3:
                found[place:place] = found[: place + length][-length:]
            case 4:
                if rng.random() < 0.3:
                    del found[place:]
    return bytes(found)


def damaged_value(value: Any, rng: random.Random, values: list[Any] | None = None) -> Any:
    """A copy of JSON-like data in which one or two things are replaced, dropped, repeated or moved."""
    found = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 2))):
        places = list(_places(found))
        parent, key = rng.choice(places)
        match rng.randrange(5):
            case 0 | 1:
                parent[key] = copy.deepcopy(rng.choice(values or VALUES))
            case 2 if parent is not found:
                del parent[key]
            case 3:
                other, name = rng.choice(places)
                parent[key] = copy.deepcopy(other[name])
            case _ if isinstance(parent[key], list) and parent[key]:
                parent[key].append(copy.deepcopy(parent[key][0]))
            case _:
                parent[key] = [parent[key]]
    return found[0]


def _places(parent: Any) -> Any:
    """(container, key) of everything in nested data."""
    for key in list(parent) if isinstance(parent, dict) else range(len(parent)):
        yield parent, key
        if isinstance(parent[key], dict | list):
            yield from _places(parent[key])


def damaged_json(text: str, rng: random.Random, values: list[Any] | None = None) -> str:
    """JSON with a damaged structure, or nested without end, or with a name twice."""
    whole = json.dumps(damaged_value(json.loads(text), rng, values))
    match rng.randrange(12):
        case 0:
            depth = rng.choice((200, 900, 100_000))
            return whole.replace(":", ":" + "[" * depth, 1)
        case 1:
            return whole.replace("{", '{"kind": 1, "kind": 2, ', 1)
        case _:
            return whole


def damage_ledger(file: Path, rng: random.Random) -> None:
    """Rows or tables of a ledger changed by whoever can open a database; or its bytes."""
    if rng.random() < 0.4:
        file.write_bytes(damaged_bytes(file.read_bytes(), rng))
        return
    connection = sqlite3.connect(file)
    with contextlib.suppress(sqlite3.Error), contextlib.closing(connection):
        column = rng.choice(("key", "arrays", "seconds", "peak_memory_bytes", "checksum"))
        value = rng.choice((None, -1, 0, 1e400, float("nan"), "x", b"", b"PK\x03\x04", rng.randbytes(40), 2**60))
        [(row,)] = connection.execute("SELECT rowid FROM units ORDER BY random() LIMIT 1").fetchall()
        match rng.randrange(6):
            case 0 | 1 | 2:
                connection.execute(f"UPDATE units SET {column} = ? WHERE rowid = ?", (value, row))
            case 3:
                connection.execute("DELETE FROM settings")
            case 4:
                change = ("UPDATE settings SET value = ?", "UPDATE settings SET name = ?")
                connection.execute(rng.choice(change), (str(value),))
            case 5:
                tables = ("DROP TABLE units", "DROP TABLE settings", "ALTER TABLE units DROP COLUMN seconds")
                more = ("CREATE VIEW v AS SELECT * FROM units", "ALTER TABLE units ADD COLUMN x")
                connection.execute(rng.choice(tables + more))
        connection.commit()
