"""The pieces of HTML that the report is made of; every string is escaped on its way in."""

from collections.abc import Mapping, Sequence
from html import escape

from villani.report.glossary import WORDS
from villani.report.numbers import readable

Row = Mapping[str, str]  # of a table, on a page or in a terminal: heading → cell


class Markup(str):
    """Text that is already HTML; every other string is escaped on its way into the page."""

    def __html__(self) -> str:
        return str(self)  # by which the page's template knows it


class Status(str):
    """A status or verdict, which a page shows in its colour."""


class Folded(str):
    """A title of theory, or of what only some read: what stands below it is folded away."""


def table(rows: Sequence[Row]) -> str:
    """A table that scrolls sideways where it is too wide, with the headings of its first row; none without rows."""
    if not rows:
        return ""
    headings = [*rows[0]]
    head = "".join(f'<th scope="col">{html(heading)}</th>' if heading else "<td></td>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{html(cell)}</td>" for cell in row.values()) + "</tr>" for row in rows)
    name = escape(", ".join(heading for heading in headings[:3] if heading), quote=True)
    return (
        f'<div class="scroll" role="group" tabindex="0" aria-label="table of {name}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def prose(table: str) -> str:
    """A table with a column of sentences."""
    return f'<div class="prose">{table}</div>' if table else ""


def facts(rows: Mapping[str, str]) -> str:
    """Names and what they are, as a definition list."""
    cells = {
        name: value if isinstance(value, Markup) else html(value) if isinstance(value, Status) else escape(value)
        for name, value in rows.items()
    }  # settings and commands stay as they were typed
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{cell}</dd>" for name, cell in cells.items()) + "</dl>"


def sections(bodies: Mapping[str, str]) -> str:
    """Title → HTML, a card each; a title with nothing below it has none."""
    return "".join(section(title, body) for title, body in bodies.items() if body)


def section(title: str, body: str) -> str:
    """A card with a title; `body` is HTML. Where the title is `Folded`, it can be opened."""
    heading = f"<h2>{html(title)}</h2>"
    if isinstance(title, Folded):
        return f"<section><details><summary>{heading}</summary><div>{body}</div></details></section>"
    return f"<section>{heading}{body}</section>"


def details(summary: str, body: str) -> str:
    """HTML that is folded away under a summary."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def note(text: str) -> str:
    """A paragraph in small print; `text` is escaped."""
    return f'<p class="note">{html(text)}</p>'


def muted(text: str) -> Markup:
    """What is there to be complete, and is no evidence."""
    return Markup(f'<span class="muted">{html(text)}</span>')


def code(text: str) -> Markup:
    """What machines read."""
    return Markup(f"<code>{escape(text)}</code>")


def html(text: str) -> str:
    """A string escaped, with powers of ten that people can read; Markup as it is, and a status in its colour."""
    if isinstance(text, Status):
        meaning = f' title="{escape(WORDS[text])}"' if text in WORDS else ""
        return f'<span class="badge {escape(text.replace(" ", "-"))}"{meaning}>{escape(text)}</span>'
    return text if isinstance(text, Markup) else escape(readable(text))
