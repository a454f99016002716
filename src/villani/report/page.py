"""The report of a run: one HTML file, no network, verdict first.

Everything here is read off the records (and the costs beside them); nothing is measured. Ψ and its interval can be
recomputed in the page for any λ and s, since the five statistics and their covariance depend on neither (THEORY.md §6).
"""

import functools
import json
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from html import escape
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from pydantic import TypeAdapter
from scipy.stats import t as student

from villani.commands.audit import page as auditing
from villani.commands.audit.record import AuditRecord, ReplayRecord
from villani.commands.audit.verdict import findings, headline
from villani.commands.certify import page as certifying
from villani.commands.certify.record import CertificateRecord
from villani.commands.constants import page as theory
from villani.commands.content import RunRecords, read_records
from villani.commands.converge import page as converging
from villani.commands.converge.record import ConvergenceRecord
from villani.commands.paper import page as papers
from villani.commands.paper.record import PaperRecord
from villani.commands.recommend import page as recommending
from villani.commands.recommend.record import RecommendationRecord
from villani.commands.spectrum import page as spectra
from villani.commands.spectrum.record import SpectrumRecord
from villani.errors import InputError
from villani.report import figures
from villani.report.elements import note
from villani.report.plain import drawn, guarded, written
from villani.report.tables import psi_table, tables
from villani.work import foreign
from villani.work.ledger import write_atomically
from villani.work.records import (
    Cost,
    ExactRecord,
    MeasurementRecord,
    ModelConstantsRecord,
    PsiRecord,
    ReferenceRecord,
    TrainingRecord,
)

_PAGES: Mapping[type, ModuleType] = {  # what tells of a record that is not a measurement
    ExactRecord: theory, ReferenceRecord: theory, ModelConstantsRecord: theory,
    AuditRecord: auditing, ReplayRecord: auditing, SpectrumRecord: spectra, ConvergenceRecord: converging,
    CertificateRecord: certifying, RecommendationRecord: recommending, PaperRecord: papers,
}  # fmt: skip


def render(records: RunRecords, costs: Mapping[int, Cost]) -> str:
    """The page as a string of HTML; `costs[i]` belongs to `records.records[i]`."""
    measured = [(i, r) for i, r in enumerate(records.records) if isinstance(r, MeasurementRecord)]
    trained = [(i, r) for i, r in enumerate(records.records) if isinstance(r, TrainingRecord)]
    shown = [(i, r) for i, r in measured if r.psi]
    main = min(shown, key=lambda pair: pair[1].displacement is not None, default=None)
    other = next((i for i, r in enumerate(records.records) if type(r) in _PAGES), None)
    told = None if other is None else _costed(records.records[other], costs.get(other))
    page = None if told is None else _PAGES[type(told)]
    shown_records = [guarded(r) for _, r in measured]
    first = next((g for g, (_, r) in zip(shown_records, measured, strict=True) if main and r is main[1]), None)
    pictures = _pictures(shown_records, [guarded(r) for _, r in trained], first)
    if page:
        pictures |= page.pictures(guarded(told))
    specs = {name: drawn(json.loads(figure.to_json())) for name, (_, figure, _) in pictures.items()}
    filled = {
        "title": escape(records.title),
        "subtitle": escape(_subtitle(records)),
        "verdict": _verdict(main[1] if main else told),
        "slider_section": "" if main else "hidden",
        "live": psi_table(main[1].psi[0]) if main else "",
        "pictures": _gallery(pictures),
        "tables": tables(measured, trained, costs, main) + (page.tables(told) if page else ""),
        "limits": _items(page.limits(told) if page and not main else _LIMITS),
        "data": _json({"figures": specs, "point": _point(main[1]) if main else None}),
        "plotly": _plotly(),
        "scripts": script_hashes(),
    }
    template = _template()
    # One pass, so that nothing that comes from a record is ever taken for a placeholder.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: filled[found[1]], template)


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


def write_report(run: Path) -> Path:
    """Write `run/report.html` from `run/records.json` and, if there is one, `run/cost.json`; returns its path.

    Raises InputError, in one line, if the folder or the records are missing, not JSON, of another schema version, or
    such that no page can be made of them.
    """
    if not run.is_dir():
        raise InputError(f"{run}: no such run directory; give the folder that a villani command wrote.")
    with foreign.reading(f"{run / 'records.json'}: no page can be made of it", "run the measurement again"):
        page = page_of(run)
    write_atomically(run / "report.html", page)
    return run / "report.html"


def page_of(run: Path) -> str:
    """The page of a run as `write_report` writes it, where records are villani's own and a fault in them is a bug."""
    records = read_records(run / "records.json")
    return render(records, _read_costs(run / "cost.json", len(records.records)))


def _read_costs(path: Path, count: int) -> dict[int, Cost]:
    if not path.exists():
        return {}
    remedy = "delete it to go without"
    content = foreign.read_json(path, remedy)
    with foreign.reading(f"{path}: not a table of costs", remedy):
        costs = TypeAdapter(dict[int, Cost]).validate_python(content)
    if stray := [index for index in costs if not 0 <= index < count]:
        raise InputError(
            f"{path}: a cost for record {stray[0]}, but there are {count} records; delete it to go without."
        )
    return costs


# Pictures


def _pictures(
    measured: Sequence[MeasurementRecord], trained: Sequence[TrainingRecord], main: MeasurementRecord | None
) -> dict[str, tuple[str, go.Figure, str]]:
    """Name → title, figure, caption. The one named `parts` stands beside the sliders."""
    found: dict[str, tuple[str, go.Figure | None, str]] = {}
    if main:
        found["parts"] = ("", figures.psi_parts(main.psi[0]), "")
    if main and len(main.psi) > 1:
        found["grid"] = ("Ψ over weight decay and temperature", figures.psi_grid(main.psi), _GRID_CAPTION)
    for i, training in enumerate(trained):
        found[f"training{i}"] = ("Training loss", figures.training_loss(training), "Loss of each logged batch.")
    for i, (direction, points) in enumerate(_rays(measured, main).items()):
        found[f"ray{i}"] = (f"Along the ray “{direction}”", figures.ray(points), _RAY_CAPTION)
    if main:
        if main.constants:
            found["constants"] = theory.model_picture(main.constants)
        found["gradient"] = ("How large is the gradient?", figures.gradient_norms(main), _GRADIENT_CAPTION)
    if main and main.tensors:
        found["layers"] = ("Curvature by layer", figures.layer_traces(main), _LAYER_CAPTION)
        found["tensors"] = ("Where the curvature sits", figures.tensor_traces(main), _TENSOR_CAPTION)
    return {name: (title, figure, text) for name, (title, figure, text) in found.items() if figure is not None}


_LIMITS = (
    "Nothing at infinity. Ψ at a point, or along finitely many rays, neither supports nor contradicts condition (iv).",
    "No mixing rate or generalisation bound follows from these numbers. Where log-Sobolev constants are shown, they "
    "come from the model's shapes and from λ and s, not from what was measured.",
    "That the loss is smooth, condition (i), was not examined here.",
    "Intervals hold one at a time, not all together, and lean on the groups being independent draws; with few groups "
    "they are approximate.",
    "λ is the coefficient of (λ/2)‖mθ‖² in the objective. AdamW is not gradient descent on that objective, so its "
    "weight decay is not this λ (THEORY.md §8), and no temperature s is implied by a learning rate.",
)
_RAY_CAPTION = (
    "Ψ at θ₀ + r·u, at the first λ and s asked for; bars are intervals. Quadratic growth along a ray is mostly the "
    "exact term λ²‖mθ‖²/s, which would be there with any data; the data-dependent part is Ψ − λ²‖mθ‖²/s + λ·d_m. Rays "
    "cannot detect that condition (iv) fails: orbits, curves on which rescaling leaves the loss unchanged, can "
    "(THEORY.md §2.2)."
)
_GRID_CAPTION = "Blue is positive, red negative, stronger is larger (logarithmic); grey: the interval contains 0."
_GRADIENT_CAPTION = (
    "The squared gradient norm that a mini-batch reports, against the unbiased estimate from pairs of independent "
    "groups. The gap is gradient noise. The unbiased figure may fall below zero by chance."
)
_TENSOR_CAPTION = "The tensors with the largest share of tr ∇²L, with intervals; grey: the interval contains 0."
_LAYER_CAPTION = (
    "The trace of each layer's diagonal block of ∇²L, with intervals over groups; a layer is the tensors that have the "
    "same number in their names, and tensors without one are left out."
)


def _rays(
    measured: Sequence[MeasurementRecord], main: MeasurementRecord | None
) -> dict[str, list[tuple[float, PsiRecord]]]:
    """Direction → points at the main λ and s; the undisplaced point is on every ray."""
    if main is None:
        return {}
    origin = [(0.0, main.psi[0])] if main.displacement is None else []
    asked = (main.psi[0].weight_decay, main.psi[0].temperature)
    rays: dict[str, list[tuple[float, PsiRecord]]] = {}
    for record in measured:
        same = [psi for psi in record.psi if (psi.weight_decay, psi.temperature) == asked]
        if record.displacement and same:
            rays.setdefault(record.displacement.direction, list(origin)).append((record.displacement.radius, same[0]))
    return rays


def _gallery(pictures: Mapping[str, tuple[str, go.Figure, str]]) -> str:
    """Figures in columns; those whose names begin with `side` stand beside each other above."""
    made = {name: _picture(name, title, text) for name, (title, _, text) in pictures.items()}
    beside = "".join(text for name, text in made.items() if name.startswith("side"))
    rest = "".join(text for name, text in made.items() if not name.startswith("side"))
    return (f'<div class="beside">{beside}</div>' if beside else "") + rest


def _picture(name: str, title: str, caption: str) -> str:
    if name == "parts":
        return ""
    plot = f'<div class="plot" id="figure-{name}"></div>'
    wide = ' class="wide"' if name in ("grid", "truth") else ""
    above, below = escape(written(title)), escape(written(caption))
    return f"<figure{wide}><h3>{above}</h3>{plot}<figcaption>{below}</figcaption></figure>"


# HTML and JSON


def _costed(record: Any, cost: Cost | None) -> Any:
    return record.model_copy(update={"cost": cost}) if "cost" in type(record).model_fields else record


def _verdict(record: Any) -> str:
    if record is None:
        return note("This run holds no measurement of Ψ yet.")
    if isinstance(record, MeasurementRecord):
        first, rest = headline(record), findings(record)
    else:
        page = _PAGES[type(record)]
        first, rest = page.headline(record), page.findings(record)
    items = "".join(f"<div><h3>{escape(title)}</h3><p>{escape(text)}</p></div>" for title, text in rest.items())
    return f'<p class="headline">{escape(first)}</p><div class="findings">{items}</div>'


def _items(sentences: Iterable[str]) -> str:
    return "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)


def _subtitle(records: RunRecords) -> str:
    models = dict.fromkeys(
        f"{record.model.spec} ({record.model.architecture})"
        for record in records.records
        if not isinstance(record, ExactRecord | ReferenceRecord) and record.model
    )
    return " · ".join([*models, f"villani {records.villani}"])


def _point(record: MeasurementRecord) -> dict[str, object]:
    """What the page needs to recompute Ψ at any λ and s."""
    statistics = (
        record.loss, record.gradient_norm_squared, record.gradient_dot_parameters, record.hessian_trace,
    )  # fmt: skip
    return {
        "statistics": [estimate.value for estimate in statistics],
        "covariance": record.covariance,
        "quantile": _quantile(record),
        "decayedParameters": record.objective.decayed_parameters,
        "decayedNormSquared": record.decayed_norm_squared,
        "weightDecay": record.psi[0].weight_decay,
        "temperature": record.psi[0].temperature,
    }


def _quantile(record: MeasurementRecord) -> float | None:
    """Two-sided Student quantile; 0 where nothing is sampled, None where one group gives no error bar at all."""
    if not any(value for row in record.covariance for value in row):
        return 0.0
    if record.degrees_of_freedom <= 0:
        return None
    return float(student.ppf((1 + record.design.confidence) / 2, record.degrees_of_freedom))


def _json(content: object) -> str:
    """JSON that cannot end the <script> element that it stands in; U+2028 and U+2029 are escaped as not ASCII."""
    text = json.dumps(content, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
