"""Strings of records stay text in pictures: plotly reads tags, entities, formulas and templates in most strings.

Before a picture is made, characters that plotly would read as more than themselves are replaced, in every string of the
record, by stand-ins; in what comes out, stand-ins become entities where plotly draws, and themselves again elsewhere.
So markup in a picture is the package's own, wherever a record's string went on the way.
"""

from typing import Any, TypeVar

from pydantic import BaseModel

T = TypeVar("T")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;", "$": "&#36;", "%": "&#37;"}
_STAND_INS = {character: chr(0xE000 + index) for index, character in enumerate(_ENTITIES)}  # of Unicode's private use
_GUARD = str.maketrans(_STAND_INS | dict.fromkeys(_STAND_INS.values(), "\ufffd"))
_DRAWN = str.maketrans({_STAND_INS[character]: entity for character, entity in _ENTITIES.items()})
_WRITTEN = str.maketrans({stand_in: character for character, stand_in in _STAND_INS.items()})


def guarded(value: T) -> T:
    """A record, or a part of one, with stand-ins in all its strings."""
    return _mapped(value, _GUARD)  # type: ignore[no-any-return]


def drawn(specification: Any) -> Any:
    """A figure as plain JSON values, with entities for stand-ins."""
    return _mapped(specification, _DRAWN)


def written(text: str) -> str:
    """A title or caption without stand-ins; not escaped."""
    return text.translate(_WRITTEN)


def _mapped(value: Any, table: dict[int, Any]) -> Any:
    if isinstance(value, str):
        return value.translate(table)
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return value.model_copy(update={name: _mapped(getattr(value, name), table) for name in fields})
    if isinstance(value, list):
        return [_mapped(one, table) for one in value]
    if isinstance(value, tuple):
        return tuple(_mapped(one, table) for one in value)
    if isinstance(value, dict):
        return {_mapped(key, table): _mapped(one, table) for key, one in value.items()}
    return value
