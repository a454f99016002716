"""Rows of a table are the same cells on a page and in a terminal."""

import io
import re
from html import unescape

from rich.console import Console

from villani.report import elements, terminal
from villani.report.elements import Markup, Status

ROWS = [
    {"λ": "0.1", "what": "a <b> & [c]", "status": Status("refuted")},
    {"λ": "1", "what": "—", "status": Status("certified")},
]


def shown(table):
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    return [re.split(r"\s*[│┃]\s*", line.strip())[1:-1] for line in console.file.getvalue().splitlines() if "│" in line]


def cells(html, tag):
    return [unescape(re.sub(r"<[^>]*>", "", cell)) for cell in re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", html)]


def test_a_page_and_a_terminal_show_the_same_cells():
    page = elements.table(ROWS)
    assert cells(page, "th") == [*ROWS[0]]
    assert cells(page, "td") == [cell for row in ROWS for cell in row.values()]
    assert shown(terminal.table(ROWS)) == [[*row.values()] for row in ROWS]


def test_a_terminal_may_leave_columns_out():
    assert shown(terminal.table(ROWS, without=["what"])) == [["0.1", "refuted"], ["1", "certified"]]


def test_strings_are_escaped_and_markup_is_not():
    html = elements.table([{"a": "<i>", "b": Markup("<i>x</i>"), "c": Status("<i>")}])
    assert "<td>&lt;i&gt;</td><td><i>x</i></td>" in html
    assert '<span class="badge &lt;i&gt;">&lt;i&gt;</span>' in html


def test_what_is_empty_has_no_table_and_no_card():
    assert elements.table([]) == elements.prose("") == ""
    assert re.findall(r"<h2>(.*?)</h2>", elements.sections({"One": "1", "None": "", "Two": "2"})) == ["One", "Two"]
