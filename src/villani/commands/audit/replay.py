"""What `villani audit --replay WITNESS` does: prove and measure again what an audit refuted, believing nothing of it.

A witness is data from a stranger. Exponents, directions and tensors are proved by the code that finds them in an audit;
what was measured is measured again and held against what is claimed. Its words, such as the name of an orbit, are not
repeated. What does not come out as claimed is said, and the witness is then not reproduced.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import torch

from villani.commands.audit.claims import Check, bound_checks, scale_checks
from villani.commands.audit.needs import replay_needs
from villani.commands.audit.record import ReplayRecord
from villani.commands.audit.settings import AuditSettings
from villani.commands.audit.trust import replayed_settings, wishes
from villani.commands.audit.witness import Witness, indexed, read_witness, text_checksum
from villani.commands.subject import determining, load_subject
from villani.criteria.coverage import Slab, bounded_tensors, objective_terms
from villani.criteria.differential import FURTHEST, SCALES, short_batch
from villani.criteria.flat import FlatDirection, reproved
from villani.criteria.orbits import Threshold, exponents_of, orbit_of, orbits_of, replaced, threshold
from villani.criteria.parts import PartStatistics, part_statistics, parts_of
from villani.criteria.patterns import pieces
from villani.criteria.rounding import beyond, drift_allowed, laplacian_rounding
from villani.criteria.symmetries import generators
from villani.criteria.walks import Step, walk_orbit, walked_sets
from villani.errors import InputError
from villani.objective.batches import Batch
from villani.objective.graph import LossGraph, trace_loss
from villani.objective.objective import Objective
from villani.outwards import upper
from villani.work.work import Work

_LESS = "the witness says how much is measured: give a machine with more"
_MORE = re.compile(r"\d{1,4} more at once")  # as `pooled` names orbits


def replay(settings: AuditSettings, work: Work) -> ReplayRecord:
    """Evaluate a witness on the model and text that it names; all groups measure, since none has to choose.

    Args:
        settings: which witness, and what its reader says of model, text, seed and machine; see `replayed_settings`.
        work: to open.

    Raises:
        InputError: not a witness, one that names files, or a model that is not the one that it is of.
    """
    assert settings.replay is not None
    path = Path(settings.replay)
    witness, checksum = read_witness(path)
    claim = witness.claim
    work.stage(wishes(claim.settings))
    audited = replayed_settings(settings, claim.settings)
    subject = load_subject(audited, work, audited.weight_decay)
    objective = subject.objective
    if subject.provenance.parameter_checksum != claim.parameter_checksum:
        raise InputError(
            f"--replay {path}: the witness is of parameters {claim.parameter_checksum[:12]!r}…, {audited.model} has "
            f"{subject.provenance.parameter_checksum[:12]!r}…: give the model that was audited"
        )
    audited.check_design(objective.parameters.size)
    for kind, whole in (("orbit", False), ("moved", True), ("flat", True)):
        indexed(getattr(witness, kind), objective.parameters, whole=whole)  # refused before anything is written
    work.open(
        "replay", audited.about,
        {**determining(audited, subject.text, subject.provenance), "decay": audited.decay, "witness": checksum},
        audited.model_dump() | {"witness": checksum}, needs=replay_needs(audited, subject, claim), what="this replay",
        instead=_LESS, device=audited.device, most=settings.memory,
    )  # fmt: skip
    replayed = _Replay(objective, witness, audited, work)
    checks = replayed.evaluate()
    reproduced = bool(checks) and all(check.holds for check in checks)
    if claim.text_checksum not in (None, text_checksum(subject.text)):
        words = "The text or the tokenizer is not the one that was audited: what follows is about this one."
        checks, reproduced = [Check(words, False), *checks], False
    return ReplayRecord.of(
        replayed,
        model=subject.loaded.record,
        text=subject.text,
        witness_checksum=checksum,
        reproduced=reproduced,
        **audited.model_dump(include={"weight_decay", "temperature", "seed"}),
        claimed=claim.threshold,
        sentences=[_design(audited, objective), *(check.sentence for check in checks)],
        provenance=subject.provenance.model_copy(update={"command": settings.command()}),
    )


class _Replay:
    """Every part of a claim, proved and measured again; None where there is none, or it is not what it claims to be."""

    def __init__(self, objective: Objective, witness: Witness, settings: AuditSettings, work: Work) -> None:
        self.objective, self.witness, self.settings, self.work = objective, witness, settings, work
        self.claim, self.space, self.seed = witness.claim, objective.parameters, settings.seed or 0
        self.undecayed = [
            i for i, p in enumerate(self.space.parameters) if objective.weight_decay == 0 or not p.decayed
        ]
        self.checks: list[Check] = []
        self.orbit: str | None = None
        self.found: Threshold | None = None
        self.walk: Sequence[Step] = ()
        self.flat: FlatDirection | None = None
        self.slab: Slab | None = None

    def evaluate(self) -> list[Check]:
        """What was looked at."""
        if self.claim.orbit is not None:
            self._along_the_orbit(self.claim.orbit)
        if self.claim.flat is not None:
            self.work.stage("proving the flat direction")
            self._flat()
        if self.claim.slab:
            self.work.stage("bounding the loss")
            self._slab()
        return self.checks

    def _say(self, sentence: str, holds: bool = False) -> None:
        self.checks.append(Check(sentence, holds))

    def _along_the_orbit(self, claimed: str) -> None:
        objective, space, settings, work = self.objective, self.space, self.settings, self.work
        exponents = {i: e.to(torch.float64) for i, e in indexed(self.witness.orbit, space, whole=False).items()}
        work.stage("proving the orbit")
        basis = generators(trace_loss(objective, short_batch(objective)))
        orbit = orbit_of(exponents, basis, space)
        if isinstance(orbit, str):
            self._say(f"The orbit that the witness states {orbit}: criterion (iv) is not refuted by it.")
            return
        first, _, more = claimed.partition(" and ")
        if _MORE.fullmatch(more) and first in {known.name for known in orbits_of(basis, space)}:
            orbit = replace(orbit, name=f"{first} and {more}")  # rather than a list of all tensors of a pool
        self.orbit = orbit.name
        checks, scales = scale_checks(self.claim.scales, SCALES, FURTHEST)
        self.checks += checks
        parts = parts_of(space, [orbit.exponents])
        along = exponents_of(orbit, parts)
        block = [int(i) for i in np.flatnonzero(along == along.min())]
        number = count()

        def measured(scope: str, blocks: list[list[int]]) -> PartStatistics:
            return part_statistics(
                objective, parts, range(len(objective.groups)), seed=self.seed, probes=settings.probes, blocks=blocks,
                work=work.scope(scope).part(next(number), 2 + len(scales)),
            )  # fmt: skip

        work.stage("walking the orbit")
        with replaced(objective, indexed(self.witness.moved, space, whole=True)):
            bound = threshold(along, measured("threshold", [block]), settings.weight_decay)
            bound = beyond(bound, laplacian_rounding(objective, parts, orbit, [0], self.seed))
            walk = walk_orbit(
                objective,
                orbit,
                along,
                lambda scale: measured(f"walk/{scale:g}", walked_sets(along, scale)),
                settings.temperature,
                scales,
            )
        estimates = [bound.gradient_norm_squared, bound.laplacian]
        estimates += [estimate for step in walk for estimate in (step.predicted, step.measured)]
        numbers = [number for e in estimates for number in (e.value, e.sem)] + [step.loss_change for step in walk]
        if not all(map(math.isfinite, numbers)):
            words = "the loss or its derivatives are not finite: criterion (iv) is not refuted by it."
            self._say(f"Along {orbit.name} {words}")
            return
        drift = max(step.loss_change for step in walk)
        same = "by not a single bit" if drift == 0 else f"by up to {upper(drift, 1)} nats per token"
        allowed = drift_allowed(objective.loss(0), space.dtype)
        self._say(f"Along {orbit.name} the loss changes {same} for R up to {walk[-1].scale:g}.", drift <= allowed)
        assert self.claim.threshold is not None
        self.checks += bound_checks(self.claim.threshold, bound)
        self.found, self.walk = bound, walk

    def _flat(self) -> None:
        objective = self.objective
        [(index, direction)] = indexed(self.witness.flat, self.space, whole=True).items()
        name = self.space.parameters[index].name
        graphs = self._traced(_looking_up(objective, index, direction))
        flat = reproved(objective, graphs, self.undecayed, index, direction, self.seed)
        if isinstance(flat, str):
            self._say(f"The direction in {name} that the witness calls flat {flat}: nothing is refuted by it.")
            return
        self.flat = flat
        self._say(
            f"Along {flat.kind} of {name}, moves of {', '.join(f'{c:g}' for c in flat.steps)} change the loss by at "
            f"most {upper(max(flat.changes), 1)} nats per token, and the traced graph proves that none does: criteria "
            "(ii) and (iii) are refuted again.",
            True,
        )

    def _slab(self) -> None:
        names, claimed = [p.name for p in self.space.parameters], set(self.claim.slab)
        known = [i for i in self.undecayed if names[i] in claimed]
        if strange := claimed - {names[i] for i in known}:
            what = "of the tensors along which the witness calls the loss bounded decay, or are not θ's"
            self._say(f"{len(strange)} {what}: nothing is refuted by them.")
            return
        slab = bounded_tensors(self.objective, self._traced([]), known, self.seed)
        bounded = slab is not None and not slab.contradiction and set(slab.tensors) == claimed
        if slab is None or not bounded or not all(map(math.isfinite, slab.losses)):
            what = f"The loss is not shown to be bounded along the {len(known)} tensors that the witness names"
            self._say(f"{what}: nothing is refuted by them.")
            return
        self.slab = slab
        others = f" and {len(known) - 1} more" if len(known) > 1 else ""
        self._say(
            f"Whatever the undecayed {slab.tensors[0]}{others}, the loss is at most {upper(slab.bound, 3)} nats per "
            "token: criteria (ii) and (iii) are refuted again.",
            True,
        )

    def _traced(self, more: Sequence[Batch]) -> list[tuple[LossGraph, float]]:
        batches = (*pieces(self.objective), *more)
        return [(trace_loss(self.objective, b), objective_terms(self.objective, b)) for b in batches]


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


def _design(settings: AuditSettings, objective: Objective) -> str:
    """What was evaluated, in words that are not the witness's."""
    size = f"{settings.groups} groups of {settings.sequences} × {settings.block} tokens"
    whole = ", which are taken for all the data there are" if settings.finite else ""
    space = objective.parameters
    return (
        f"Evaluated at λ = {settings.weight_decay:g}, s = {settings.temperature:g}, where {space.decayed_size:,} of "
        f"{space.size:,} coordinates decay, on {size}{whole}."
    )
