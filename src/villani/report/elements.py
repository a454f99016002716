"""The pieces of HTML that the report is made of; every string is escaped on its way in."""

from collections.abc import Mapping, Sequence
from html import escape

Row = Mapping[str, str]  # of a table, on a page or in a terminal: heading → cell


class Markup(str):
    """Text that is already HTML; every other string is escaped on its way into the page."""


class Status(str):
    """A status or verdict, which a page shows in its colour."""


def table(rows: Sequence[Row]) -> str:
    """A table that scrolls sideways where it is too wide, with the headings of its first row; none without rows."""
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{html(cell)}</td>" for cell in row.values()) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def prose(table: str) -> str:
    """A table with a column of sentences."""
    return f'<div class="prose">{table}</div>' if table else ""


def facts(rows: Mapping[str, str]) -> str:
    """Names and what they are, as a definition list."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{html(value)}</dd>" for name, value in rows.items()) + "</dl>"


def sections(bodies: Mapping[str, str]) -> str:
    """Title → HTML, a card each; a title with nothing below it has none."""
    return "".join(section(title, body) for title, body in bodies.items() if body)


def section(title: str, body: str) -> str:
    """A card with a title; `body` is HTML."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def details(summary: str, body: str) -> str:
    """HTML that is folded away under a summary."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def note(text: str) -> str:
    """A paragraph in small print; `text` is escaped."""
    return f'<p class="note">{escape(text)}</p>'


def code(text: str) -> Markup:
    """What machines read."""
    return Markup(f"<code>{escape(text)}</code>")


def html(text: str) -> str:
    """A string escaped, Markup as it is, and a status in its colour."""
    if isinstance(text, Status):
        return f'<span class="badge {escape(text)}">{escape(text)}</span>'
    return text if isinstance(text, Markup) else escape(text)
