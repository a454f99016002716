"""The tables of a measurement, on its page and in the terminal."""

from collections.abc import Sequence

from villani.commands.constants.page import model_table
from villani.commands.measure.figures import PART_LABELS, named_parts
from villani.commands.measure.record import MeasurementRecord, TrainingRecord
from villani.outwards import UNAVAILABLE
from villani.report.elements import Folded, Row, Status, code, details, facts, note, section, sections, table
from villani.report.estimates import Columns, interval, rows_of, uncertain
from villani.report.numbers import format_count, format_number
from villani.report.origin import decay_words, origin_rows, text_words
from villani.work.records import Cost, EstimateRecord, PsiRecord

_STATUSES = {
    "certified": "a theorem with proved inputs",
    "statistical": "a theorem with a confidence bound on measured inputs",
    "estimated": "a theorem with measured inputs plugged in",
    "as-claimed": "the preprint's formula, taken at its word",
    "refuted": "contradicted by a lower bound",
}
_STATUS_NOTE = "Status: " + "; ".join(f"{name}: {meaning}" for name, meaning in _STATUSES.items()) + "."


_PSI: Columns = {
    "λ": "weight_decay", "s": "temperature", "Ψ": uncertain, "interval": "interval",
    **{label: f"parts.{name}" for name, label in PART_LABELS.items()}, "status": "status",
}  # fmt: skip
_POINTS: Columns = {
    "direction": lambda point: point.displacement.direction if point.displacement else "the point itself",
    "radius": lambda point: format_number(point.displacement.radius if point.displacement else 0), "loss": "loss",
    "Ψ at the first λ, s": lambda point: uncertain(point.psi[0]) if point.psi else "",
    "seconds": lambda point: format_number(point.cost.seconds, 3) if point.cost else "",
}  # fmt: skip


def tables(
    measured: Sequence[MeasurementRecord], trained: Sequence[TrainingRecord], main: MeasurementRecord | None
) -> str:
    """Sections of tables, as HTML; `main` is the point that is reported."""
    made = ""
    if main:
        made = sections(
            {
                "The five statistics": table(statistic_rows(main)) + note(_STATUS_NOTE),
                "Ψ for each λ and s asked for": table(psi_rows(main)),
                Folded("What theory offers for each λ and s"): model_table(main.constants) if main.constants else "",
                "Every point measured": table(rows_of(measured, _POINTS)) if len(measured) > 1 else "",
                "How it was measured": _how(main),
            }
        )
    return made + "".join(section("Training", _training(record)) for record in trained)


def statistic_rows(record: MeasurementRecord) -> list[Row]:
    """What was sampled, and the two numbers that were not."""
    percent = f"{100 * record.design.confidence:g} % interval"
    estimates: dict[str, EstimateRecord | None] = {
        "L, mean nats per predicted token": record.loss,
        "‖∇L‖², unbiased": record.gradient_norm_squared,
        "‖∇L‖² as a mini-batch reports it (biased)": record.naive_gradient_norm_squared,
        "⟨∇L, mθ⟩": record.gradient_dot_parameters,
        "tr ∇²L": record.hessian_trace,
        "tr of its Gauss–Newton part": record.gauss_newton_trace,
    }
    exact = {
        "‖mθ‖²": format_number(record.decayed_norm_squared),
        "d_m, decayed coordinates": f"{record.objective.decayed_parameters:,}",
    }
    cells = [(name, uncertain(e), interval(e), f"{e.n:,}", e.status) for name, e in estimates.items() if e]
    cells += [(name, value, "no sampling error", "", "certified") for name, value in exact.items()]
    return [
        {"statistic": name, "value ± standard error": value, percent: reach, "groups": n, "status": Status(status)}
        for name, value, reach, n, status in cells
    ]


def psi_table(psi: PsiRecord) -> str:
    """The table beside the sliders; the page rewrites its cells."""
    rows = {"Ψ": psi, **named_parts(psi.parts)}
    return table([{"": name, "value ± error": uncertain(e), "interval": interval(e)} for name, e in rows.items()])


def psi_rows(record: MeasurementRecord) -> list[Row]:
    """Ψ and its parts at every λ and s."""
    return rows_of(record.psi, _PSI)


def _how(record: MeasurementRecord) -> str:
    model, text, design = record.model, record.text, record.design
    context = "" if model.context is None else f", context of {model.context:,} tokens"
    rows = {
        "model": f"{model.spec} ({model.architecture}, {model.dtype}{context}); {model.description}",
        "decay": decay_words(record.objective),
        "text": f"{text_words(text)}: {text.tokens:,} in {format_count(text.blocks, 'block')}; {text.words}",
        "tokens": text.token_checksum, "tokenizer": text.tokenizer,
        "design": f"{design.groups} groups × {design.sequences} sequences × {design.block} tokens, at most "
        f"{design.micro_tokens:,} in a forward pass; trace by {_way(record)}, probes per group: {design.probes}, seed "
        f"{design.seed}",
        "plan": _plan(record),
        "the groups are": "the whole data set: only probes are noise" if record.objective.finite
        else "a sample of the text",
        "intervals": f"{100 * design.confidence:g} %, Student t with {record.degrees_of_freedom:g} degrees of freedom, "
        "jackknife over groups: probes and data together",
        "gradients": f"sketched into {design.sketch:,} buckets" if design.sketch else "kept whole",
        **origin_rows(record.provenance, record.cost),
        "of that": spent(record.cost),
    }  # fmt: skip
    return facts(rows) + _undecayed(record) + _sources(record)


def spent(cost: Cost | None) -> str:
    """On groups, tokens and probes."""
    if cost is None:
        return UNAVAILABLE
    each = format_number(cost.seconds_per_group, 3)
    return f"{each} s per group, {cost.tokens:,} predicted tokens, {cost.probes:,} probes"


def _way(record: MeasurementRecord) -> str:
    design = record.design
    way: str = design.trace
    if way == "taylor":
        way = f"taylor, a probe for {'the whole' if design.blocks == 'whole' else 'each ' + design.blocks}"
    elif way == "hutchinson":
        way = f"hutchinson, {design.products}"
    return f"{way} ({design.trace_reason})" if design.trace_reason else way


def _plan(record: MeasurementRecord) -> str:
    plan = record.plan
    if plan is None:
        return "the design was given"
    wanted = f"{100 * plan.error:.3g} %" if plan.relative else format_number(plan.error)
    others = f"a pilot of {plan.pilot_groups} groups, which count nowhere else,"
    words = (
        f"standard error of {plan.quantity} at most {wanted}; {plan.planned_groups} groups planned from "
        f"{others if plan.pilot_groups else f'the first {plan.start_groups}'} and {record.design.groups} measured; "
        f"deviation between groups {format_number(plan.data_deviation, 3)}, "
        f"of a probe {format_number(plan.probe_deviation, 3)}"
    )
    return f"{words}; {plan.note}" if plan.note else words


def _undecayed(record: MeasurementRecord) -> str:
    tensors = record.objective.undecayed
    if not tensors:
        return note("Every tensor decays.")
    rows = rows_of(tensors, {"tensor": "name", "parameters": "parameters"})
    return details(f"{len(tensors)} tensors that do not decay", table(rows))


def _sources(record: MeasurementRecord) -> str:
    files = [*record.text.sources, *record.text.tokenizer_sources]
    rows = rows_of(files, {"file": "name", "bytes": "bytes", "md5": lambda file: code(file.md5)})
    return details("Files that the text and the tokenizer were read from", table(rows))


def _training(record: TrainingRecord) -> str:
    held = "not measured" if record.held_out_loss is None else f"{format_number(record.held_out_loss)} nats per token"
    return facts(
        {
            "model": f"{record.model.spec} ({record.model.architecture}); {record.model.description}",
            "text": f"{text_words(record.text)}: {record.text.tokens:,}",
            "optimiser": f"{record.optimizer}, learning rate {format_number(record.learning_rate)}, weight decay "
            f"{format_number(record.weight_decay)}, batch {record.batch}, seed {record.seed}",
            "steps": f"{record.steps[-1]:,}" if record.steps else "none",
            "held-out loss": held,
        }
    )
