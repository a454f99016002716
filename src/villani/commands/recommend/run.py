"""What `villani recommend` does: a sweep over λ, what rules say without one, and the evidence for both."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np

from villani.choice import rules
from villani.choice.paired import LEVEL
from villani.choice.rules import Pair, Rule, Training
from villani.choice.selection import joined
from villani.commands.audit.record import AuditRecord
from villani.commands.audit.settings import AuditSettings
from villani.commands.blocks import shared
from villani.commands.certify.results import best_bound
from villani.commands.certify.settings import CertifySettings
from villani.commands.content import read_records
from villani.commands.recommend.cells import SweepCell, by_decay
from villani.commands.recommend.rates import settle
from villani.commands.recommend.record import OptimizerRecord, RecommendationRecord
from villani.commands.recommend.results import Certificates, optimizer_record
from villani.commands.recommend.settings import RecommendSettings
from villani.commands.recommend.sweep import GRID_FIELDS, needs_of, sweep, told_before
from villani.commands.recommend.sweep_text import SweepText, read_sweep_text
from villani.commands.running import Outcome, perform
from villani.commands.subject import begin, bits_of, load, outputs, provenance_of
from villani.dynamics.training import Optimizer, learning_rates
from villani.errors import InputError
from villani.objective.evaluation import same_threads
from villani.objective.objective import Objective
from villani.objective.parameters import ParameterSpace
from villani.theory.constants import Smoothing
from villani.work.work import Work

_GROUPS, _SEQUENCES = 12, 2  # of the audit at the start
AUDIT, _VERIFYING = "short audit", "training at what rules name"  # stages
# asked of the cells, not trained into them
_QUESTIONS = {"rules", "verify_rules", "audit", "delta", "threads", "allow_unused", "adapter", "trust_remote_code"}


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the choice of λ rests on with every optimiser.

    Attributes:
        settings: what was asked.
        text: what was trained on and judged by.
        space: the parameters of the model.
        smoothing: of the bounds.
        certificates: of noisy runs.
        pairs: rescalings, for the guard; None where there was no audit.
        source: where they come from, or why there are none.
        rates: optimiser → who says at which learning rate.
    """

    settings: RecommendSettings
    text: SweepText
    space: ParameterSpace
    smoothing: Smoothing
    certificates: Certificates
    pairs: list[Pair] | None
    source: str
    rates: Mapping[str, str] = field(default_factory=dict)

    @property
    def epochs(self) -> float:
        """Passes of one run over the training blocks."""
        return self.settings.steps * self.settings.batch / len(self.text.train.ids)

    def training(self, optimizer: Optimizer) -> Training:
        """What rules are told of a run with one optimiser."""
        settings, rate = self.settings, self.settings.learning_rate[optimizer]
        return Training(
            optimizer, rate, sum(learning_rates(settings.schedule, rate, settings.steps)), settings.steps,
            settings.batch, settings.block, len(self.text.train.ids), self.space.size, settings.from_scratch,
            self.space.decayed_size == self.space.size, settings.momentum if optimizer == "sgd" else 0.0,
            settings.temperature if optimizer == "noisy-sgd" else None, settings.clip is not None,
        )  # fmt: skip

    def answers(self, run: Training) -> list[Rule]:
        """What every rule that was asked for says about such runs; `held-out` is the grid's own."""
        made: dict[str, Callable[[], list[Rule]]] = {
            "constants": rules.constants,
            "ema": lambda: [rules.ema_timescale(run)],
            "power-lines": lambda: [rules.power_lines(run)],
            "loshchilov-hutter": lambda: [rules.loshchilov_hutter(run)],
            "claimed": lambda: [rules.claimed_constant(run)],
            "certified": lambda: [rules.certified_constant(run, self.smoothing)],
            "guard": lambda: [rules.guard(run, self.pairs or [], self.source)],
            "certificate": lambda: [
                rules.least_certified(run, list(self.certificates.bounds.items()), math.log(self.smoothing.vocabulary))
            ],
        }
        return [rule for name in self.settings.rules if name in made for rule in made[name]()]


def judge(
    evidence: Evidence, optimizer: Optimizer, cells: Sequence[SweepCell],
    trained: Callable[[Optimizer, Sequence[float]], list[SweepCell]] | None = None,
) -> OptimizerRecord:  # fmt: skip
    """What the grid says of one optimiser, and where rules would have led; `trained` gives cells at λ of their own."""
    run = evidence.training(optimizer)
    answers, grid = evidence.answers(run), by_decay(cells, optimizer)
    own = dict.fromkeys(r.weight_decay for r in answers if r.weight_decay is not None and r.weight_decay not in grid)
    beyond = by_decay(trained(optimizer, [*own]), optimizer) if trained else {}
    level = evidence.settings.delta / 2 / len(cells)  # half of δ is the certificates'
    return optimizer_record(
        evidence.settings, run, grid, beyond, answers, evidence.certificates, evidence.smoothing, level,
        evidence.rates.get(optimizer, ""), evidence.epochs,
    )  # fmt: skip


@same_threads()
def run(settings: RecommendSettings, work: Work) -> Outcome:
    """Sweep and judge the rules; every finished cell is kept, also for a grid of other λ, optimisers or seeds."""
    command, (settings, rates) = settings.command(), settle(settings)
    audited = _read_audit(Path(settings.audit)) if settings.audit and "guard" in settings.rules else None
    begin(settings)
    text = read_sweep_text(settings, work)
    loaded = load(settings, work)
    objective = Objective(loaded.model, text.train.ids[:1][None], decay=settings.decay)
    provenance = provenance_of(objective, command, settings.seed)
    keyed = settings.model_dump(mode="json", exclude=_QUESTIONS) | bits_of(provenance)
    keyed["checksums"] = [record.token_checksum for record in text.records]
    grid = sorted(settings.weight_decay)
    count = len(settings.optimizers) * len(grid) * settings.seeds
    work.open(
        "recommend", settings.model, {n: v for n, v in keyed.items() if n not in GRID_FIELDS}, settings.model_dump(),
        named=keyed, needs=needs_of(
            settings, objective, count, text, _more(settings, text), kept=count if settings.keep_weights else 1,
            processes=work.team.size,
        ),
        what=f"a sweep of {count:,} training runs",
        instead="train fewer cells (--seeds, --weight-decay), lower --steps or --batch, or choose a smaller model",
        device=settings.device, agreed=settings.yes,
    )  # fmt: skip
    cells = [*product(settings.optimizers, grid, settings.training_seeds)]
    swept = sweep(settings, work, cells, keep=settings.keep_weights)
    if not work.team.main:
        return Outcome([])
    work = work.alone()
    certificates = _certificates(settings, text, work)
    space, smoothing = objective.parameters, Smoothing(outputs(loaded.model), settings.alpha)
    evidence = Evidence(settings, text, space, smoothing, certificates, *pairs_of(settings, audited, work), rates)

    def trained(optimizer: Optimizer, decays: Sequence[float]) -> list[SweepCell]:
        """At the rules' own λ, with --verify-rules."""
        own = [*product([optimizer], decays, settings.training_seeds)]
        return sweep(settings, work, own, f"{_VERIFYING}: {optimizer}", keep=settings.keep_weights)

    records = [judge(evidence, o, swept, trained if settings.verify_rules else None) for o in settings.towards_zero]
    blocks = len(text.documents)
    units = len(joined(np.zeros(blocks), np.ones(blocks), text.documents)[1])
    record = RecommendationRecord.of(
        settings, model=loaded.record, text=text.records[0], held_out=text.records[1], parameters=space.size,
        decayed_parameters=space.decayed_size, epochs=evidence.epochs,
        shared_start=not settings.from_scratch, units=units, unit="blocks" if units == blocks else "documents",
        level=LEVEL, log_vocabulary=math.log(smoothing.vocabulary), optimizers=records,
        grid_note=told_before(work, cells), sentence=" ".join(one.sentence for one in records), provenance=provenance,
    )  # fmt: skip
    tokens = settings.steps * settings.batch * (settings.block - 1) * len(swept)
    return Outcome([record], {0: work.cost(tokens)})


def _more(settings: RecommendSettings, text: SweepText) -> dict[str, float | None]:
    """Stages beside the sweep, by tokens that gradients are taken over; how many λ rules will name is not known."""
    stages: dict[str, float | None] = {}
    if "certificate" in settings.rules and settings.temperature is not None and settings.from_scratch:
        blocks = settings.steps * settings.batch + 2 * (len(text.train.ids) + len(text.held_out.ids)) / 3
        stages = {_certifying(decay): blocks * settings.block for decay in sorted(settings.weight_decay)}
    if "guard" in settings.rules and settings.temperature is not None and not settings.audit:
        stages[AUDIT] = 12.0 * _GROUPS * _SEQUENCES * settings.block
    if settings.verify_rules:
        stages |= {f"{_VERIFYING}: {optimizer}": None for optimizer in settings.optimizers}
    return stages


def _certifying(decay: float) -> str:
    return f"certificates: λ = {decay!r}"


def _certificates(settings: RecommendSettings, text: SweepText, work: Work) -> Certificates:
    """A path certificate of one noisy run at every λ, at δ/2 over all of them; each is a run of `villani certify`."""
    if "certificate" not in settings.rules or settings.temperature is None:
        return Certificates({}, [])
    if not settings.from_scratch:
        return Certificates({}, ["the start may have seen the text, so that it is no centre of a prior"])
    bounds, refusals = {}, []
    for decay in sorted(settings.weight_decay):
        certified = CertifySettings(
            **shared(settings, CertifySettings), held_out=settings.held_out, block=settings.block,
            blocks=len(text.train.ids), prior="init", start="centre", weight_decay=[decay],
            temperature=settings.temperature, learning_rate=[settings.learning_rate["noisy-sgd"]],
            steps=settings.steps, batch=settings.batch, clip=settings.clip, chains=1, delta=settings.delta / 2,
            candidates=len(settings.weight_decay), alpha=[settings.alpha],
        )  # fmt: skip
        work.stage(f"certifying a noisy run at λ = {decay:g}", _certifying(decay))
        try:
            with work.inner(f"certificates/{decay!r}-{settings.delta!r}-{len(settings.weight_decay)}") as inner:
                _, record = perform(certified, inner)
        except InputError as error:
            refusals.append(f"λ = {decay:g}: {error}")
            continue
        if best := best_bound(record):
            bounds[decay] = best[1].value
    return Certificates(bounds, refusals)


def pairs_of(settings: RecommendSettings, audited: AuditRecord | None, work: Work) -> tuple[list[Pair] | None, str]:
    """Rescaling pairs for the guard: of the audit that was given, or of a short one at the start."""
    if "guard" not in settings.rules or settings.temperature is None:
        return None, ""
    source = f"from the audit in {settings.audit}"
    if audited is None:
        source = "from a short audit at the weights that training starts from"
        short = AuditSettings(
            **shared(settings, AuditSettings), decay=settings.decay, groups=_GROUPS, sequences=_SEQUENCES,
            block=settings.block, weight_decay=max(settings.weight_decay), temperature=settings.temperature, search=0,
            rays=[],
        )  # fmt: skip
        work.stage("a short audit at the start", AUDIT)
        try:
            with work.inner(f"audit-{short.weight_decay!r}") as inner:
                _, audited = perform(short, inner)
        except InputError as error:
            return None, f"the audit was not possible: {error}"
    scale = audited.objective.weight_decay**2
    pairs = [
        Pair(
            orbit.name, orbit.threshold.laplacian.value, orbit.threshold.gradient_norm_squared.value,
            orbit.threshold.norm_squared / scale,
        )
        for orbit in audited.differential_evidence.orbits if orbit.confirmed
    ]  # fmt: skip
    return pairs, source


def _read_audit(folder: Path) -> AuditRecord:
    """The record of a run of `villani audit`."""
    if not (folder / "records.json").is_file():
        raise InputError(f"--audit {folder}: no records.json there; give the run directory of villani audit")
    content = read_records(folder / "records.json", "give --audit the run directory of villani audit, or audit again")
    audited = next((record for record in content.records if isinstance(record, AuditRecord)), None)
    if audited is None:
        raise InputError(f"--audit {folder}: that run is no audit; give the run directory of villani audit")
    if audited.objective.weight_decay == 0:
        raise InputError(f"--audit {folder}: an audit at λ = 0 does not tell ‖A‖²; audit at λ > 0")
    return audited
