"""What `villani recommend` does: a sweep over λ, what rules say without one, and the evidence for both."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from villani.choice.rules import (
    RULES,
    Pair,
    Rule,
    Training,
    certified_constant,
    claimed_constant,
    constants,
    ema_timescale,
    guard,
    least_certified,
    loshchilov_hutter,
    power_lines,
)
from villani.commands.audit.record import AuditRecord
from villani.commands.audit.run import AuditSettings, audit_model
from villani.commands.bounds import check_bounds
from villani.commands.certify.results import best_bound
from villani.commands.certify.run import CertifySettings, certify
from villani.commands.constants.run import outputs
from villani.commands.content import read_records
from villani.commands.finish import default_name, finish
from villani.commands.recommend.record import RecommendationRecord
from villani.commands.recommend.results import Found, assemble
from villani.commands.recommend.sweep import (
    SweepCell,
    SweepSettings,
    SweepText,
    by_decay,
    needs_of,
    read_sweep_text,
    run_cells,
)
from villani.commands.subject import check_options, command_words, provenance_of
from villani.dynamics.training import Optimizer, learning_rates
from villani.errors import InputError
from villani.inputs.models import load_model
from villani.objective.evaluation import same_threads
from villani.objective.objective import Objective
from villani.theory.constants import Smoothing
from villani.work.budget import LESS, announce
from villani.work.ledger import Ledger, write_settings
from villani.work.progress import Progress, Silent
from villani.work.records import Cost
from villani.work.team import alone

GRID = [0.0, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0]
RATES: Mapping[str, float] = {"sgd": 0.1, "noisy-sgd": 0.5, "adamw": 2e-3}
TEMPERATURE = 1e-6
ALL = list(RULES)
_QUESTIONS = {
    "rules",
    "verify_rules",
    "audit",
    "delta",
    "threads",
    "allow_unused",
}  # asked of the cells, not trained into them


class RecommendSettings(SweepSettings):
    """What `villani recommend` was asked; see its help for each field."""

    name: ClassVar[str] = "recommend"

    weight_decay: list[float] = GRID
    steps: int = 300
    batch: int = 8
    rules: list[str] = ALL
    verify_rules: bool = False
    audit: str | None = None
    delta: float = 0.05

    def check(self) -> None:
        """As of a sweep, and of what is asked about it."""
        super().check()
        if not 0 < self.delta < 1:
            raise InputError(f"delta={self.delta:g}: expected a number between 0 and 1")
        if unknown := [rule for rule in self.rules if rule not in RULES]:
            raise InputError(f"rule {unknown[0]!r} is unknown; known: {', '.join(RULES)}")
        if len(set(self.rules)) < len(self.rules):
            raise InputError(f"rules={self.rules}: expected different ones")

    def command(self) -> str:
        """The command that does this again."""
        return command_words(self, self.name)

    def training(self, optimizer: Optimizer, blocks: int, parameters: int, covered: bool) -> Training:
        """What rules are told of a run with one optimiser."""
        rate = self.learning_rate[optimizer]
        return Training(
            optimizer, rate, sum(learning_rates(self.schedule, rate, self.steps)), self.steps, self.batch, self.block,
            blocks, parameters, self.from_scratch, covered, self.momentum if optimizer == "sgd" else 0.0,
            self.temperature if optimizer == "noisy-sgd" else None, self.clip is not None,
        )  # fmt: skip


@dataclass(frozen=True)
class Certificates:
    """λ → certified risk, nats per token, and why others have none."""

    bounds: dict[float, float]
    refusals: list[str]


@same_threads()
def recommend(
    settings: RecommendSettings, run: Path | None = None, data: Path | None = None, progress: Progress | None = None
) -> tuple[Path, RecommendationRecord]:
    """Sweep, judge the rules, and write records, costs, settings and page; every finished cell is kept.

    Args:
        settings: what to train and to ask. The grid, δ and α have to be fixed before the held-out text is looked at.
        run: directory; made from the settings when None. The same settings resume it.
        data: folder of text and tokenizer files; the environment variable VILLANI_DATA by default.
        progress: told where the work is.

    Returns:
        the run directory and its record.

    Raises:
        InputError: anything about the input that cannot be used; finished cells are kept.
    """
    alone("villani recommend")
    check_bounds(settings)
    settings.check()
    audited = _read_audit(Path(settings.audit)) if settings.audit and "guard" in settings.rules else None
    show = progress or Silent()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    check_options(settings.decay, settings.device)
    show.stage(f"reading {settings.text}")
    text = read_sweep_text(settings, data)
    show.stage(f"loading {settings.model}")
    loaded = load_model(settings.model, device=settings.device, allow_unused=settings.allow_unused)
    objective = Objective(loaded.model, text.train.ids[:1][None], decay=settings.decay)
    provenance = provenance_of(objective, settings.command(), settings.seed)
    space = objective.parameters
    keyed = {
        **settings.model_dump(mode="json", exclude=_QUESTIONS),
        "parameter_checksum": provenance.parameter_checksum,
        "checksums": [record.token_checksum for record in text.records],
        "device": provenance.device,
        "threads": provenance.threads,
        **provenance.versions,
    }
    directory = run or Path("runs") / default_name("recommend", settings.model, keyed)
    seeds = range(settings.seed, settings.seed + settings.seeds)
    grid = sorted(settings.weight_decay)
    count = len(settings.optimizers) * len(grid) * len(seeds)
    announce(
        show, needs_of(settings, loaded.model, count, text), directory, what=f"a sweep of {count:,} training runs",
        instead=f"train fewer cells, lower --batch, or {LESS}", device=settings.device,
    )  # fmt: skip
    with Ledger(directory, keyed) as ledger:
        write_settings(directory, settings.model_dump())

        def cells(decays: list[tuple[Optimizer, float]]) -> list[SweepCell]:
            asked = [(optimizer, decay, seed) for optimizer, decay in decays for seed in seeds]
            return run_cells(settings, asked, directory, ledger, data, show, text)

        swept = cells([(optimizer, decay) for optimizer in settings.optimizers for decay in grid])
        certificates = _certificates(settings, text, directory, data, show)
        pairs, source = pairs_of(settings, audited, directory, data, show)
        smoothing = Smoothing(outputs(loaded.model), settings.alpha)
        found: list[Found] = []
        for optimizer in settings.optimizers:
            training = settings.training(
                optimizer, len(text.train.ids), space.size, space.decayed_size == space.size
            )  # fmt: skip
            rules = rules_of(settings, training, smoothing, certificates, pairs, source)
            beyond = [r.weight_decay for r in rules if r.weight_decay is not None and r.weight_decay not in grid]
            more = cells([(optimizer, decay) for decay in dict.fromkeys(beyond)]) if settings.verify_rules else []
            found.append(
                Found(
                    training, by_decay(swept, optimizer), by_decay(more, optimizer), rules, certificates.bounds,
                    certificates.refusals if optimizer == "noisy-sgd" else [],
                )
            )  # fmt: skip
        record = assemble(settings, loaded.record, text, space, smoothing, found, provenance)
        seconds, peak, count = ledger.spent()
        cost = Cost(
            seconds=seconds, seconds_per_group=seconds / max(count, 1), peak_memory_bytes=peak,
            tokens=settings.steps * settings.batch * (settings.block - 1) * len(swept), probes=0,
        )  # fmt: skip
        finish(directory, f"villani recommend {settings.model}", [record], {0: cost})
    return directory, record.model_copy(update={"cost": cost})


def rules_of(
    settings: RecommendSettings, run: Training, smoothing: Smoothing, certificates: Certificates,
    pairs: list[Pair] | None, source: str,
) -> list[Rule]:  # fmt: skip
    """What every rule that was asked for says about runs with one optimiser; `held-out` is the grid's own."""
    made: dict[str, Callable[[], list[Rule]]] = {
        "constants": constants,
        "ema": lambda: [ema_timescale(run)],
        "power-lines": lambda: [power_lines(run)],
        "loshchilov-hutter": lambda: [loshchilov_hutter(run)],
        "claimed": lambda: [claimed_constant(run)],
        "certified": lambda: [certified_constant(run, smoothing)],
        "guard": lambda: [guard(run, pairs or [], source)],
        "certificate": lambda: [
            least_certified(run, list(certificates.bounds.items()), math.log(smoothing.vocabulary))
        ],
    }
    return [rule for name in settings.rules if name in made for rule in made[name]()]


def _certificates(
    settings: RecommendSettings, text: SweepText, directory: Path, data: Path | None, show: Progress
) -> Certificates:  # fmt: skip
    """A path certificate of one noisy run at every λ, at δ/2 over all of them; each is a run of `villani certify`."""
    if "certificate" not in settings.rules or settings.temperature is None:
        return Certificates({}, [])
    if not settings.from_scratch:
        return Certificates({}, ["the start may have seen the text, so that it is no centre of a prior"])
    bounds, refusals = {}, []
    for decay in sorted(settings.weight_decay):
        asked = CertifySettings(
            model=settings.model, text=settings.text, held_out=settings.held_out, tokenizer=settings.tokenizer,
            block=settings.block, blocks=len(text.train.ids), prior="init", start="centre", weight_decay=[decay],
            temperature=settings.temperature, learning_rate=settings.learning_rate["noisy-sgd"], steps=settings.steps,
            batch=settings.batch, clip=settings.clip, chains=1, delta=settings.delta / 2,
            candidates=len(settings.weight_decay), alpha=[settings.alpha], seed=settings.seed, device=settings.device,
            threads=settings.threads, special_tokens=settings.special_tokens, allow_unused=settings.allow_unused,
        )  # fmt: skip
        show.stage(f"certifying a noisy run at λ = {decay:g}")
        try:
            _, record = certify(asked, directory / "certificates" / f"{decay!r}-{settings.delta!r}", data, show)
        except InputError as error:
            refusals.append(f"λ = {decay:g}: {error}")
            continue
        if best := best_bound(record):
            bounds[decay] = best[1].value
    return Certificates(bounds, refusals)


def pairs_of(
    settings: RecommendSettings, audited: AuditRecord | None, directory: Path, data: Path | None, show: Progress
) -> tuple[list[Pair] | None, str]:  # fmt: skip
    """Rescaling pairs for the guard: of the audit that was given, or of a short one at the start."""
    if "guard" not in settings.rules or settings.temperature is None:
        return None, ""
    source = f"from the audit in {settings.audit}"
    if audited is None:
        source = "from a short audit at the weights that training starts from"
        asked = AuditSettings(
            model=settings.model, text=settings.text, tokenizer=settings.tokenizer, decay=settings.decay, groups=12,
            sequences=2, block=settings.block, weight_decay=max(settings.weight_decay),
            temperature=settings.temperature, search=0, rays=[], seed=settings.seed, device=settings.device,
            threads=settings.threads, special_tokens=settings.special_tokens, allow_unused=settings.allow_unused,
        )  # fmt: skip
        try:
            _, audited = audit_model(asked, directory / "audit", data, show)
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
    found = next((record for record in content.records if isinstance(record, AuditRecord)), None)
    if found is None:
        raise InputError(f"--audit {folder}: that run is no audit; give the run directory of villani audit")
    if found.objective.weight_decay == 0:
        raise InputError(f"--audit {folder}: an audit at λ = 0 does not tell ‖A‖²; audit at λ > 0")
    return found
