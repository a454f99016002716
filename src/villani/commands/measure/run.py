"""From a model and a text to a record: what `villani measure` does."""

from dataclasses import replace
from pathlib import Path

from villani.commands.constants.run import constants_beside
from villani.commands.measure.record import DesignRecord, Displacement, MeasurementRecord, PlanRecord
from villani.commands.measure.results import measurement_record
from villani.commands.measure.settings import MeasureSettings
from villani.commands.running import Outcome
from villani.commands.subject import Subject, determining, load_subject, outputs, streaming
from villani.curvature.deflation import Deflation, deflation_from
from villani.curvature.sketch import buckets_for
from villani.curvature.trace import default_way, sampler_for
from villani.curvature.ways import Way
from villani.measurement.measure import SHARING, measure
from villani.measurement.measure_to import MEASURING, PILOTING, measure_to
from villani.measurement.plan import START, repeated
from villani.measurement.target import Target
from villani.objective.evaluation import same_threads
from villani.work.budget import LESS, Needs
from villani.work.records import CONFIDENCE, Cost
from villani.work.work import Work

_VECTORS = 4  # arrays of the size of θ, beside it
_SWEPT = 2  # the same where no gradient is kept
_SUMS = 40.0  # tokens whose gradient takes as long as the sums over θ that every group makes: sketch and products


@same_threads()
def run(settings: MeasureSettings, work: Work) -> Outcome:
    """Measure, and keep every finished group; the same settings resume a run."""
    own, planned = settings, settings.target_error is not None
    subject = load_subject(
        settings, work, settings.weight_decay[0], groups=settings.max_groups if planned else None, reuse=planned,
        streamed=streaming(settings, 1.0 + _VECTORS, settings.device, work),
    )  # fmt: skip
    free = set() if settings.target == "psi" else {"weight_decay", "temperature"}  # neither enters a measurement
    settings, reason = _with_trace(settings, subject, work)
    deflation = deflation_from(Path(settings.deflate), subject.objective.parameters) if settings.deflate else None
    keyed = determining(settings, subject.text, subject.provenance, free | {"deflate"}, subject.objective.streamed)
    if deflation:
        keyed["deflation_checksum"] = deflation.checksum
    work.open(
        "measure", settings.model, keyed,
        own.model_dump() | {"parameter_checksum": subject.provenance.parameter_checksum},
        needs=_needs(settings, subject, deflation), what="this measurement", instead=LESS, device=settings.device,
        most=settings.memory,
    )  # fmt: skip
    if not planned:
        work.stage(MEASURING)
    record, cost = measured(subject, settings, work.scope("measure"), deflation=deflation, reason=reason)
    return Outcome([record], {0: cost})


def _with_trace(settings: MeasureSettings, subject: Subject, work: Work) -> tuple[MeasureSettings, str | None]:
    """The settings with the way to the trace, and why it is chosen; a plan chooses by itself."""
    if settings.trace != "auto" or settings.target_error is not None:
        return settings, None
    way, reason = default_way(subject.objective, range(settings.groups))
    if work.team.main:
        work.progress.stage(f"trace by {way}: {reason}")
    return settings.model_copy(update={"trace": way}), reason


def _needs(settings: MeasureSettings, subject: Subject, deflation: Deflation | None = None) -> Needs:
    """What the groups take by their way, those that a plan begins with where there is one."""
    planned = settings.target_error is not None
    groups = max(settings.groups, START) if planned else settings.groups
    trace = default_way(subject.objective, [0])[0] if planned else settings.trace
    way = Way(trace, settings.blocks, settings.products, deflated=deflation is not None)  # type: ignore[arg-type]
    each = float(settings.sequences * settings.block)  # tokens
    gradients = sampler_for(subject.objective, way, deflation).cost(settings.probes) + int(settings.finite)
    tokens = groups * (each * gradients + _SUMS)
    if planned:
        tokens *= 1 + repeated(groups) / groups
    shared = bool(settings.shares) and not planned and not way.tells_tensors
    if shared:
        tokens += min(settings.shares, groups) * each * sampler_for(subject.objective, SHARING).cost(1)
    graphs = max(way.graphs, SHARING.graphs if shared else 0.0)
    swept = trace == "adjoint" or (trace == "taylor" and not shared)
    stages = {PILOTING: tokens, MEASURING: None} if planned else {MEASURING: tokens}
    needs = subject.needs(settings, stages, vectors=_SWEPT if swept else _VECTORS, graphs=graphs)
    return replace(needs, disk=needs.disk + rows_bytes(subject.objective.parameters.size, groups))


def rows_bytes(parameters: int, groups: int) -> float:
    """Of the rows of so many groups on disk: sketches of gradients."""
    return 8.0 * groups * min(parameters, buckets_for(groups))


def measured(
    subject: Subject, settings: MeasureSettings, work: Work, displacement: Displacement | None = None,
    deflation: Deflation | None = None, reason: str | None = None,
) -> tuple[MeasurementRecord, Cost]:  # fmt: skip
    """Measure an objective, and make its record and cost."""
    objective = subject.objective
    plan = target = None
    if settings.target_error is None:
        measurement = measure(
            objective, deflate=deflation, work=work,
            **settings.model_dump(include={"probes", "seed", "trace", "blocks", "products", "shares"}),
        )  # fmt: skip
    else:
        target = Target(*settings.wanted(), settings.target, settings.weight_decay[0], settings.temperature[0])
        measurement, plan = measure_to(
            objective, target, seed=settings.seed, least=settings.groups, shares=settings.shares, work=work
        )
        chosen = {"trace": plan.way.trace, "blocks": plan.way.blocks, "probes": plan.probes}
        settings = settings.model_copy(update=chosen | {"groups": measurement.loss.n})
    facts, decays, temperatures = subject.facts, settings.weight_decay, settings.temperature
    record = measurement_record(
        measurement, decays, temperatures, **facts, displacement=displacement,
        design=DesignRecord.of(
            settings, deflated=deflation.checksum if deflation else None, confidence=CONFIDENCE,
            sketch=measurement.sketch, trace_reason=reason,
        ),
        plan=PlanRecord.of(
            plan, quantity=target.quantity, error=target.error, relative=target.relative, pilot_groups=0,
            start_groups=plan.start, planned_groups=plan.groups,
        ) if plan and target else None,
        constants=None if displacement else
        constants_beside(facts["objective"], outputs(subject.loaded.model), decays, temperatures),
    )  # fmt: skip
    cost = work.cost(
        measurement.tokens, settings.groups * settings.probes, pilot_seconds=work.spent("pilot/")[0] if plan else None,
        predicted_seconds=plan.seconds if plan else None,
    )  # fmt: skip
    return record, cost
