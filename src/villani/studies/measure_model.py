"""From a model and a text to a record and a run directory: what `villani measure` does."""

import platform
import shlex
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict

from villani.errors import InputError
from villani.landscape.models import LoadedModel, load_model
from villani.landscape.objective import Objective, check_weight_decay
from villani.landscape.text import load_groups
from villani.landscape.tokenizers import load_tokenizer
from villani.measurement import SHARES, Measurement, check_design, check_temperature, measure
from villani.plan import PILOT, Plan, Quantity, Target, duration, measure_to
from villani.runs.distributed import Team
from villani.runs.records import (
    Cost,
    DesignRecord,
    Displacement,
    EstimateRecord,
    LayerRecord,
    MeasurementRecord,
    ObjectiveRecord,
    PlanRecord,
    Provenance,
    PsiParts,
    PsiRecord,
    TensorGroup,
    TensorRecord,
    TextRecord,
)
from villani.runs.store import Ledger, ScopedLedger, Settings, write_settings
from villani.statistics import Estimate
from villani.studies.constants import constants_beside
from villani.studies.finish import default_name, finish
from villani.studies.progress import Progress, Silent

CONFIDENCE = 0.95
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class MeasureSettings(BaseModel):
    """What `villani measure` was asked; see its help for each field."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    text: str = "builtin"
    tokenizer: str | None = None
    weight_decay: list[float] = [0.1]
    temperature: list[float] = [1e-3]
    decay: str = "all"
    groups: int = 16
    sequences: int = 4
    block: int = 128
    probes: int = 1
    trace: Literal["gauss-newton", "hutchinson", "taylor"] = "gauss-newton"
    blocks: Literal["whole", "layer", "tensor"] = "whole"
    products: Literal["reverse-over-reverse", "forward-over-reverse", "finite-differences"] = "reverse-over-reverse"
    shares: int = SHARES
    target_error: str | None = None
    target: Quantity = "hessian_trace"
    max_groups: int = 4096
    finite: bool = False
    seed: int = 0
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    threads: int | None = None
    micro_tokens: int = 512
    trust_remote_code: bool = False

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
            for name in ("trace", "products", "blocks", "probes", "finite"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise InputError(f"{name}={getattr(self, name)}: with target_error the plan chooses; leave one out")
            if self.max_groups < PILOT + max(self.groups, 3):
                least = PILOT + max(self.groups, 3)
                raise InputError(
                    f"max_groups={self.max_groups}: expected at least {least}, the pilot's and those to measure"
                )
        elif self.target != "hessian_trace":
            raise InputError(f"target={self.target}: goes with target_error")
        check_design(self.groups, self.probes, self.seed, self.finite)
        for name, least in (
            ("sequences", 1), ("block", 2), ("micro_tokens", 1), ("threads", 1), ("shares", 0), ("max_groups", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name}={value}: expected at least {least}")

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

    def command(self) -> str:
        """The command that measures this again, without where it is kept."""
        words = ["villani", "measure", self.model]
        for name, value in self.model_dump(exclude={"model"}).items():
            if value == type(self).model_fields[name].default and name not in ("text", "weight_decay", "temperature"):
                continue
            flag = "--" + name.replace("_", "-")
            if isinstance(value, bool):
                words += [flag]
            elif isinstance(value, list):
                words += [flag, ",".join(f"{x:g}" for x in value)]
            else:
                words += [flag, str(value)]
        return shlex.join(words)


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
    settings.check()
    show = progress or Silent()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    show.stage(f"loading {settings.model}")
    loaded = load_model(
        settings.model,
        dtype=_DTYPES[settings.dtype],
        device=settings.device,
        trust_remote_code=settings.trust_remote_code,
    )
    show.stage(f"reading {settings.text}")
    ids, labels, text = load_groups(
        settings.text,
        load_tokenizer(settings.tokenizer or loaded.tokenizer, data=data),
        block=settings.block,
        groups=settings.max_groups if settings.wanted else settings.groups,
        sequences=settings.sequences,
        seed=settings.seed,
        finite=settings.finite,
        reuse=settings.wanted is not None,
        vocabulary=vocabulary(loaded.model),
        context=loaded.record.context,
        data=data,
    )
    objective = Objective(
        loaded.model,
        as_groups(ids, labels),
        weight_decay=settings.weight_decay[0],
        decay=settings.decay,
        finite=settings.finite,
        micro_tokens=settings.micro_tokens,
    )
    show.stage("checking parameters")
    provenance = provenance_of(objective, settings.command(), settings.seed)
    keyed = _determining(settings, text, provenance)
    team.agree(keyed)
    directory = run or Path("runs") / default_name("measure", settings.model, keyed)
    with Ledger(directory, keyed) if team.main else nullcontext() as ledger:
        if ledger:
            write_settings(directory, settings.model_dump() | {"parameter_checksum": provenance.parameter_checksum})
        show.stage("measuring")
        scope = ledger.scoped("measure") if ledger else None
        record, cost = measured(objective, settings, loaded, text, provenance, scope, show, team=team)
        if ledger:
            finish(directory, f"villani measure {settings.model}", [record], {0: cost})
    return directory, record.model_copy(update={"cost": cost})


def measured(
    objective: Objective,
    settings: MeasureSettings,
    loaded: LoadedModel,
    text: TextRecord,
    provenance: Provenance,
    ledger: ScopedLedger | None,
    progress: Progress,
    displacement: Displacement | None = None,
    team: Team | None = None,
) -> tuple[MeasurementRecord, Cost]:
    """Measure an objective with a ledger (None where another process keeps it), and make its record and cost."""
    team = team or Team()
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
            told=lambda plan: progress.stage(f"measuring: {plan}, about {duration(plan.seconds / team.size)}"),
            team=team,
        )
        settings = settings.model_copy(
            update={"trace": plan.trace, "blocks": plan.blocks, "probes": plan.probes, "groups": found.loss.n}
        )
    record = MeasurementRecord(
        model=loaded.record,
        objective=_objective_record(objective),
        text=text,
        design=_design_record(settings, found),
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
        else constants_beside(loaded.model, objective.parameters, settings.weight_decay, settings.temperature),
        provenance=provenance,
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


def as_groups(ids: torch.Tensor, labels: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """(G, B, T) ids and labels as the groups that `Objective` takes."""
    return [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]


def vocabulary(model: torch.nn.Module) -> int:
    """How many token ids a model knows."""
    find: Any = model.get_input_embeddings
    return int(find().num_embeddings)


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


def _objective_record(objective: Objective) -> ObjectiveRecord:
    space = objective.parameters
    return ObjectiveRecord(
        weight_decay=objective.weight_decay,
        decay=space.decay,
        parameters=space.size,
        decayed_parameters=space.decayed_size,
        finite=objective.finite,
        undecayed=[TensorGroup(name=p.name, parameters=p.tensor.numel()) for p in space.parameters if not p.decayed],
    )


def _design_record(settings: MeasureSettings, found: Measurement) -> DesignRecord:
    return DesignRecord(
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


def provenance_of(objective: Objective, command: str, seed: int) -> Provenance:
    """What determines the bits of a measurement, beside its settings."""
    return Provenance(
        command=command,
        seed=seed,
        device=_device_name(objective.device),
        threads=torch.get_num_threads(),
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("villani", "torch", "transformers", "tokenizers", "numpy")},
        },
        parameter_checksum=objective.parameters.checksum(),
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"


def _determining(settings: MeasureSettings, text: TextRecord, provenance: Provenance) -> Settings:
    """What determines a ledger's rows: neither λ nor s nor the mask is among it."""
    free = {"decay", "device", "threads", "trust_remote_code"}
    if settings.target != "psi":
        free |= {"weight_decay", "temperature"}
    return {
        **settings.model_dump(exclude=free),
        "parameter_checksum": provenance.parameter_checksum,
        "token_checksum": text.token_checksum,
        "device": provenance.device,
        "threads": provenance.threads,
        **provenance.versions,
    }
