"""What `villani audit --replay WITNESS` does: evaluate again what an audit refuted, from the witness alone."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from villani.criteria.coverage import Slab, bounded_tensors, objective_terms
from villani.criteria.flat import FlatDirection, verified
from villani.criteria.orbits import Orbit, Threshold, exponents_of, replaced, threshold
from villani.criteria.parts import PartStatistics, part_statistics, parts_of
from villani.criteria.patterns import pieces
from villani.criteria.rounding import drift_allowed
from villani.criteria.shifts import Proposal
from villani.criteria.walks import Step, walk_orbit
from villani.errors import InputError
from villani.landscape.evaluation import same_threads
from villani.landscape.graph import LossGraph, trace_loss
from villani.landscape.objective import Objective
from villani.outwards import upper
from villani.runs.audits import ReplayRecord
from villani.runs.store import Ledger, write_settings
from villani.studies.audit_model import AuditSettings
from villani.studies.audit_records import flat_record, slab_record, step_record, threshold_record
from villani.studies.finish import default_name, finish
from villani.studies.progress import Progress, Silent
from villani.studies.subject import load_subject
from villani.studies.witness import Claim, Witness, indexed, read_witness


@same_threads()
def replay(
    path: Path,
    run: Path | None = None,
    data: Path | None = None,
    progress: Progress | None = None,
    *,
    model: str | None = None,
    seed: int | None = None,
) -> tuple[Path, ReplayRecord]:
    """Evaluate a witness on the model and text that it names; all groups measure, since none has to choose.

    Args:
        path: the witness.
        run: directory for the record and the page; made from the witness when None.
        data: folder of text and tokenizer files; the environment variable VILLANI_DATA by default.
        progress: told where the work is.
        model: where the model is now, if not where the witness says.
        seed: of the draw of groups and of the probes, if not the witness's: another one is independent evidence.

    Raises:
        InputError: not a witness, or a model that is not the one that it is of.
    """
    show = progress or Silent()
    witness, checksum = read_witness(path)
    claim = witness.claim
    asked = AuditSettings.model_validate(claim.settings)
    changed = {name: value for name, value in (("model", model), ("seed", seed)) if value is not None}
    settings = asked.model_copy(update=changed)
    settings.check()
    subject = load_subject(settings, settings.weight_decay, show, data)
    objective = subject.objective
    if subject.provenance.parameter_checksum != claim.parameter_checksum:
        raise InputError(
            f"--replay {path}: the witness is of parameters {claim.parameter_checksum[:12]}…, {settings.model} has "
            f"{subject.provenance.parameter_checksum[:12]}…: give the model that was audited"
        )
    keyed = {
        **settings.determining(subject.text, subject.provenance, set()), "decay": settings.decay, "witness": checksum,
    }  # fmt: skip
    directory = run or Path("runs") / default_name("replay", settings.model, keyed)
    with Ledger(directory, keyed) as ledger:
        write_settings(directory, settings.model_dump() | {"witness": checksum})
        found: Threshold | None = None
        walk: Sequence[Step] = ()
        if claim.orbit is not None:
            show.stage("walking the orbit")
            found, walk = _orbit(objective, witness, settings, ledger, show)
        flat = _flat(objective, witness)
        slab = None
        if claim.slab:
            places = indexed(
                {p.name: p.tensor for p in objective.parameters.parameters if p.name in claim.slab},
                objective.parameters, whole=True,
            )  # fmt: skip
            slab = bounded_tensors(objective, _traced(objective), list(places), settings.seed)
        allowed = drift_allowed(objective.loss(0), objective.parameters.dtype)
        sentences, reproduced = _judged(claim, found, walk, flat, slab, allowed)
        record = ReplayRecord(
            model=subject.loaded.record,
            text=subject.text,
            witness_checksum=checksum,
            reproduced=reproduced,
            weight_decay=settings.weight_decay,
            temperature=settings.temperature,
            seed=settings.seed,
            orbit=claim.orbit,
            claimed=claim.threshold,
            found=threshold_record(found) if found else None,
            walk=[step_record(step) for step in walk],
            flat=flat_record(flat) if flat else None,
            slab=slab_record(slab) if slab else None,
            sentences=sentences,
            provenance=subject.provenance.model_copy(update={"command": f"villani audit --replay {path.name}"}),
        )
        finish(directory, f"villani audit --replay {path.name}", [record], {})
    return directory, record


def _orbit(
    objective: Objective, witness: Witness, settings: AuditSettings, ledger: Ledger, show: Progress
) -> tuple[Threshold, Sequence[Step]]:
    space = objective.parameters
    exponents = {i: e.to(torch.float64) for i, e in indexed(witness.orbit, space, whole=False).items()}
    if not exponents:
        raise InputError("the witness names an orbit without exponents: it is damaged, run the audit again")
    up = max(int(e.max()) for e in exponents.values())
    down = -min(int(e.min()) for e in exponents.values())
    orbit = Orbit(witness.claim.orbit or "", exponents, up, down)
    parts = parts_of(space, [exponents])
    along = exponents_of(orbit, parts)
    block = [int(i) for i in np.flatnonzero(along == along.min())]
    stages = 2 + len(witness.claim.scales)
    begun = 0

    def measured(scope: str, blocks: list[list[int]]) -> PartStatistics:
        nonlocal begun
        begun += 1
        return part_statistics(
            objective, parts, range(len(objective.groups)), seed=settings.seed, probes=settings.probes, blocks=blocks,
            ledger=ledger.scoped(scope),
            progress=lambda done, total: show.advance((begun - 1) * total + done, stages * total),
        )  # fmt: skip

    with replaced(objective, indexed(witness.moved, space, whole=True)):
        found = threshold(along, measured("threshold", [block]), settings.weight_decay)
        walk = walk_orbit(
            objective, orbit, along, lambda scale: measured(f"walk/{scale:g}", []), settings.temperature,
            witness.claim.scales,
        )  # fmt: skip
    return found, walk


def _flat(objective: Objective, witness: Witness) -> FlatDirection | None:
    if witness.claim.flat is None:
        return None
    [(index, direction)] = indexed(witness.flat, objective.parameters, whole=True).items()
    traced = _traced(objective)
    with objective.evaluating(), torch.no_grad():
        return verified(objective, traced, Proposal(index, direction, witness.claim.flat), ())


def _traced(objective: Objective) -> list[tuple[LossGraph, float]]:
    return [(trace_loss(objective, b), objective_terms(objective, b)) for b in pieces(objective)]


def _surety(level: float) -> str:
    return "up to rounding" if level == 1 else f"at confidence {level:.0%}"


def _judged(
    claim: Claim,
    found: Threshold | None,
    walk: Sequence[Step],
    flat: FlatDirection | None,
    slab: Slab | None,
    allowed: float,
) -> tuple[list[str], bool]:
    """What came out, in sentences, and whether all of it refutes again."""
    sentences = []
    good = []
    if found is not None and claim.threshold is not None:
        drift = max(step.loss_change for step in walk)
        same = "by not a single bit" if drift == 0 else f"by up to {drift:.1g} nats per token"
        again = math.isfinite(found.upper) and drift <= allowed
        good.append(again)
        claimed = "no bound" if claim.threshold.upper is None else f"s* < {upper(claim.threshold.upper, 3)}"
        bound = f"s* < {upper(found.upper, 3)}" if math.isfinite(found.upper) else "no finite bound of s*"
        sentences += [
            f"Along {claim.orbit} the loss changes {same} for R up to {walk[-1].scale:g}.",
            f"The audit claimed {claimed}; these groups give {bound} {_surety(found.level)}: criterion (iv) "
            f"is {'refuted again for every s above that' if again else 'not refuted again'}.",
        ]
    if flat is not None:
        still = all(c <= t for c, t in zip(flat.changes, flat.tolerance, strict=True))
        good.append(still)
        sentences.append(
            f"Along {flat.kind} of {flat.tensor}, moves of {', '.join(f'{c:g}' for c in flat.steps)} change the loss "
            f"by at most {upper(max(flat.changes), 1)} nats per token: criteria (ii) and (iii) are "
            f"{'refuted again' if still else 'not refuted again'}."
        )
    if claim.slab:
        shown = slab is not None and not slab.contradiction
        good.append(slab is not None and shown and set(claim.slab) <= set(slab.tensors))
        bound = f"at most {upper(slab.bound, 3)} nats per token" if slab and shown else "not shown to be bounded"
        sentences.append(f"Whatever the undecayed {claim.slab[0]} and {len(claim.slab) - 1} more, the loss is {bound}.")
    return sentences, all(good) and bool(good)
