"""What `villani audit --replay WITNESS` does: prove and measure again what an audit refuted, believing nothing of it.

A witness is data from a stranger. Exponents, directions and tensors are proved by the code that finds them in an audit;
what was measured is measured again and held against what is claimed. Its words, such as the name of an orbit, are not
repeated. What does not come out as claimed is said, and the witness is then not reproduced.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from villani.commands.audit.claims import Check, bound_checks, scale_checks
from villani.commands.audit.record import ReplayRecord
from villani.commands.audit.results import flat_record, slab_record, step_record, threshold_record
from villani.commands.audit.run import AuditSettings
from villani.commands.audit.trust import replayed_settings, wishes
from villani.commands.audit.witness import Claim, Witness, indexed, read_witness, text_checksum
from villani.commands.finish import default_name, finish
from villani.commands.subject import load_subject
from villani.criteria.coverage import Slab, bounded_tensors, objective_terms
from villani.criteria.differential import FURTHEST, SCALES, short_batch
from villani.criteria.flat import FlatDirection, reproved
from villani.criteria.orbits import Threshold, exponents_of, orbit_of, orbits_of, replaced, threshold
from villani.criteria.parts import PartStatistics, part_statistics, parts_of
from villani.criteria.patterns import pieces
from villani.criteria.rounding import beyond, drift_allowed, laplacian_rounding
from villani.criteria.symmetries import generators
from villani.criteria.walks import Step, walk_orbit
from villani.errors import InputError
from villani.objective.batches import Batch
from villani.objective.evaluation import same_threads
from villani.objective.graph import LossGraph, trace_loss
from villani.objective.objective import MICRO_TOKENS, Objective
from villani.outwards import upper
from villani.work.ledger import Ledger, write_settings
from villani.work.progress import Progress, Silent
from villani.work.records import TextRecord

_MORE = re.compile(r"\d{1,4} more at once")  # as `pooled` names orbits


@dataclass(frozen=True, eq=False)
class _Found:
    """What came of the parts of a claim; None where there is none, or where it is not what it claims to be."""

    checks: list[Check]
    orbit: str | None = None
    threshold: Threshold | None = None
    walk: Sequence[Step] = ()
    flat: FlatDirection | None = None
    slab: Slab | None = None


@same_threads()
def replay(
    path: Path,
    run: Path | None = None,
    data: Path | None = None,
    progress: Progress | None = None,
    *,
    model: str | None = None,
    text: str | None = None,
    tokenizer: str | None = None,
    seed: int | None = None,
    device: str = "cpu",
    threads: int | None = None,
    micro_tokens: int = MICRO_TOKENS,
    trust_remote_code: bool = False,
    allow_unused: str | None = None,
) -> tuple[Path, ReplayRecord]:
    """Evaluate a witness on the model and text that it names; all groups measure, since none has to choose.

    Args:
        path: the witness.
        run: directory for the record and the page; made from the witness when None.
        data: folder of text and tokenizer files; the environment variable VILLANI_DATA by default.
        progress: told where the work is.
        model: where the model is now; needed if the witness names a folder.
        text: where the text is now; needed if the witness names files.
        tokenizer: where the tokenizer is now; needed if the witness names a folder.
        seed: of the draw of groups and of the probes, if not the witness's: another one is independent evidence.
        device: to measure on. This and what follows is never the witness's to choose.
        threads: of the CPU.
        micro_tokens: tokens in one forward pass at most.
        trust_remote_code: whether `model` may run its code.
        allow_unused: see `load_model`.

    Raises:
        InputError: not a witness, one that names files, or a model that is not the one that it is of.
    """
    show = progress or Silent()
    witness, checksum = read_witness(path)
    claim = witness.claim
    show.stage(wishes(claim.settings))
    named = (("model", model), ("text", text), ("tokenizer", tokenizer))
    given = {name: value for name, value in named if value is not None}
    own = {
        "device": device,
        "threads": threads,
        "micro_tokens": micro_tokens,
        "trust_remote_code": trust_remote_code,
        "allow_unused": allow_unused,
    }
    settings = replayed_settings(path, claim.settings, given, own, seed)
    subject = load_subject(settings, settings.weight_decay, show, data)
    objective = subject.objective
    if subject.provenance.parameter_checksum != claim.parameter_checksum:
        raise InputError(
            f"--replay {path}: the witness is of parameters {claim.parameter_checksum[:12]!r}…, {settings.model} has "
            f"{subject.provenance.parameter_checksum[:12]!r}…: give the model that was audited"
        )
    for kind, whole in (("orbit", False), ("moved", True), ("flat", True)):
        indexed(getattr(witness, kind), objective.parameters, whole=whole)  # refused before anything is written
    keyed = {
        **settings.determining(subject.text, subject.provenance, set()), "decay": settings.decay, "witness": checksum,
    }  # fmt: skip
    directory = run or Path("runs") / default_name("replay", settings.model, keyed)
    with Ledger(directory, keyed) as ledger:
        write_settings(directory, settings.model_dump() | {"witness": checksum})
        found = _evaluated(objective, witness, settings, ledger, show)
        checks = [*_subject_checks(claim, subject.text), *found.checks]
        record = ReplayRecord(
            model=subject.loaded.record,
            text=subject.text,
            witness_checksum=checksum,
            reproduced=bool(found.checks) and all(check.holds for check in checks),
            weight_decay=settings.weight_decay,
            temperature=settings.temperature,
            seed=settings.seed,
            orbit=found.orbit,
            claimed=claim.threshold,
            found=threshold_record(found.threshold) if found.threshold else None,
            walk=[step_record(step) for step in found.walk],
            flat=flat_record(found.flat) if found.flat else None,
            slab=slab_record(found.slab) if found.slab else None,
            sentences=[_design(settings, objective), *(check.sentence for check in checks)],
            provenance=subject.provenance.model_copy(update={"command": f"villani audit --replay {path.name}"}),
        )
        finish(directory, f"villani audit --replay {path.name}", [record], {})
    return directory, record


def _evaluated(
    objective: Objective, witness: Witness, settings: AuditSettings, ledger: Ledger, show: Progress
) -> _Found:
    """Every part of the claim, proved and measured again."""
    claim = witness.claim
    checks: list[Check] = []
    measured = _Found([])
    flat, slab = None, None
    if claim.orbit is not None:
        measured = _orbit(objective, witness, settings, ledger, show)
        checks += measured.checks
    undecayed = [
        i for i, p in enumerate(objective.parameters.parameters) if objective.weight_decay == 0 or not p.decayed
    ]
    if claim.flat is not None:
        show.stage("proving the flat direction")
        flat, check = _flat(objective, witness, undecayed, settings.seed)
        checks.append(check)
    if claim.slab:
        show.stage("bounding the loss")
        slab, check = _slab(objective, claim, undecayed, settings.seed)
        checks.append(check)
    return _Found(checks, measured.orbit, measured.threshold, measured.walk, flat, slab)


def _orbit(objective: Objective, witness: Witness, settings: AuditSettings, ledger: Ledger, show: Progress) -> _Found:
    space = objective.parameters
    exponents = {i: e.to(torch.float64) for i, e in indexed(witness.orbit, space, whole=False).items()}
    show.stage("proving the orbit")
    basis = generators(trace_loss(objective, short_batch(objective)))
    orbit = orbit_of(exponents, basis, space)
    if isinstance(orbit, str):
        return _Found(
            [Check(f"The orbit that the witness states {orbit}: criterion (iv) is not refuted by it.", False)]
        )
    first, _, more = (witness.claim.orbit or "").partition(" and ")
    if _MORE.fullmatch(more) and first in {known.name for known in orbits_of(basis, space)}:
        orbit = replace(orbit, name=f"{first} and {more}")  # rather than a list of all tensors of a pool
    checks, scales = scale_checks(witness.claim.scales, SCALES, FURTHEST)
    parts = parts_of(space, [orbit.exponents])
    along = exponents_of(orbit, parts)
    block = [int(i) for i in np.flatnonzero(along == along.min())]
    stages = 2 + len(scales)
    begun = 0

    def measured(scope: str, blocks: list[list[int]]) -> PartStatistics:
        nonlocal begun
        begun += 1
        return part_statistics(
            objective, parts, range(len(objective.groups)), seed=settings.seed, probes=settings.probes, blocks=blocks,
            ledger=ledger.scoped(scope),
            progress=lambda done, total: show.advance((begun - 1) * total + done, stages * total),
        )  # fmt: skip

    show.stage("walking the orbit")
    with replaced(objective, indexed(witness.moved, space, whole=True)):
        found = threshold(along, measured("threshold", [block]), settings.weight_decay)
        found = beyond(found, laplacian_rounding(objective, parts, orbit, [0], settings.seed))
        walk = walk_orbit(
            objective, orbit, along, lambda scale: measured(f"walk/{scale:g}", []), settings.temperature, scales,
        )  # fmt: skip
    if not _finite(found, walk):
        words = f"Along {orbit.name} the loss or its derivatives are not finite: criterion (iv) is not refuted by it."
        return _Found([*checks, Check(words, False)], orbit.name)
    drift = max(step.loss_change for step in walk)
    same = "by not a single bit" if drift == 0 else f"by up to {upper(drift, 1)} nats per token"
    allowed = drift_allowed(objective.loss(0), space.dtype)
    checks.append(
        Check(f"Along {orbit.name} the loss changes {same} for R up to {walk[-1].scale:g}.", drift <= allowed)
    )
    assert witness.claim.threshold is not None
    return _Found([*checks, *bound_checks(witness.claim.threshold, found)], orbit.name, found, walk)


def _finite(found: Threshold, walk: Sequence[Step]) -> bool:
    estimates = [found.gradient_norm_squared, found.laplacian]
    estimates += [estimate for step in walk for estimate in (step.predicted, step.measured)]
    numbers = [number for e in estimates for number in (e.value, e.sem)] + [step.loss_change for step in walk]
    return all(map(math.isfinite, numbers))


def _flat(
    objective: Objective, witness: Witness, undecayed: Sequence[int], seed: int
) -> tuple[FlatDirection | None, Check]:
    [(index, direction)] = indexed(witness.flat, objective.parameters, whole=True).items()
    name = objective.parameters.parameters[index].name
    graphs = _traced(objective, _looking_up(objective, index, direction))
    found = reproved(objective, graphs, undecayed, index, direction, seed)
    if isinstance(found, str):
        words = f"The direction in {name} that the witness calls flat {found}: nothing is refuted by it."
        return None, Check(words, False)
    return found, Check(
        f"Along {found.kind} of {name}, moves of {', '.join(f'{c:g}' for c in found.steps)} change the loss by at most "
        f"{upper(max(found.changes), 1)} nats per token, and the traced graph proves that none does: criteria (ii) and "
        "(iii) are refuted again.",
        True,
    )


def _looking_up(objective: Objective, index: int, direction: torch.Tensor) -> list[Batch]:
    """A block that begins with the token whose row of the input embedding a direction moves, if it is of that."""
    find = getattr(objective.model, "get_input_embeddings", None)
    table = getattr(find() if callable(find) else None, "weight", None)
    if table is not objective.parameters.tensors[index] or not bool(direction.any()):
        return []
    [batch] = pieces(objective)[:1]
    ids = batch.ids.clone()
    ids[:, 0] = int((direction != 0).any(-1).nonzero()[0, 0])
    return [replace(batch, ids=ids)]


def _slab(objective: Objective, claim: Claim, undecayed: Sequence[int], seed: int) -> tuple[Slab | None, Check]:
    names = [p.name for p in objective.parameters.parameters]
    known = [i for i in undecayed if names[i] in claim.slab]
    if strange := sorted(set(claim.slab) - {names[i] for i in known}):
        words = f"{len(strange)} of the tensors along which the witness calls the loss bounded decay, or are not θ's"
        return None, Check(f"{words}: nothing is refuted by them.", False)
    slab = bounded_tensors(objective, _traced(objective, []), known, seed)
    if (
        slab is None
        or slab.contradiction
        or set(slab.tensors) != set(claim.slab)
        or not all(map(math.isfinite, slab.losses))
    ):
        words = f"The loss is not shown to be bounded along the {len(known)} tensors that the witness names"
        return None, Check(f"{words}: nothing is refuted by them.", False)
    others = f" and {len(known) - 1} more" if len(known) > 1 else ""
    return slab, Check(
        f"Whatever the undecayed {slab.tensors[0]}{others}, the loss is at most {upper(slab.bound, 3)} nats per token: "
        "criteria (ii) and (iii) are refuted again.",
        True,
    )


def _traced(objective: Objective, more: Sequence[Batch]) -> list[tuple[LossGraph, float]]:
    return [(trace_loss(objective, b), objective_terms(objective, b)) for b in (*pieces(objective), *more)]


def _subject_checks(claim: Claim, text: TextRecord) -> list[Check]:
    """Whether it is about this text."""
    if claim.text_checksum is None or claim.text_checksum == text_checksum(text):
        return []
    return [Check("The text or the tokenizer is not the one that was audited: what follows is about this one.", False)]


def _design(settings: AuditSettings, objective: Objective) -> str:
    """What was evaluated, in words that are not the witness's."""
    size = f"{settings.groups} groups of {settings.sequences} × {settings.block} tokens"
    whole = ", which are taken for all the data there are" if settings.finite else ""
    space = objective.parameters
    return (
        f"Evaluated at λ = {settings.weight_decay:g}, s = {settings.temperature:g}, where {space.decayed_size:,} of "
        f"{space.size:,} coordinates decay, on {size}{whole}."
    )
