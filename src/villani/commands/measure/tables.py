"""The tables of the page of a measurement."""

from collections.abc import Mapping, Sequence
from html import escape

from villani.commands.constants.page import model_table
from villani.commands.measure.record import MeasurementRecord, TrainingRecord
from villani.report import figures
from villani.report.elements import Markup, badge, details, facts, note, section, table
from villani.report.numbers import format_count, format_interval, format_number, format_uncertain
from villani.work.records import Cost, EstimateRecord, PsiRecord

_STATUSES = {
    "certified": "a theorem with proved inputs",
    "statistical": "a theorem with a confidence bound on measured inputs",
    "estimated": "a theorem with measured inputs plugged in",
    "as-claimed": "the preprint's formula, taken at its word",
    "refuted": "contradicted by a lower bound",
}


def tables(
    measured: Sequence[tuple[int, MeasurementRecord]],
    trained: Sequence[tuple[int, TrainingRecord]],
    costs: Mapping[int, Cost],
    main: tuple[int, MeasurementRecord] | None,
) -> str:
    """Sections of tables, as HTML; pairs are (index in the run, record), and `main` is the point that is reported."""
    sections = []
    if main:
        index, record = main
        sections += [
            section("The five statistics", _statistics(record) + note(_STATUS_NOTE)),
            section("Ψ for each λ and s asked for", _psi_rows(record)),
        ]
        if record.constants:
            sections.append(section("What theory offers for each λ and s", model_table(record.constants)))
        if len(measured) > 1:
            sections.append(section("Every point measured", _points(measured, costs)))
        sections.append(section("How it was measured", _how(record, costs.get(index, record.cost))))
    sections += [section("Training", _training(record, costs.get(index))) for index, record in trained]
    return "".join(sections)


_STATUS_NOTE = "Status: " + "; ".join(f"{name}: {meaning}" for name, meaning in _STATUSES.items()) + "."


def named_statistics(record: MeasurementRecord) -> dict[str, EstimateRecord]:
    """What was sampled, under the names that people read, in the terminal and on the page."""
    rows = {
        "L, mean nats per predicted token": record.loss,
        "‖∇L‖², unbiased": record.gradient_norm_squared,
        "‖∇L‖² as a mini-batch reports it (biased)": record.naive_gradient_norm_squared,
        "⟨∇L, mθ⟩": record.gradient_dot_parameters,
        "tr ∇²L": record.hessian_trace,
    }
    if record.gauss_newton_trace:
        rows["tr of its Gauss–Newton part"] = record.gauss_newton_trace
    return rows


def _statistics(record: MeasurementRecord) -> str:
    rows: list[list[str]] = [
        [name, format_uncertain(e.value, e.sem), format_interval(*e.interval), f"{e.n:,}", badge(e.status)]
        for name, e in named_statistics(record).items()
    ]
    exact = badge("certified")
    rows.append(["‖mθ‖²", format_number(record.decayed_norm_squared), "no sampling error", "", exact])
    rows.append(
        ["d_m, decayed coordinates", f"{record.objective.decayed_parameters:,}", "no sampling error", "", exact]
    )
    percent = f"{100 * record.design.confidence:g} % interval"
    return table(["statistic", "value ± standard error", percent, "groups", "status"], rows)


def psi_table(psi: PsiRecord) -> str:
    """The table beside the sliders; the page rewrites its cells."""
    rows = [
        [name, format_uncertain(e.value, e.sem), format_interval(*e.interval)]
        for name, e in {"Ψ": psi, **figures.named_parts(psi.parts)}.items()
    ]
    return table(["", "value ± error", "interval"], rows)


def _psi_rows(record: MeasurementRecord) -> str:
    header = ["λ", "s", "Ψ", "interval", *figures.PART_LABELS.values(), "status"]
    rows = [
        [
            format_number(psi.weight_decay),
            format_number(psi.temperature),
            format_uncertain(psi.value, psi.sem),
            format_interval(*psi.interval),
            *[format_uncertain(part.value, part.sem) for part in figures.named_parts(psi.parts).values()],
            badge(psi.status),
        ]
        for psi in record.psi
    ]
    return table(header, rows)


def _points(measured: Sequence[tuple[int, MeasurementRecord]], costs: Mapping[int, Cost]) -> str:
    rows = []
    for index, record in measured:
        where = record.displacement
        psi = record.psi[0] if record.psi else None
        cost = costs.get(index, record.cost)
        rows.append(
            [
                where.direction if where else "the point itself",
                format_number(where.radius) if where else "0",
                format_uncertain(record.loss.value, record.loss.sem),
                f"{format_uncertain(psi.value, psi.sem)}" if psi else "",
                format_number(cost.seconds, 3) if cost else "",
            ]
        )
    return table(["direction", "radius", "loss", "Ψ at the first λ, s", "seconds"], rows)


def _how(record: MeasurementRecord, cost: Cost | None) -> str:
    model, text, design, objective = record.model, record.text, record.design, record.objective
    groups = "the whole data set: only probes are noise" if objective.finite else "a sample of the text"
    rows = {
        "Model": f"{model.spec} ({model.architecture}, {model.dtype}); {model.description}",
        "Parameters": f"{objective.parameters:,}, of which {objective.decayed_parameters:,} decay",
        "Text": f"{text.spec}: {format_count(text.documents, 'document')}, {text.tokens:,} tokens, "
        f"{format_count(text.blocks, 'block')}",
        "Blocks": text.words,
        "Tokenizer": text.tokenizer,
        "Design": f"{design.groups} groups × {design.sequences} sequences × {design.block} tokens, trace by "
        f"{_way(record)}, probes per group: {design.probes}, seed {design.seed}",
        "Plan": _plan(record, cost),
        "The groups are": groups,
        "Intervals": f"{100 * design.confidence:g} %, Student t with {record.degrees_of_freedom:g} degrees of freedom, "
        "jackknife over groups: probes and data together",
        "Gradients": f"sketched into {design.sketch:,} buckets" if design.sketch else "kept whole",
        "Decay": objective.decay,
        "Context": "unbounded" if model.context is None else f"{model.context:,} tokens",
        "Forward pass": f"at most {design.micro_tokens:,} tokens",
        "Cost": _cost(cost),
        "Command": Markup(f"<code>{escape(record.provenance.command)}</code>"),
        "Machine": f"{record.provenance.device}, {record.provenance.threads} threads",
        "Versions": ", ".join(f"{name} {version}" for name, version in record.provenance.versions.items()),
        "Checksum of θ": Markup(f"<code>{escape(record.provenance.parameter_checksum)}</code>"),
        "Checksum of tokens": Markup(f"<code>{escape(text.token_checksum)}</code>"),
    }
    return facts(rows) + _undecayed(record) + _sources(record)


def _way(record: MeasurementRecord) -> str:
    design = record.design
    if design.trace == "taylor":
        return f"taylor, a probe for {'the whole' if design.blocks == 'whole' else 'each ' + design.blocks}"
    return design.trace if design.trace != "hutchinson" else f"hutchinson, {design.products}"


def _plan(record: MeasurementRecord, cost: Cost | None) -> str:
    plan = record.plan
    if plan is None:
        return "the design was given"
    wanted = f"{100 * plan.error:.3g} %" if plan.relative else format_number(plan.error)
    words = (
        f"standard error of {plan.quantity} at most {wanted}; {plan.planned_groups} groups planned from a pilot of "
        f"{plan.pilot_groups} groups, which count nowhere else, and {record.design.groups} measured; deviation between "
        f"groups {format_number(plan.data_deviation, 3)}, of a probe {format_number(plan.probe_deviation, 3)}"
    )
    if cost and cost.predicted_seconds and cost.pilot_seconds is not None:
        took = cost.seconds - cost.pilot_seconds
        words += f"; predicted {cost.predicted_seconds:.3g} s, took {took:.3g} s, pilot {cost.pilot_seconds:.3g} s"
    return f"{words}; {plan.note}" if plan.note else words


def _undecayed(record: MeasurementRecord) -> str:
    tensors = record.objective.undecayed
    if not tensors:
        return note("Every tensor decays.")
    rows = [[tensor.name, f"{tensor.parameters:,}"] for tensor in tensors]
    return details(f"{len(tensors)} tensors that do not decay", table(["tensor", "parameters"], rows))


def _sources(record: MeasurementRecord) -> str:
    files = [*record.text.sources, *record.text.tokenizer_sources]
    rows = [[file.name, f"{file.bytes:,}", Markup(f"<code>{escape(file.md5)}</code>")] for file in files]
    return details("Files that the text and the tokenizer were read from", table(["file", "bytes", "md5"], rows))


def _training(record: TrainingRecord, cost: Cost | None) -> str:
    held_out = (
        "not measured" if record.held_out_loss is None else f"{format_number(record.held_out_loss)} nats per token"
    )
    return facts(
        {
            "Model": f"{record.model.spec} ({record.model.architecture}); {record.model.description}",
            "Text": f"{record.text.spec}: {record.text.tokens:,} tokens",
            "Optimiser": f"{record.optimizer}, learning rate {format_number(record.learning_rate)}, weight decay "
            f"{format_number(record.weight_decay)}, batch {record.batch}, seed {record.seed}",
            "Steps": f"{record.steps[-1]:,}" if record.steps else "none",
            "Held-out loss": held_out,
            "Cost": _cost(cost),
        }
    )


def _cost(cost: Cost | None) -> str:
    if cost is None:
        return "not recorded"
    return (
        f"{format_number(cost.seconds, 3)} s ({format_number(cost.seconds_per_group, 3)} s per group), "
        f"{format_number(cost.peak_memory_bytes / 2**20, 3)} MiB at the peak, "
        f"{cost.tokens:,} tokens, {cost.probes:,} probes"
    )
