"""The pieces of HTML that the report is made of; every string is escaped on its way in."""

from collections.abc import Iterable, Mapping
from html import escape


class Markup(str):
    """Text that is already HTML; every other string is escaped on its way into the page."""


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table that scrolls sideways where it is too wide."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(rows: Mapping[str, str]) -> str:
    """Names and what they are, as a definition list."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{html(value)}</dd>" for name, value in rows.items()) + "</dl>"


def section(title: str, body: str) -> str:
    """A card with a title; `body` is HTML."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def details(summary: str, body: str) -> str:
    """HTML that is folded away under a summary."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def note(text: str) -> str:
    """A paragraph in small print; `text` is escaped."""
    return f'<p class="note">{escape(text)}</p>'


def badge(status: str) -> Markup:
    """A status in its colour."""
    return Markup(f'<span class="badge {escape(status)}">{escape(status)}</span>')


def html(text: str) -> str:
    """A string escaped, and Markup as it is."""
    return text if isinstance(text, Markup) else escape(text)
