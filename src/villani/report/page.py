"""The shell of a page: one HTML file, no network, the answer first. What it says comes from the commands.

Everything is read off the records (and the costs beside them); nothing is measured. Ψ and its interval can be
recomputed in the page for any λ and s, since the five statistics and their covariance depend on neither (THEORY.md §6).
"""

import functools
import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from importlib import resources

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from villani.report.plain import drawn, written

Picture = tuple[str, go.Figure | None, str]  # title, figure if there is one, caption
Pictures = Mapping[str, Picture | None]  # by name


@dataclass(frozen=True)
class Section:
    """What a page says of one record, or of records that belong together.

    Attributes:
        headline: the answer in one sentence.
        findings: title → paragraph; an empty one is left out.
        pictures: of it; one named `parts` stands beside the sliders.
        tables: HTML.
        limits: what it does not prove.
        live: HTML of the table beside sliders over λ and s, whose cells the page rewrites.
        point: what it recomputes Ψ from: the statistics, their covariance, and where the sliders begin.
    """

    headline: str
    findings: Mapping[str, str]
    pictures: Pictures
    tables: str
    limits: Sequence[str]
    live: str = ""
    point: dict[str, object] | None = None


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page as a string of HTML: the first section's answer on top, all others below it."""
    pictures = {
        f"{i}-{name}" if i else name: (picture[0], picture[1], picture[2])
        for i, section in enumerate(sections)
        for name, picture in section.pictures.items()
        if picture and picture[1]
    }
    live, point = next(((s.live, s.point) for s in sections if s.point), ("", None))
    limits = dict.fromkeys(limit for s in sections for limit in s.limits)
    filled = {
        "title": escape(title),
        "subtitle": escape(subtitle),
        "verdict": _verdict(sections[0]) if sections else "This run holds no record.",
        "slider_section": "" if point else "hidden",
        "live": live,
        "pictures": _gallery(pictures),
        "tables": "".join(
            f"<section>{_verdict(s)}</section>{s.tables}" if i else s.tables for i, s in enumerate(sections)
        ),
        "limits": "".join(f"<li>{escape(limit)}</li>" for limit in limits),
        "data": _json(
            {
                "figures": {name: drawn(json.loads(figure.to_json())) for name, (_, figure, _) in pictures.items()},
                "point": point,
            }
        ),
        "plotly": _plotly(),
        "scripts": script_hashes(),
    }
    # One pass, so that nothing that comes from a record is ever taken for a placeholder.
    return re.sub(r"\{\{(\w+)\}\}", lambda name: filled[name[1]], _template())


@functools.cache
def script_hashes() -> str:
    """The page's own scripts, as its Content-Security-Policy names them: nothing else runs."""
    scripts = re.findall(r"<script(?![^>]*application/json)[^>]*>(.*?)</script>", _template(), re.DOTALL)
    texts = [text.replace("{{plotly}}", _plotly()) for text in scripts]
    return " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in texts)


@functools.cache
def _template() -> str:
    return resources.files("villani.report").joinpath("template.html").read_text(encoding="utf-8")


@functools.cache
def _plotly() -> str:
    return str(get_plotlyjs()).replace("\r\n", "\n").replace("\r", "\n")  # as a browser reads it before it hashes


def _gallery(pictures: Mapping[str, tuple[str, go.Figure, str]]) -> str:
    """Figures in columns; those whose names begin with `side` stand beside each other above."""
    made = {True: "", False: ""}
    for name, (title, _, caption) in pictures.items():
        made[name.startswith("side")] += _picture(name, title, caption)
    return (f'<div class="beside">{made[True]}</div>' if made[True] else "") + made[False]


def _picture(name: str, title: str, caption: str) -> str:
    if name == "parts":
        return ""
    plot = f'<div class="plot" id="figure-{name}"></div>'
    wide = ' class="wide"' if name in ("grid", "truth") else ""
    above, below = escape(written(title)), escape(written(caption))
    return f"<figure{wide}><h3>{above}</h3>{plot}<figcaption>{below}</figcaption></figure>"


def _verdict(section: Section) -> str:
    said = [(title, text) for title, text in section.findings.items() if text]
    items = "".join(f"<div><h3>{escape(title)}</h3><p>{escape(text)}</p></div>" for title, text in said)
    return f'<p class="headline">{escape(section.headline)}</p><div class="findings">{items}</div>'


def _json(content: object) -> str:
    """JSON that cannot end the <script> element that it stands in; U+2028 and U+2029 are escaped as not ASCII."""
    text = json.dumps(content, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
