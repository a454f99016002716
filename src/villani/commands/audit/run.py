"""What `villani audit` does: the four criteria on a model and a text, a witness of what is refuted, and a page."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from villani.bounds import check_bounds
from villani.commands.audit.record import AuditDesign, AuditRecord, RescueRecord
from villani.commands.audit.results import (
    coverage_record,
    differential_record,
    outcome_record,
    smoothness_record,
    threshold_record,
)
from villani.commands.audit.witness import NAME, Claim, Witness, text_checksum
from villani.commands.constants.run import constants_beside, read_head, spectral_gap
from villani.commands.finish import default_name, finish
from villani.commands.measure.run import CONFIDENCE
from villani.commands.subject import Subject, SubjectSettings, load_subject, objective_record
from villani.criteria.audit import RAY_GROUPS, RAYS, Audit, audit
from villani.criteria.differential import CONFIRMED, SEARCH
from villani.criteria.rays import check_kinds
from villani.criteria.rescue import rescues
from villani.errors import InputError
from villani.measurement.design import check_design, check_temperature
from villani.objective.evaluation import same_threads
from villani.objective.objective import check_weight_decay
from villani.work.budget import LESS, Shape, announce
from villani.work.ledger import Ledger, write_settings
from villani.work.progress import Progress, Silent
from villani.work.records import Cost

_LEAST = 12  # groups: a third each to choose orbits, to descend, and to confirm


class AuditSettings(SubjectSettings):
    """What `villani audit` was asked; see its help for each field."""

    name: ClassVar[str] = "audit"

    groups: int = 18
    weight_decay: float = 0.1
    temperature: float = 1e-3
    confirmed: int = CONFIRMED
    search: int = SEARCH
    rays: list[str] = Field(default_factory=lambda: list(RAYS))
    ray_groups: int = RAY_GROUPS

    def check(self) -> None:
        """Refuse what cannot be audited before anything is loaded.

        Raises:
            InputError: a number outside its range.
        """
        check_weight_decay(self.weight_decay)
        check_temperature(self.temperature)
        check_design(self.groups, self.probes, self.seed, self.finite)
        if not self.finite and self.groups < _LEAST:
            raise InputError(
                f"groups={self.groups}: expected at least {_LEAST}: a third each search, choose and confirm"
            )
        self.check_least(confirmed=1, search=0, ray_groups=3)
        check_kinds(self.rays)


@same_threads()
def audit_model(
    settings: AuditSettings, run: Path | None = None, data: Path | None = None, progress: Progress | None = None
) -> tuple[Path, AuditRecord]:
    """Audit, keep every finished unit of work, and write records, costs, settings, witness and page.

    Args:
        settings: what to audit.
        run: directory; made from the settings when None. The same settings resume it.
        data: folder of text and tokenizer files; the environment variable VILLANI_DATA by default.
        progress: told where the work is.

    Returns:
        the run directory, and its record with what it cost.

    Raises:
        InputError: anything about the input that cannot be audited; finished units are kept.
    """
    check_bounds(settings)
    settings.check()
    show = progress or Silent()
    subject = load_subject(settings, settings.weight_decay, show, data)
    keyed = {
        **settings.determining(subject.text, subject.provenance, {"temperature"}),  # it enters no measurement
        "decay": subject.objective.parameters.mask,
    }
    directory = run or Path("runs") / default_name("audit", settings.model, keyed)
    tokens = settings.groups * settings.sequences * settings.block * 12 * (1 + 3 * settings.probes)  # parts, and walks
    needs = Shape.of(subject.loaded.model).work(
        tokens, at_once=settings.at_once, block=settings.block, vectors=6, device=settings.device
    )  # fmt: skip
    announce(show, needs, directory, what="this audit", instead=LESS, device=settings.device)
    with Ledger(directory, keyed) as ledger:
        write_settings(directory, settings.model_dump())
        show.stage("reading the graph of the loss")
        told = ""

        def tell(what: str, done: int, total: int) -> None:
            nonlocal told
            if what != told:
                show.stage(what)
                told = what
            show.advance(done, total)

        found = audit(
            subject.objective, settings.temperature, seed=settings.seed, probes=settings.probes,
            confirmed=settings.confirmed, search=settings.search, rays=settings.rays, ray_groups=settings.ray_groups,
            ledger=ledger, progress=tell,
        )  # fmt: skip
        witness = _witness(found, settings, subject)
        if witness:
            witness.write(directory / NAME)
        record = _record(found, settings, subject, NAME if witness else None)
        seconds, peak, _ = ledger.spent()
        cost = Cost(
            seconds=seconds, seconds_per_group=seconds / settings.groups, peak_memory_bytes=peak,
            tokens=sum(batch.tokens for batch in subject.objective.groups), probes=settings.groups * settings.probes,
        )  # fmt: skip
        finish(directory, f"villani audit {settings.model}", [record], {0: cost})
    return directory, record.model_copy(update={"cost": cost})


def _record(found: Audit, settings: AuditSettings, subject: Subject, witness: str | None) -> AuditRecord:
    space = subject.objective.parameters
    head = read_head(subject.objective) if settings.weight_decay > 0 else "λ = 0, so that there is no Gibbs law"
    beside = constants_beside(subject.loaded.model, space, [settings.weight_decay], [settings.temperature, 2.0], head)
    return AuditRecord(
        model=subject.loaded.record,
        objective=objective_record(subject.objective),
        text=subject.text,
        design=AuditDesign(
            groups=settings.groups,
            sequences=settings.sequences,
            block=settings.block,
            probes=settings.probes,
            search=settings.search,
            ray_groups=settings.ray_groups,
            seed=settings.seed,
            confidence=CONFIDENCE,
            micro_tokens=settings.micro_tokens,
        ),
        temperature=settings.temperature,
        villani=found.villani,
        smoothness=outcome_record(found.outcomes["smoothness"]),
        growth=outcome_record(found.outcomes["growth"]),
        tails=outcome_record(found.outcomes["tails"]),
        differential_growth=outcome_record(found.outcomes["differential_growth"]),
        smoothness_evidence=smoothness_record(found.smoothness),
        coverage_evidence=coverage_record(found.coverage, settings.temperature),
        differential_evidence=differential_record(found, settings.weight_decay, settings.temperature, space),
        rescues=[RescueRecord(name=name, text=text) for name, text in rescues(found.differential).items()],
        spectral_gap=spectral_gap(head, settings.weight_decay, settings.temperature),
        constants=beside,
        witness=witness,
        provenance=subject.provenance,
    )


def _witness(found: Audit, settings: AuditSettings, subject: Subject) -> Witness | None:
    """What anyone can evaluate again: the worst orbit, and the first flat direction or the slab."""
    space = subject.objective.parameters
    refuted = found.differential.outcome.verdict == "refuted"
    worst = found.differential.findings[0] if refuted else None
    flat = found.coverage.flat[0] if found.coverage.flat else None
    slab = found.coverage.slab
    if not (worst or flat or slab):
        return None
    claim = Claim(
        settings=settings.model_dump(mode="json"),
        parameter_checksum=subject.provenance.parameter_checksum,
        orbit=worst.orbit.name if worst else None,
        threshold=threshold_record(worst.threshold) if worst else None,
        scales=tuple(step.scale for step in worst.walk if step.scale > 1) if worst else (),
        flat=flat.kind if flat else None,
        slab=slab.tensors if slab else (),
        text_checksum=text_checksum(subject.text),
    )
    names = [p.name for p in space.parameters]
    return Witness(
        claim,
        orbit={names[i]: e for i, e in worst.orbit.exponents.items()} if worst else {},
        moved={names[i]: value for i, value in worst.moved.items()} if worst else {},
        flat={flat.tensor: flat.direction} if flat else {},
    )
