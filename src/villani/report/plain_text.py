"""What is written where the output's encoding has no Greek: Ψ as Psi, ² as ^2; in JSON, escapes that mean the same."""

import codecs
import json
import re
import sys
import unicodedata
from typing import TextIO

from pydantic import BaseModel

_HANDLER = "villani.report.plain_text"
_SIGNS = {
    "−": "-", "–": "-", "—": "-", "·": "*", "×": "x", "⊙": "*", "±": "+-", "≥": ">=", "≤": "<=", "≠": "!=", "≈": "~",
    "→": "->", "←": "<-", "↦": "->", "↑": "up", "↓": "down", "∞": "inf", "∇": "grad ", "∂": "d", "√": "sqrt",
    "∫": "int ", "∈": "in", "∝": "~", "‖": "||", "⟨": "<", "⟩": ">", "ℓ": "l", "…": "...", "′": "'", "″": "''",
    "⪰": ">=", "“": '"', "”": '"', "‘": "'", "’": "'", "µ": "micro", "§": "section ",
    "½": "1/2", "¼": "1/4", "¾": "3/4", "⅔": "2/3",
}  # fmt: skip


def in_ascii(character: str) -> str:
    """A character in ASCII: by a table, by the name of a Greek letter, or without its accent; else a question mark."""
    if character in _SIGNS:
        return _SIGNS[character]
    greek = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", unicodedata.name(character, ""))
    if greek:
        name = greek[2].lower().replace("lamda", "lambda")
        return name if greek[1] == "SMALL" else name.capitalize()
    kind = unicodedata.decomposition(character).partition(">")[0]
    mark = {"<super": "^", "<sub": "_"}.get(kind, "")
    simple = unicodedata.normalize("NFKD", character).replace("−", "-").encode("ascii", "ignore").decode()
    return mark + simple if simple else "" if unicodedata.combining(character) else "?"


def degrade(*streams: TextIO) -> None:
    """Let streams write what their encoding lacks in ASCII, where they would fail."""
    codecs.register_error(_HANDLER, _replace)
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_HANDLER)


def print_json(record: BaseModel) -> None:
    """A record on stdout, in one line."""
    text = record.model_dump_json()
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = re.sub(r"[^\x00-\x7f]", lambda found: json.dumps(found[0])[1:-1], text)
    sys.stdout.write(text + "\n")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = "".join(map(in_ascii, error.object[error.start : error.end])).replace(" ^", "^")
    return re.sub(r"(?<=[\^_][0-9+-])[\^_]", "", text), error.end  # one sign for a power of several digits
