"""An audit on the page and in the terminal: four verdicts with their evidence, rays and orbits side by side."""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from villani.commands.audit.record import (
    AuditRecord,
    FlatRecord,
    OrbitRecord,
    OutcomeRecord,
    RayRecord,
    ReplayRecord,
    SkippedRecord,
    SlabRecord,
    StepRecord,
    ThresholdRecord,
)
from villani.commands.constants import page as theory
from villani.outwards import UNAVAILABLE, upper
from villani.report import figures
from villani.report.elements import badge, facts, note, section, table
from villani.report.figures import (
    NEGATIVE,
    POSITIVE,
    REMAINDER,
    TOTAL,
    UNRESOLVED,
    SignedLog,
    curve,
    themed,
)
from villani.report.numbers import format_count, format_interval, format_number, format_uncertain
from villani.report.origin import origin_rows

CRITERIA = {
    "smoothness": "(i) F is smooth",
    "growth": "(ii) F grows at least quadratically",
    "tails": "(iii) exp(−2F/s) has Gaussian tails",
    "differential_growth": "(iv) Ψ_s → ∞ for every s > 0",
}
_PALETTE = (TOTAL, POSITIVE, REMAINDER, "#a78bfa", "#ec4899", "#14b8a6", "#eab308")
_SHOWN = 12  # orbits in the picture
_LISTED = 40  # rows of a table
_NAMED = 4  # tensors in a cell


def outcomes(record: AuditRecord) -> dict[str, OutcomeRecord]:
    """The verdict of every criterion, under its name."""
    found = (record.smoothness, record.growth, record.tails, record.differential_growth)
    return dict(zip(CRITERIA.values(), found, strict=True))


def headline(record: AuditRecord | ReplayRecord) -> str:
    """One sentence a practitioner understands."""
    if isinstance(record, ReplayRecord):
        return "The witness refutes again." if record.reproduced else "The witness does not refute again."
    refuted = [name.split(" ")[0] for name, outcome in outcomes(record).items() if outcome.verdict == "refuted"]
    where = f"λ = {format_number(record.objective.weight_decay)}"
    if not refuted:
        known = "all four criteria hold" if record.villani else "no criterion is refuted, and not all are proved"
        return f"Whether F is a Villani function at {where}: {known}."
    return f"F is not a Villani function at {where}: {_listed(refuted)} {'is' if len(refuted) == 1 else 'are'} refuted."


def findings(record: AuditRecord | ReplayRecord) -> dict[str, str]:
    """Title → paragraph."""
    if isinstance(record, ReplayRecord):
        return {f"{i}": sentence for i, sentence in enumerate(record.sentences, 1)}
    found = {
        f"{name}: {outcome.verdict}": f"{_sentence(outcome.reason)}{_more(record, key)}"
        for key, (name, outcome) in zip(CRITERIA, outcomes(record).items(), strict=True)
    }
    if record.spectral_gap:
        found["What still holds without (iv)"] = record.spectral_gap.text
    found["Why rays look fine"] = _rays_words(record)
    found |= {f"What would rescue (iv): {rescue.name}": rescue.text for rescue in record.rescues}
    if record.constants:
        found["Constants"] = record.constants.points[0].sentence
    return found


def _more(record: AuditRecord, key: str) -> str:
    if key == "smoothness" and record.smoothness.verdict == "holds":
        norms = record.smoothness_evidence.normalisations
        text = f" {record.smoothness_evidence.operations} operations were examined."
        if norms:
            least = min(norm.eps for norm in norms)
            text += (
                f" {len(norms)} normalisations are smooth only as far as ε allows: with the smallest, "
                f"ε = {format_number(least)}, Jacobians reach {upper(least**-0.5, 3)} and second derivatives "
                f"{upper(1 / least, 3)}, gains apart."
            )
        return text
    if key == "tails" and record.coverage_evidence.log_integral_bound is not None:
        bound = upper(record.coverage_evidence.log_integral_bound, 4)
        return f" log ∫ exp(−2F/s) ≤ {bound} at this s (certified)."
    if key == "differential_growth" and record.differential_growth.verdict == "not refuted":
        return " Finding nothing proves nothing."
    return ""


def _rays_words(record: AuditRecord) -> str:
    rays = record.differential_evidence.rays
    if not rays:
        return "No ray was walked along. Rays cannot decide (iv) either way."
    growing = [ray for ray in rays if ray.psi[-1].value > 0 and ray.psi[-1].value > ray.psi[0].value]
    text = (
        f"On {len(growing)} of {len(rays)} straight rays Ψ grows as far as was looked, "
        "as a function that satisfies (iv) would. Part of that is the exact term λ²‖mθ‖²/s, which is quadratic on "
        "every ray whatever the network. Rays cannot decide (iv): the curves on which it fails bend."
    )
    straight = [ray for ray in rays if ray.direction.startswith("random")]
    if straight:
        fitted = sum(ray.fit.quadratic.value for ray in straight) / len(straight)
        text += (
            f" Along random rays the fitted coefficient of r² is {format_number(fitted, 3)} on average, that of the "
            f"exact term {format_number(straight[0].exact_quadratic, 3)}."
        )
    walk = _walk(record)
    if walk and walk[-1].measured.value < walk[0].measured.value and growing:
        text += (
            f" On the orbit beside them, through the same {'' if not _worst(record).moved else 'or a nearby '}weights "
            f"and with the same loss, Ψ goes from {_value(walk[0])} to {_value(walk[-1])}."
        )
    return text


def pictures(record: AuditRecord | ReplayRecord) -> theory.Pictures:
    """Name → title, figure, caption; rays and orbits stand side by side."""
    if isinstance(record, ReplayRecord):
        return {"orbit": _orbit_picture(record.walk, record.temperature)} if record.walk else {}
    found: theory.Pictures = {}
    evidence = record.differential_evidence
    if evidence.rays:
        found["side-rays"] = (
            "On straight rays: growth",
            _ray_figure(evidence.rays),
            "Ψ at θ + r·u; bars are intervals. The same λ, s, model and text as beside, on fewer groups.",
        )
    if _walk(record):
        found["side-orbit"] = _orbit_picture(_walk(record), record.temperature)
    if any(orbit.threshold.value is not None for orbit in evidence.orbits):
        found["thresholds"] = (
            "Above which s does (iv) fail?",
            _threshold_figure(evidence.orbits, record.temperature),
            "s* of the orbits; a bar reaches up to its confidence bound, (iv) is refuted for every s to the right of "
            "it. Green: confirmed on fresh groups; grey: screened only, after a choice, and no evidence by itself.",
        )
    if evidence.rays:
        found["ray"] = (
            f"Part by part along the ray “{evidence.rays[0].direction}”",
            figures.ray(list(zip(evidence.rays[0].radii, evidence.rays[0].psi, strict=True))),
            "Each part of Ψ by itself; the data-dependent part is Ψ − λ²‖mθ‖²/s + λ·d_m.",
        )
    if record.constants:
        found["constants"] = theory.model_picture(record.constants)
    return found


def _ray_figure(rays: Sequence[RayRecord]) -> go.Figure:
    up = SignedLog(max(abs(psi.value) for ray in rays for psi in ray.psi))
    traces = [
        curve(ray.radii, None, up, ray.direction, _PALETTE[i % len(_PALETTE)], "solid", ray.psi)
        for i, ray in enumerate(rays)
    ]
    figure = themed(traces, 430)
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.2, "x": 0})
    figure.update_xaxes(title="radius r")
    figure.update_yaxes(title="Ψ", zeroline=True, **up.ticks([psi.value for ray in rays for psi in ray.psi]))
    return figure


def _orbit_picture(walk: Sequence[StepRecord], temperature: float) -> tuple[str, go.Figure, str]:
    values = [estimate for step in walk for estimate in (step.measured, step.predicted)]
    up = SignedLog(max(abs(e.value) for e in values))
    across = [math.log2(step.scale) for step in walk]
    figure = themed(
        [
            curve(across, None, up, "predicted from R = 1", UNRESOLVED, "dash", [step.predicted for step in walk]),
            curve(across, None, up, "measured", NEGATIVE, "solid", [step.measured for step in walk]),
        ],
        430,
    )
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.2, "x": 0})
    figure.update_xaxes(title="scale R", tickvals=across, ticktext=[f"{step.scale:g}" for step in walk])
    figure.update_yaxes(title="Ψ", zeroline=True, **up.ticks([e.value for e in values]))
    drift = max(step.loss_change for step in walk)
    loss = "the loss is the same to the last bit" if drift == 0 else f"the loss changes by up to {upper(drift, 1)} nats"
    caption = f"Ψ along the orbit with the smallest s*, at s = {format_number(temperature)}; on all of it {loss}."
    return "On a rescaling orbit: the same loss", figure, caption


def _threshold_figure(orbits: Sequence[OrbitRecord], temperature: float) -> go.Figure:
    shown = [orbit for orbit in orbits if orbit.threshold.value is not None][:_SHOWN]
    values = [max(orbit.threshold.value or 0.0, 1e-12) for orbit in shown]
    reach = [
        max((orbit.threshold.upper or value) - value, 0.0) if orbit.confirmed else 0.0
        for orbit, value in zip(shown, values, strict=True)
    ]
    trace = go.Scatter(
        x=values,
        y=list(range(len(shown))),
        mode="markers",
        marker={"size": 10, "color": [TOTAL if orbit.confirmed else UNRESOLVED for orbit in shown]},
        error_x={
            "type": "data", "symmetric": False, "array": reach, "arrayminus": [0.0] * len(shown), "color": "#7a8494",
            "thickness": 1.6, "width": 5,
        },
        text=[f"{orbit.name}: {_threshold(orbit.threshold)}" for orbit in shown],
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    figure = themed([trace], 150 + 34 * len(shown))
    figure.add_vline(x=temperature, line={"color": REMAINDER, "dash": "dot"}, annotation_text="s of this audit")
    figure.update_xaxes(type="log", title="temperature s", exponentformat="power", nticks=5)
    figure.update_yaxes(
        tickvals=list(range(len(shown))), ticktext=[_short(orbit.name) for orbit in shown],
        range=[len(shown) - 0.4, -0.9], showgrid=False,
    )  # fmt: skip
    return figure


def tables(record: AuditRecord | ReplayRecord) -> str:
    """Sections of tables, as HTML."""
    if isinstance(record, ReplayRecord):
        sections = [section("What was claimed, and what came out", _compared(record))]
        if record.walk:
            sections.append(section("Along the orbit", _walk_table(record.walk)))
        if record.flat:
            sections.append(section("The flat direction", _flat_table([record.flat])))
        if record.slab:
            sections.append(section("Where the loss is bounded", _slab(record.slab)))
        return "".join(sections)
    evidence = record.differential_evidence
    sections = [
        section("The four criteria", facts({name: badge(found.verdict) for name, found in outcomes(record).items()}))
    ]
    if evidence.orbits:
        count = f"{evidence.symmetries}{' symmetries at least' if evidence.skipped else ' symmetries'}"
        sections.append(section(f"Orbits, from {count}", _orbit_table(evidence.orbits)))
    if evidence.skipped:
        sections.append(section("Where symmetries may be missed", _skipped_table(evidence.skipped)))
    if _walk(record):
        body = facts({"orbit": _worst(record).name}) + _walk_table(_walk(record))
        if record.witness:
            body += note(f"To evaluate it again: villani audit --replay RUN/{record.witness}")
        sections.append(section("Along the orbit with the smallest s*", body))
    if evidence.rays:
        sections.append(section("Along rays", _ray_table(evidence.rays)))
    coverage = record.coverage_evidence
    if coverage.flat:
        sections.append(section("Flat directions", _flat_table(coverage.flat)))
    if coverage.slab:
        sections.append(section("Where the loss is bounded", _slab(coverage.slab)))
    if coverage.orbits:
        header = ["orbit", "largest change of the loss", "decayed norm²", "norm²"]
        bounded = [
            [o.name, f"{max(o.changes):.1g}", _run(o.decayed_norms_squared), _run(o.norms_squared)]
            for o in coverage.orbits[:_LISTED]
        ]
        sections.append(section("Orbits to infinity with bounded decay", table(header, bounded)))
    if record.smoothness_evidence.findings:
        found = [[f.operation, f.kind, f.place, f.consequence] for f in record.smoothness_evidence.findings[:_LISTED]]
        header = ["operation", "kind", "where", "what follows"]
        sections.append(section("Operations that are not smooth", table(header, found)))
    if record.smoothness_evidence.normalisations:
        norms = [
            [n.operation, format_number(n.eps), upper(n.jacobian_bound, 3), upper(n.laplacian_bound, 3),
             n.place]
            for n in record.smoothness_evidence.normalisations[:_LISTED]
        ]  # fmt: skip
        header = ["operation", "ε", "Jacobian up to", "second derivatives up to", "where"]
        sections.append(section("Normalisations", table(header, norms)))
    if record.constants:
        sections.append(section("What theory offers", theory.model_table(record.constants)))
    sections.append(section("How it was audited", _how(record)))
    return "".join(sections)


def _orbit_table(orbits: Sequence[OrbitRecord]) -> str:
    rows = [
        [
            orbit.name, orbit.theorem, "fresh groups" if orbit.confirmed else "screened", _threshold(orbit.threshold),
            format_uncertain(orbit.threshold.gradient_norm_squared.value, orbit.threshold.gradient_norm_squared.sem),
            format_uncertain(orbit.threshold.laplacian.value, orbit.threshold.laplacian.sem),
            format_number(orbit.threshold.norm_squared, 4),
            UNAVAILABLE if orbit.threshold.directions is None else format_number(orbit.threshold.directions, 2),
            ", ".join(orbit.moved) or "the given θ",
        ]
        for orbit in orbits[:_LISTED]
    ]  # fmt: skip
    header = [
        "orbit",
        "theorem",
        "measured on",
        "s* (bound)",
        "‖∇_B L‖²",
        "Δ_B L",
        "λ²‖mA‖²",
        "directions of noise",
        "θ",
    ]
    more = f"{len(orbits) - _LISTED} more are in the record. " if len(orbits) > _LISTED else ""
    text = "s* = (λ²‖mA‖² + ‖∇_B L‖²)/Δ_B L with A what grows and B what shrinks; with theorem D no λ helps. A moved θ "
    text += "is what a search led to: (iv) speaks of every θ. Of gradient noise in fewer than 20 directions, "
    text += "(tr Σ)²/tr Σ², the bound is one that holds for any number of them, and wider."
    return table(header, rows) + note(f"{more}{text}")


def _skipped_table(skipped: Sequence[SkippedRecord]) -> str:
    rows = [
        [s.operation, str(s.count), s.reason, s.place, _some(s.tensors) or "what reaches it"] for s in skipped[:_LISTED]
    ]
    text = "The search took these to pass no rescaling. A symmetry that it missed there moves at least one of the "
    text += "tensors named, so that the number of symmetries and the smallest s* are of those found, not of all."
    return table(["operation", "times", "why", "first at", "may hide symmetries of"], rows) + note(text)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _walk_table(walk: Sequence[StepRecord]) -> str:
    rows = [
        [
            f"{step.scale:g}", "the same bits" if step.loss_change == 0 else f"{step.loss_change:.1g}",
            format_uncertain(step.predicted.value, step.predicted.sem), _value(step),
            format_interval(*step.measured.interval),
        ]
        for step in walk
    ]  # fmt: skip
    return table(["R", "change of the loss", "Ψ predicted", "Ψ measured", "interval"], rows)


def _ray_table(rays: Sequence[RayRecord]) -> str:
    rows = [
        [
            ray.direction, format_uncertain(ray.fit.quadratic.value, ray.fit.quadratic.sem),
            format_number(ray.exact_quadratic, 4),
            format_uncertain(ray.data_fit.quadratic.value, ray.data_fit.quadratic.sem),
            format_number(ray.fit.p_value, 2), format_uncertain(ray.psi[-1].value, ray.psi[-1].sem),
        ]
        for ray in rays
    ]  # fmt: skip
    header = [
        "direction",
        "r² coefficient of Ψ",
        "of it exact, λ²‖mu‖²/s",
        "of the data",
        "lack of fit, p",
        "Ψ at the end",
    ]
    return table(header, rows) + note("A small p says that Ψ is no parabola there; a large one proves nothing.")


def _flat_table(flat: Sequence[FlatRecord]) -> str:
    rows = [
        [
            f.tensor, f.kind, f"{f.coordinates:,}", _run(f.steps), ", ".join(f"{c:.1g}" for c in f.changes),
            "; ".join(f.deleted_by) or "the loss never uses it",
        ]
        for f in flat[:_LISTED]
    ]  # fmt: skip
    header = ["tensor", "direction", "entries", "moved by", "change of the loss", "deleted by"]
    return table(header, rows)


def _slab(slab: SlabRecord) -> str:
    names = ", ".join(slab.tensors[:3]) + (f" and {len(slab.tensors) - 3} more" if len(slab.tensors) > 3 else "")
    return facts(
        {
            "tensors": names,
            "coordinates": f"{slab.coordinates:,}",
            "bound on L": f"{upper(slab.bound, 3)} nats per token, all other parameters within {slab.radius:g}",
            "L when moved": f"by {_run(slab.steps)}: {', '.join(f'{loss:.3g}' for loss in slab.losses)}",
        }
    )


def _compared(record: ReplayRecord) -> str:
    rows = {
        "orbit": record.orbit or "none",
        "claimed": _threshold(record.claimed) if record.claimed else "no orbit",
        "found": _threshold(record.found) if record.found else "no orbit",
        "λ, s": f"{format_number(record.weight_decay)}, {format_number(record.temperature)}",
        "seed": str(record.seed),
        "witness": record.witness_checksum,
        "model": record.model.spec,
        "text": record.text.spec,
    }
    return facts(rows)


def _how(record: AuditRecord) -> str:
    design = record.design
    rows = {
        "model": f"{record.model.spec}: {record.model.description}",
        "decay": f"{record.objective.decay}, {record.objective.decayed_parameters:,} of "
        f"{record.objective.parameters:,} parameters",
        "text": f"{record.text.spec}, {format_count(record.text.documents, 'document')}, tokens "
        f"{record.text.token_checksum[:12]}…",
        "groups": f"{design.groups} of {design.sequences} × {design.block} tokens: a third each to choose orbits, to "
        f"lead the search ({design.search} rounds), and to confirm; rays on {design.ray_groups}",
        "probes": f"{design.probes} a group",
    }
    return facts(rows | origin_rows(record.provenance, record.cost))


def limits(record: AuditRecord | ReplayRecord) -> list[str]:
    """What the page does not prove."""
    common = [
        "The criteria are those of the preprint's abstract (arXiv 2605.06599), read as stated there. Its proofs were "
        "not available and may carry hypotheses, such as bounded weights or frozen gains, under which they hold.",
        "A criterion that is refuted breaks the route from it to a guarantee, and not the guarantee: (iv) is "
        "sufficient for a spectral gap, not necessary.",
    ]
    if isinstance(record, ReplayRecord):
        return common
    return [
        *common,
        "That a criterion is not refuted proves nothing. Orbits were sought among the rescalings that the traced loss "
        "shows, at the given θ and at those that the search led to: s* is the smallest found, not the smallest of all.",
        "Bounds of s* hold at their confidence for all confirmed orbits together; those of screened ones do not count.",
        "Certified means proved on the traced graph in real arithmetic; floating point rounds.",
    ]


def _threshold(found: ThresholdRecord) -> str:
    value = "none seen" if found.value is None else format_number(found.value, 3)
    if found.upper is None:
        return f"{value} (no bound)"
    return f"{value} (up to rounding)" if found.level == 1 else f"{value} (< {upper(found.upper, 3)})"


def _worst(record: AuditRecord) -> OrbitRecord:
    return record.differential_evidence.orbits[0]


def _walk(record: AuditRecord) -> Sequence[StepRecord]:
    orbits = record.differential_evidence.orbits
    return orbits[0].walk if orbits else ()


def _value(step: StepRecord) -> str:
    return format_uncertain(step.measured.value, step.measured.sem)


def _run(values: Sequence[float]) -> str:
    return ", ".join(format_number(value, 3) for value in values)


def _short(name: str) -> str:
    return name if len(name) <= 44 else f"{name[:21]}…{name[-21:]}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
