"""The shell of a page: one HTML file, no network, the answer first. What it says comes from the commands.

Everything is read off the records (and the costs beside them); nothing is measured. Ψ and its interval can be
recomputed in the page for any λ and s, since the five statistics and their covariance depend on neither (THEORY.md §6).
"""

import functools
import json
import re
import zlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import unescape
from importlib import resources
from itertools import chain
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined

from villani.report.elements import Folded, Markup, html
from villani.report.glossary import words_of
from villani.report.plain import drawn, written

Picture = tuple[str, go.Figure | None, str]  # title, figure if there is one, caption
Pictures = Mapping[str, Picture | None]  # by name
_DIGITS = 7  # of numbers in pictures: more than a screen resolves
_MOST_RECORDS = 500_000  # characters of packed records in a page; larger ones lie beside it
_SCRIPTS = {"numbers": "numbers.js", "plot": "plot.js", "behaviour": "page.js"}


@dataclass(frozen=True)
class Section:
    """What a page says of one record, or of records that belong together.

    Attributes:
        headline: the answer in one sentence.
        findings: title → paragraph; an empty one is left out, one whose title is `Folded` is theory.
        pictures: of it. One named `parts` stands beside the sliders; those whose names begin with `side`, or `truth`,
            stand under the answer, or else the first; `constants` is theory.
        tables: HTML.
        limits: what it does not prove.
        live: HTML of the table beside sliders over λ and s, whose cells the page rewrites.
        point: what it recomputes Ψ from: the statistics, their covariance, and where the sliders begin.
        steps: what to do next, a sentence each.
    """

    headline: str
    findings: Mapping[str, str]
    pictures: Pictures
    tables: str
    limits: Sequence[str]
    live: str = ""
    point: dict[str, object] | None = None
    steps: Sequence[str] = ()


def render(title: str, subtitle: str, sections: Sequence[Section], records: Sequence[Any] = ()) -> str:
    """The page as a string of HTML: the first section's answer on top, all others below it.

    Args:
        title: of the page.
        subtitle: the models, and which villani this is.
        sections: what it says.
        records: what can be downloaded from it.
    """
    live, point = next(((s.live, s.point) for s in sections if s.point), ("", None))
    parts = [_part(i, section, point is not None and section.point is point) for i, section in enumerate(sections)]
    figures = {
        picture["id"]: drawn(rounded(json.loads(picture["figure"].to_json())))
        for part in parts
        for picture in part["all"]
    }
    packed = _packed(records)
    content = {
        "title": title, "subtitle": subtitle, "answer": _first(sections[0].headline)[0] if sections else "",
        "parts": parts, "live": Markup(live),
        "steps": [_marked(step) for step in dict.fromkeys(chain.from_iterable(s.steps for s in sections))],
        "limits": [*dict.fromkeys(chain.from_iterable(s.limits for s in sections))],
        "packed": bool(packed), "data": Markup(_json({"figures": figures, "point": point, "records": packed})),
        "hashes": Markup(script_hashes()), "css": Markup(_own("page.css")),
        **{name: Markup(_own(file)) for name, file in _SCRIPTS.items()},
    }  # fmt: skip
    template = _environment().get_template("page.html")
    body = re.sub(r"<(style|script)\b.*?</\1>|<[^>]*>", " ", template.render(content, words=[]), flags=re.DOTALL)
    return template.render(content, words=[*words_of(unescape(body))])


@functools.cache
def script_hashes() -> str:
    """The page's own scripts, as its Content-Security-Policy names them: nothing else runs."""
    texts = ["\n" + _own(file) for file in _SCRIPTS.values()]
    return " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in texts)


@functools.cache
def _own(name: str) -> str:
    return resources.files("villani.report").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _environment() -> Environment:
    made = Environment(loader=PackageLoader("villani.report", ""), autoescape=True, undefined=StrictUndefined)
    made.finalize = lambda value: Markup(html(value)) if type(value) is str else value
    return made


def _part(index: int, section: Section, sliders: bool) -> dict[str, Any]:
    """A section as the template has it."""
    pictures = [
        {
            "id": f"{index}-{name}" if index else name, "name": name, "title": written(picture[0]),
            "caption": written(picture[2]), "figure": picture[1], "wide": name in ("grid", "truth"),
        }
        for name, picture in section.pictures.items()
        if picture and picture[1]
    ]  # fmt: skip
    shown = [p for p in pictures if p["name"] not in ("parts", "constants")]
    lead = [p for p in shown if p["name"].startswith(("side", "truth"))] or shown[: 0 if sliders else 1]
    answer, more = _first(section.headline)
    findings = [(title, text) for title, text in section.findings.items() if text]
    return {
        "all": pictures if sliders else [p for p in pictures if p["name"] != "parts"],
        "headline": answer, "more": more, "sliders": sliders, "lead": lead,
        "findings": [pair for pair in findings if not isinstance(pair[0], Folded)],
        "pictures": [p for p in shown if p not in lead], "tables": Markup(section.tables),
        "theory": [pair for pair in findings if isinstance(pair[0], Folded)],
        "theory_pictures": [p for p in pictures if p["name"] == "constants"],
    }  # fmt: skip


def _first(text: str) -> tuple[str, str]:
    """The first sentence, and the rest."""
    first, mark, rest = re.sub(r"\. (?=[A-Z])", ".\0", text, count=1).partition("\0")
    return first, rest if mark else ""


def _marked(step: str) -> Markup:
    """A sentence whose commands stand between backticks."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", html(step)))


def rounded(value: Any) -> Any:
    """Plain JSON values with fewer digits."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return {key: rounded(one) for key, one in value.items()} if isinstance(value, dict) else value


def _packed(records: Sequence[Any]) -> str:
    """Records as JSON, deflated, in base 64; nothing where that is too long for a page."""
    text = json.dumps([record.model_dump(mode="json") for record in records], ensure_ascii=False)
    packed = b64encode(zlib.compress(text.encode(), 9)).decode() if records else ""
    return packed if len(packed) <= _MOST_RECORDS else ""


def _json(content: object) -> str:
    """JSON that cannot end the <script> element that it stands in; U+2028 and U+2029 are escaped as not ASCII."""
    text = json.dumps(content, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
