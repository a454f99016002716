"""From a model and a text to a record and a run directory: what `villani measure` does."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field

from villani.commands.bounds import check_bounds
from villani.commands.constants.run import constants_beside
from villani.commands.finish import default_name, finish
from villani.commands.subject import Subject, SubjectSettings, load_subject, objective_record
from villani.curvature.deflation import Deflation, deflation_from
from villani.curvature.sketch import buckets_for
from villani.curvature.ways import Blocks, ProductMethod, TraceMethod, Way
from villani.errors import InputError
from villani.measurement.design import SHARES, Design, check_temperature
from villani.measurement.measure import measure
from villani.measurement.measure_to import measure_to
from villani.measurement.measurement import Measurement
from villani.measurement.plan import PILOT, Plan, duration
from villani.measurement.target import Quantity, Target
from villani.objective.evaluation import same_threads
from villani.objective.objective import check_weight_decay
from villani.statistics import Estimate
from villani.work.budget import LESS, Needs, Shape, announce
from villani.work.ledger import Ledger, ScopedLedger, write_settings
from villani.work.progress import Progress, Silent
from villani.work.records import (
    Cost,
    DesignRecord,
    Displacement,
    EstimateRecord,
    LayerRecord,
    MeasurementRecord,
    PlanRecord,
    PsiParts,
    PsiRecord,
    TensorRecord,
)
from villani.work.team import Team

CONFIDENCE = 0.95


class MeasureSettings(SubjectSettings):
    """What `villani measure` was asked; see its help for each field."""

    name: ClassVar[str] = "measure"

    weight_decay: list[float] = Field(default_factory=lambda: [0.1])
    temperature: list[float] = Field(default_factory=lambda: [1e-3])
    trace: TraceMethod = "gauss-newton"
    blocks: Blocks = "whole"
    products: ProductMethod = "reverse-over-reverse"
    shares: int = SHARES
    deflate: str | None = None
    target_error: str | None = None
    target: Quantity = "hessian_trace"
    max_groups: int = 4096

    def check(self) -> None:
        """Refuse what cannot be measured before anything is loaded.

        Raises:
            InputError: a number outside its range.
        """
        for value in self.weight_decay:
            check_weight_decay(value)
        for value in self.temperature:
            check_temperature(value)
        if self.wanted is not None:
            for name in ("trace", "products", "blocks", "deflate", "probes", "finite"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise InputError(f"{name}={getattr(self, name)}: with target_error the plan chooses; leave one out")
            if self.max_groups < PILOT + max(self.groups, 3):
                least = PILOT + max(self.groups, 3)
                raise InputError(
                    f"max_groups={self.max_groups}: expected at least {least}, the pilot's and those to measure"
                )
        elif self.target != "hessian_trace":
            raise InputError(f"target={self.target}: goes with target_error")
        Design(self.groups, self.probes, self.seed, self.finite, way=self.way, shares=self.shares)
        if self.deflate is not None and not Path(self.deflate).is_dir():
            remedy = "give the run directory of villani spectrum"
            raise InputError(f"deflate={self.deflate}: no eigenvectors there; {remedy}")
        self.check_least(max_groups=1)

    @property
    def way(self) -> Way:
        """To the trace.

        Raises:
            InputError: choices that do not go together.
        """
        return Way(self.trace, self.blocks, self.products, deflated=self.deflate is not None)

    @property
    def wanted(self) -> Target | None:
        """The wanted error, if there is one.

        Raises:
            InputError: it is not a number, or out of range.
        """
        if self.target_error is None:
            return None
        number = self.target_error.removeprefix("abs:")
        try:
            error = float(number)
        except ValueError:
            raise InputError(
                f"target_error {self.target_error!r}: expected a share of the figure, such as 0.05, or abs:NUMBER"
            ) from None
        relative = number == self.target_error
        return Target(error, relative, self.target, self.weight_decay[0], self.temperature[0])


@same_threads()
def measure_model(
    settings: MeasureSettings,
    run: Path | None = None,
    data: Path | None = None,
    progress: Progress | None = None,
    team: Team | None = None,
) -> tuple[Path, MeasurementRecord]:
    """Measure, keep every finished group, and write records.json, cost.json, settings.toml and report.html.

    Args:
        settings: what to measure.
        run: directory; made from the settings when None. The same settings resume it.
        data: folder of text and tokenizer files; the environment variable VILLANI_DATA by default.
        progress: told where the work is.
        team: processes that share the groups, all called with the same arguments; process 0 alone writes.

    Returns:
        the run directory, and its record with what it cost.

    Raises:
        InputError: anything about the input that cannot be measured; finished groups are kept.
        LostProcess: another process of the team is gone; finished groups are kept.
    """
    team = team or Team()
    check_bounds(settings)
    settings.check()
    show = progress or Silent()
    wanted = settings.wanted is not None
    subject = load_subject(
        settings, settings.weight_decay[0], show, data, groups=settings.max_groups if wanted else None, reuse=wanted
    )
    free = set() if settings.target == "psi" else {"weight_decay", "temperature"}  # neither enters a measurement
    deflation = deflation_from(Path(settings.deflate), subject.objective.parameters) if settings.deflate else None
    keyed = settings.determining(subject.text, subject.provenance, free | {"deflate"})
    if deflation:
        keyed = {**keyed, "deflation_checksum": deflation.checksum}
    team.agree(keyed)
    directory = run or Path("runs") / default_name("measure", settings.model, keyed)
    if team.main:
        announce(
            show, _needs(settings, subject), directory, what="this measurement", instead=LESS, device=settings.device
        )
    with Ledger(directory, keyed) if team.main else nullcontext() as ledger:
        if ledger:
            write_settings(
                directory, settings.model_dump() | {"parameter_checksum": subject.provenance.parameter_checksum}
            )
        show.stage("measuring")
        scope = ledger.scoped("measure") if ledger else None
        record, cost = measured(subject, settings, scope, show, team=team, deflation=deflation)
        if ledger:
            finish(directory, f"villani measure {settings.model}", [record], {0: cost})
    return directory, record.model_copy(update={"cost": cost})


def _needs(settings: MeasureSettings, subject: Subject) -> Needs:
    """A gradient and about three for every probe on each group; on few groups for a pilot."""
    groups = settings.groups + (2 * PILOT if settings.wanted else 0)
    tokens = groups * settings.sequences * settings.block * (1 + 3 * settings.probes + int(settings.finite))
    needs = Shape.of(subject.loaded.model).work(
        tokens, at_once=settings.at_once, block=settings.block, vectors=4, device=settings.device
    )  # fmt: skip
    return replace(needs, disk=needs.disk + rows_bytes(subject.objective.parameters.size, groups))


def rows_bytes(parameters: int, groups: int) -> float:
    """Of the rows of so many groups on disk: sketches of gradients."""
    return 8.0 * groups * min(parameters, buckets_for(groups))


def measured(
    subject: Subject,
    settings: MeasureSettings,
    ledger: ScopedLedger | None,
    progress: Progress,
    displacement: Displacement | None = None,
    team: Team | None = None,
    deflation: Deflation | None = None,
) -> tuple[MeasurementRecord, Cost]:
    """Measure an objective with a ledger (None where another process keeps it), and make its record and cost."""
    team = team or Team()
    objective = subject.objective
    target = settings.wanted
    plan = None
    if target is None:
        found = measure(
            objective,
            probes=settings.probes,
            seed=settings.seed,
            trace=settings.trace,
            blocks=settings.blocks,
            products=settings.products,
            shares=settings.shares,
            deflate=deflation,
            ledger=ledger,
            progress=progress.advance,
            team=team,
        )
    else:
        progress.stage("trying ways on a pilot")
        found, plan = measure_to(
            objective,
            target,
            seed=settings.seed,
            least=settings.groups,
            shares=settings.shares,
            ledger=ledger,
            progress=progress.advance,
            on_plan=lambda plan: progress.stage(f"measuring: {plan}, about {duration(plan.seconds / team.size)}"),
            team=team,
        )
        settings = settings.model_copy(
            update={"trace": plan.way.trace, "blocks": plan.way.blocks, "probes": plan.probes, "groups": found.loss.n}
        )
    record = MeasurementRecord(
        model=subject.loaded.record,
        objective=objective_record(objective),
        text=subject.text,
        design=_design_record(settings, found, deflation),
        displacement=displacement,
        loss=estimate_record(found.loss),
        gradient_norm_squared=estimate_record(found.gradient_norm_squared),
        naive_gradient_norm_squared=estimate_record(found.naive_gradient_norm_squared),
        gradient_dot_parameters=estimate_record(found.gradient_dot_parameters),
        hessian_trace=estimate_record(found.hessian_trace),
        gauss_newton_trace=estimate_record(found.gauss_newton_trace) if found.gauss_newton_trace else None,
        decayed_norm_squared=found.decayed_norm_squared,
        covariance=found.joint.covariance.tolist(),
        degrees_of_freedom=found.joint.degrees_of_freedom,
        tensors=[
            TensorRecord(
                name=t.name,
                shape=list(t.shape),
                parameters=int(torch.Size(t.shape).numel()),
                decayed=t.decayed,
                norm_squared=t.norm_squared,
                hessian_trace=estimate_record(t.hessian_trace) if t.hessian_trace else None,
            )
            for t in found.tensors
        ],
        layers=[
            LayerRecord(
                name=layer.name,
                parameters=layer.parameters,
                hessian_trace=estimate_record(layer.hessian_trace) if layer.hessian_trace else None,
            )
            for layer in found.layers
        ],
        plan=plan_record(plan, target) if plan and target else None,
        psi=[psi_record(found, decay, s) for decay in settings.weight_decay for s in settings.temperature],
        constants=None
        if displacement
        else constants_beside(subject.loaded.model, objective.parameters, settings.weight_decay, settings.temperature),
        provenance=subject.provenance,
    )
    seconds, peak, units = team.broadcast(ledger.spent() if ledger else None)
    pilot = team.broadcast(ledger.spent("pilot/")[0] if ledger else None)
    cost = Cost(
        seconds=seconds,
        seconds_per_group=seconds / units,
        peak_memory_bytes=peak,
        tokens=found.tokens,
        probes=settings.groups * settings.probes,
        pilot_seconds=pilot if plan else None,
        predicted_seconds=plan.seconds if plan else None,
    )
    return record, cost


def plan_record(plan: Plan, target: Target) -> PlanRecord:
    """A plan as it stands in JSON."""
    return PlanRecord(
        quantity=target.quantity,
        error=target.error,
        relative=target.relative,
        pilot_groups=plan.first,
        planned_groups=plan.groups,
        probe_deviation=plan.probe_deviation,
        data_deviation=plan.data_deviation,
        note=plan.note,
    )


def estimate_record(estimate: Estimate) -> EstimateRecord:
    """An estimate as it stands in JSON."""
    return EstimateRecord(
        value=estimate.value,
        sem=estimate.sem,
        n=estimate.n,
        interval=estimate.interval(CONFIDENCE),
        status=estimate.status,
    )


def psi_record(found: Measurement, weight_decay: float, temperature: float) -> PsiRecord:
    """Ψ_s at one λ and s as it stands in JSON."""
    psi = found.psi(weight_decay, temperature=temperature)
    parts = PsiParts(**{name: estimate_record(part) for name, part in psi.parts.items()})
    return PsiRecord(
        **estimate_record(psi).model_dump(), weight_decay=weight_decay, temperature=temperature, parts=parts
    )


def _design_record(settings: MeasureSettings, found: Measurement, deflation: Deflation | None) -> DesignRecord:
    return DesignRecord(
        deflated=None if deflation is None else deflation.checksum,
        groups=settings.groups,
        sequences=settings.sequences,
        block=settings.block,
        probes=settings.probes,
        trace=settings.trace,
        blocks=settings.blocks,
        products=settings.products,
        seed=settings.seed,
        confidence=CONFIDENCE,
        sketch=found.sketch,
        micro_tokens=settings.micro_tokens,
    )
