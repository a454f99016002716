"""`villani converge`: Langevin chains at several λ and s on a model or a potential, and what their curves prove."""

import shutil
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from villani.bounds import check_bounds
from villani.commands.converge.chains import Chain, read_state, run_chain, write_state
from villani.commands.converge.coupling import coupled, coupled_models
from villani.commands.converge.record import ConvergenceRecord, DivergenceRecord, PotentialRecord
from villani.commands.converge.results import Known, Seen, chains_record, design_record
from villani.commands.finish import default_name, finish
from villani.commands.subject import Subject, SubjectSettings, load_subject, objective_record, vocabulary
from villani.dynamics.advice import largest_curvature, smaller_step
from villani.dynamics.langevin import STANDARD, Method, Rule, Schedule, Target
from villani.dynamics.network import NetworkTarget
from villani.dynamics.potential import PotentialTarget
from villani.dynamics.potential import largest_curvature as curvature_of
from villani.errors import InputError, check_positive
from villani.inputs.models import load_model
from villani.measurement.measure import measure
from villani.objective.evaluation import same_threads
from villani.objective.objective import Objective
from villani.statistics import Array
from villani.streams import Purpose, word
from villani.theory.catalogue import Case, case
from villani.theory.exact import solve
from villani.work.budget import LESS, Needs, Shape, announce
from villani.work.ledger import Ledger, write_settings
from villani.work.memory import peak_memory
from villani.work.progress import Progress, Silent
from villani.work.records import Cost
from villani.work.team import alone

EXACT = "exact:"


class ConvergeSettings(SubjectSettings):
    """What `villani converge` was asked; see its help for each field. None and [] are filled in by `filled`."""

    name: ClassVar[str] = "converge"

    groups: int = 64
    finite: bool = True
    weight_decay: list[float] = Field(default_factory=list)
    temperature: list[float] = Field(default_factory=list)
    learning_rate: float | None = None
    steps: int | None = None
    chains: int | None = None
    walkers: int | None = None
    method: Method = "noisy-sgd"
    momentum: float = 0.0
    schedule: Schedule = "constant"
    full: bool = False
    start: Literal["same", "spread"] = "same"
    log_every: int | None = None
    psi_every: int = 0
    psi_groups: int = 6
    coupled: bool = False
    parameters: dict[str, float] = Field(default_factory=dict)
    dimension: int | None = None

    @property
    def potential(self) -> str | None:
        """The potential's name or expression, if it is about one."""
        return self.model.removeprefix(EXACT) if self.model.startswith(EXACT) else None

    def cases(self) -> list[Case]:
        """The potential at every λ and s; those of the catalogue where none are given."""
        assert self.potential is not None
        decays: list[float | None] = [*self.weight_decay] or [None]
        betas: list[float | None] = [2 / s for s in self.temperature] or [None]
        return [
            case(self.potential, weight_decay=decay, beta=beta, parameters=self.parameters, dimension=self.dimension)
            for decay, beta in product(decays, betas)
        ]

    def filled(self) -> "ConvergeSettings":
        """With a number in every field.

        Raises:
            InputError: anything out of range, before anything is loaded.
        """
        for s in self.temperature:
            check_positive(temperature=s)
        if self.potential is not None:
            cases = self.cases()
            rate = self.learning_rate or 0.1 / max(curvature_of(one.potential) for one in cases)
            defaults: dict[str, Any] = {
                "learning_rate": float(f"{rate:.2g}"),
                "steps": 4000,
                "chains": 8,
                "walkers": 64,
            }
            defaults["weight_decay"] = list(dict.fromkeys(one.potential.weight_decay for one in cases))
            defaults["temperature"] = list(dict.fromkeys(2 / one.potential.beta for one in cases))
        else:
            if self.parameters or self.dimension is not None or self.walkers is not None:
                raise InputError(f"model {self.model}: --set, --dimension and --walkers go with exact:POTENTIAL")
            defaults = {
                "learning_rate": 1e-3, "steps": 400, "chains": 4, "walkers": 1, "weight_decay": [0.1],
                "temperature": [1e-3],
            }  # fmt: skip
        given = {name: value for name in defaults if (value := getattr(self, name)) not in (None, [])}
        found = self.model_copy(update=defaults | given)
        assert found.steps is not None
        if found.log_every is None:
            found = found.model_copy(update={"log_every": 5 if self.potential is None else max(1, found.steps // 400)})
        found.check_least(
            groups=1, chains=1, walkers=1, log_every=1, psi_every=0, psi_groups=3, seed=0, steps=1
        )  # fmt: skip
        for decay, s in product(found.weight_decay, found.temperature):
            found.rule(decay, s)
        if found.psi_every and self.potential is not None:
            raise InputError("psi_every: Ψ of a potential is exact and logged anyway; leave it out")
        if found.start == "spread" and self.potential is None and 0 in found.weight_decay:
            raise InputError("start=spread with weight_decay=0: there is no prior N(0, s/(2λ)) to begin at")
        return found

    def rule(self, weight_decay: float, temperature: float) -> Rule:
        """The rule at one λ and s."""
        assert self.learning_rate is not None
        assert self.steps is not None
        return Rule(
            weight_decay, temperature, self.learning_rate, self.steps, self.method, self.momentum, self.schedule
        )


@same_threads()
def converge(
    settings: ConvergeSettings, run: Path | None = None, data: Path | None = None, progress: Progress | None = None
) -> tuple[Path, ConvergenceRecord]:
    """Run the chains, keep every stretch of them, and write records.json, cost.json, settings.toml and report.html.

    Args:
        settings: what to run.
        run: directory; made from the settings when None. The same settings resume it.
        data: folder of text and tokenizer files; the environment variable VILLANI_DATA by default.
        progress: told where the work is.

    Returns:
        the run directory, and its record with what it cost.

    Raises:
        InputError: anything about the input that cannot be run; finished stretches are kept. A chain that diverges is
            no error: it is in the record.
    """
    alone("villani converge")
    check_bounds(settings)
    settings = settings.filled()
    show = progress or Silent()
    if settings.potential is not None:
        return _on_potential(settings, run, show)
    return _on_model(settings, run, data, show)


def _on_potential(settings: ConvergeSettings, run: Path | None, show: Progress) -> tuple[Path, ConvergenceRecord]:
    cases = settings.cases()
    asked = settings.model_dump(mode="json")
    free = {"weight_decay", "temperature", "coupled", *SubjectSettings.model_fields} - {"model", "seed"}
    keyed = {name: value for name, value in asked.items() if name not in free | {"parameters"}}
    keyed["parameters"] = [f"{name}={value!r}" for name, value in settings.parameters.items()]
    keyed |= {name: version(name) for name in ("villani", "numpy", "scipy", "torch")}
    directory = run or Path("runs") / default_name("converge", settings.model, asked | keyed)
    assert settings.chains is not None
    assert settings.walkers is not None
    assert settings.log_every is not None
    points, observing = [], 0.0
    rows = settings.chains * (settings.steps or 0) // settings.log_every
    positions = settings.chains * settings.walkers * max(one.potential.dimension for one in cases)
    needs = Needs(memory=8.0 * (6 * positions + 20 * rows), disk=8.0 * (2 * positions + 20 * rows * len(cases)))
    announce(show, needs, directory, what="these chains", instead="choose fewer --chains, --walkers or --steps")
    with Ledger(directory, keyed) as ledger:
        write_settings(directory, asked | {"parameters": keyed["parameters"]})
        for one in cases:
            law = one.potential
            rule = settings.rule(law.weight_decay, 2 / law.beta)
            scope = ledger.scoped(f"{law.weight_decay!r}/{law.beta!r}")
            show.stage(f"solving for the exact gap at λ = {law.weight_decay:g}, β = {law.beta:g}")
            known = _known(one)
            target = PotentialTarget(law, settings.walkers, settings.chains, spread=settings.start == "spread")
            show.stage(f"walking at λ = {law.weight_decay:g}, s = {2 / law.beta:g}")
            chain = run_chain(
                target, rule, scope, directory / "state" / f"{law.weight_decay!r}-{law.beta!r}",
                seed=settings.seed, chain=0, log_every=settings.log_every, progress=show.advance,
            )  # fmt: skip
            near, far = (
                PotentialTarget(law, settings.walkers, settings.chains, start=side * target.start) for side in (1, -1)
            )
            show.stage("two chains with common noise")
            pair = coupled(
                near, far, rule, scope, seed=settings.seed, log_every=settings.log_every, progress=show.advance
            )  # fmt: skip
            left = _left(chain, target, rule, settings.chains)
            observing += chain.observing
            seen = Seen(
                settings=settings, rule=rule, names=(*STANDARD, *target.extras), chains=(chain,), pair=pair,
                diverged=left, dimension=law.dimension, undecayed=0,
            )  # fmt: skip
            points.append(chains_record(seen, known))
        record = ConvergenceRecord(
            model=None, objective=None, text=None,
            potential=PotentialRecord(
                name=one.name, expression=law.loss.text, dimension=law.dimension, shape=law.shape
            ),
            design=design_record(settings, None, None), undecayed=0, points=points,
            provenance=None,
        )  # fmt: skip
        cost = _cost(ledger, settings, len(points), 0, observing)
        _end(directory, settings, record, cost)
    return directory, record.model_copy(update={"cost": cost})


def _known(one: Case) -> Known:
    """The gap of the diffusion on a potential, with its status, or why it is not known."""
    law = one.potential
    try:
        truth = solve(law, sobolev=False)
    except InputError as error:
        return Known(unsolved=str(error), case=one)
    ceiling = 1 / (law.beta * truth.floor) if truth.status != "certified" and truth.floor > 0 else None
    return Known(1 / (law.beta * truth.poincare), truth.status, ceiling, case=one)


def _on_model(
    settings: ConvergeSettings, run: Path | None, data: Path | None, show: Progress
) -> tuple[Path, ConvergenceRecord]:  # fmt: skip
    subject = load_subject(settings, settings.weight_decay[0], show, data)
    space = subject.objective.parameters
    free = {"weight_decay", "temperature", "chains", "coupled", "walkers", "parameters", "dimension"}
    keyed = dict(settings.determining(subject.text, subject.provenance, free)) | {"decay": space.mask}
    directory = run or Path("runs") / default_name("converge", settings.model, settings.model_dump() | keyed)
    undecayed = space.size - space.decayed_size
    assert settings.chains is not None
    assert settings.log_every is not None
    points, observing = [], 0.0
    needs = _needs(settings, subject)
    announce(show, needs, directory, what="these chains", instead=LESS, device=settings.device)
    with Ledger(directory, keyed) as ledger:
        write_settings(
            directory,
            settings.model_dump(exclude={"parameters", "dimension", "walkers"})
            | {"parameter_checksum": subject.provenance.parameter_checksum},
        )
        begin = directory / "state" / "start.safetensors"
        write_state(begin, list(space.tensors))
        for decay, s in product(settings.weight_decay, settings.temperature):
            rule = settings.rule(decay, s)
            read_state(begin, list(space.tensors))
            target = _Restarting(begin, subject.objective, settings, rule)
            scope = ledger.scoped(f"{decay!r}/{s!r}")
            chains, left = [], []
            for number in range(settings.chains):
                show.stage(f"chain {number + 1} of {settings.chains} at λ = {decay:g}, s = {s:g}")
                inspect = partial(_psi, subject, target, rule, settings, number) if settings.psi_every else None
                with target.running():
                    chain = run_chain(
                        target, rule, scope, directory / "state" / f"{decay!r}-{s!r}",
                        seed=settings.seed, chain=number, log_every=settings.log_every, inspect=inspect,
                        inspect_every=settings.psi_every, progress=show.advance,
                        peak_memory=partial(peak_memory, subject.objective.device),
                    )  # fmt: skip
                    left += _left(chain, target, rule, 1, number)
                chains.append(chain)
                observing += chain.observing
            pair = None
            if settings.coupled:
                show.stage("two chains with common noise")
                pair = coupled_models(
                    target, _twin(subject, settings), rule, scope, seed=settings.seed, log_every=settings.log_every,
                    progress=show.advance,
                )  # fmt: skip
            seen = Seen(
                settings=settings, rule=rule, names=(*STANDARD, *target.extras), chains=tuple(chains), pair=pair,
                diverged=left, dimension=space.size, undecayed=undecayed if decay else space.size,
            )  # fmt: skip
            points.append(chains_record(seen, Known(vocabulary=vocabulary(subject.loaded.model))))
        batch = None if settings.full or settings.method == "mala" else settings.sequences
        record = ConvergenceRecord(
            model=subject.loaded.record, objective=objective_record(subject.objective), text=subject.text,
            potential=None, design=design_record(settings, batch, target.blocks), undecayed=undecayed, points=points,
            provenance=subject.provenance,
        )  # fmt: skip
        tokens = target.tokens if batch is None else batch * target.tokens // target.blocks
        cost = _cost(ledger, settings, len(points), tokens, observing)
        _end(directory, settings, record, cost)
    return directory, record.model_copy(update={"cost": cost})


def _needs(settings: ConvergeSettings, subject: Subject) -> Needs:
    """A gradient a step of every chain; θ at the start, where it is and where it was, on disk."""
    whole = settings.groups if settings.full or settings.method == "mala" else 1
    steps = (settings.steps or 0) * (settings.chains or 0) * len(settings.weight_decay) * len(settings.temperature)
    measured = 4 * settings.psi_groups / settings.psi_every if settings.psi_every else 0.0
    tokens = steps * settings.sequences * settings.block * (whole + measured)
    moving = 2 if settings.momentum else 1
    return Shape.of(subject.loaded.model).work(
        tokens, at_once=settings.at_once, block=settings.block, vectors=3 * moving + 4 * settings.coupled,
        kept=1 + 2 * moving, device=settings.device,
    )  # fmt: skip


class _Restarting(NetworkTarget):
    """A model whose chains begin at the weights in a file: no second copy of them in memory."""

    def __init__(self, begin: Path, objective: Objective, settings: ConvergeSettings, rule: Rule) -> None:
        prior = (rule.temperature / (2 * rule.weight_decay)) ** 0.5 if rule.weight_decay else float("inf")
        super().__init__(
            objective, batch=None if settings.full or settings.method == "mala" else settings.sequences,
            seed=settings.seed, spread=settings.start == "spread", prior=prior,
        )  # fmt: skip
        self._begin = begin

    def reset(self, chain: int) -> None:
        """The weights of the file, then as `NetworkTarget.reset`."""
        read_state(self._begin, self.tensors)
        super().reset(chain)


def _psi(
    subject: Subject, target: NetworkTarget, rule: Rule, settings: ConvergeSettings, chain: int, step: int
) -> Array:  # fmt: skip
    """(Ψ, ΔF, ‖∇F‖²), unbiased, on independent groups of the data set drawn for this chain and step."""
    there = Objective(
        subject.loaded.model, target.sample(settings.psi_groups, chain, step), rule.weight_decay, settings.decay,
        micro_tokens=settings.micro_tokens,
    )  # fmt: skip
    found = measure(there, seed=word(settings.seed, Purpose.PROBE, chain, step), trace="gauss-newton")
    psi = found.psi(rule.weight_decay, temperature=rule.temperature).value
    laplacian = found.hessian_trace.value + rule.weight_decay * there.parameters.decayed_size
    return np.array([psi, laplacian, rule.temperature * (psi + laplacian)])


def _twin(subject: Subject, settings: ConvergeSettings) -> Objective:
    """A second copy of the model on the same data."""
    model = load_model(
        settings.model, dtype=subject.objective.parameters.dtype, device=settings.device,
        trust_remote_code=settings.trust_remote_code, allow_unused=settings.allow_unused,
    ).model  # fmt: skip
    return Objective(
        model, subject.objective.groups, decay=settings.decay, finite=True, micro_tokens=settings.micro_tokens
    )


def _left(chain: Chain, target: Target, rule: Rule, replicates: int, number: int = 0) -> list[DivergenceRecord]:
    """What to say about a chain that left; all replicates of a potential go together."""
    if chain.diverged is None:
        return []
    curvature = largest_curvature(target, rule, number)
    return [
        DivergenceRecord(
            chain=number + i, step=chain.diverged, curvature=curvature, learning_rate=smaller_step(rule, curvature)
        )
        for i in range(replicates)
    ]


def _cost(ledger: Ledger, settings: ConvergeSettings, points: int, tokens: int, observing: float) -> Cost:
    seconds, peak, _ = ledger.spent()
    assert settings.steps is not None
    assert settings.chains is not None
    steps = settings.steps * points * (settings.chains if settings.potential is None else 1)
    return Cost(
        seconds=seconds, seconds_per_group=seconds / steps, peak_memory_bytes=peak, tokens=tokens * steps, probes=0,
        observing_seconds=observing,
    )  # fmt: skip


def _end(directory: Path, settings: ConvergeSettings, record: ConvergenceRecord, cost: Cost) -> None:
    finish(directory, f"villani converge {settings.model}", [record], {0: cost})
    shutil.rmtree(directory / "state", ignore_errors=True)
