"""What `villani exact` does: the truth about potentials beside every bound on them, and the reference values of §9."""

import math
from dataclasses import asdict
from functools import partial
from pathlib import Path

from villani.commands.exact.record import (
    CheckRecord,
    ExactRecord,
    LogSobolevRecord,
    PointRecord,
    ReferenceRecord,
    RelativeEntropyRecord,
)
from villani.commands.exact.settings import ExactSettings, cases
from villani.commands.running import Outcome, versions
from villani.errors import InputError
from villani.theory.applicable import Missing, lower_bounds, upper_bounds
from villani.theory.catalogue import CATALOGUE, Case
from villani.theory.comparison import Comparison, compare, powers
from villani.theory.exact import relative_entropy, solve
from villani.theory.reference import checks
from villani.theory.truth import Truth
from villani.work.work import Work

_PACKAGES = ("villani", "numpy", "scipy")  # what a run depends on


def run(settings: ExactSettings, work: Work) -> Outcome:
    """Solve the potential at every λ, s and d, or recompute the reference values.

    λ, s and d are questions, the rest is what a run is about: points that it holds are not solved again.

    Raises:
        InputError: no potential, or one that cannot be solved. What fails at the first point leaves no directory.
    """
    if settings.lists:
        raise InputError("exact: options need a potential; give a name or an expression, or none to list the names")
    record = _reference(work) if settings.all else _solved(settings, work)
    return Outcome([record], copy=Path(settings.output) if settings.output else None)


def _reference(work: Work) -> ReferenceRecord:
    work.open("exact", "all", {"all": True} | versions(*_PACKAGES), {"all": True})
    work.stage("recomputing the reference values")
    rows = [CheckRecord.of(check) for check in checks()]
    passed = sum(row.passes for row in rows)
    return ReferenceRecord(passed=passed, failed=len(rows) - passed, checks=rows)


def _solved(settings: ExactSettings, work: Work) -> ExactRecord:
    every = cases(
        settings.about, settings.weight_decay, settings.betas, settings.dimension, parameters=settings.parameters,
        shape=settings.shape,
    )  # fmt: skip
    work.stage("solving")
    points = [_point(every[0], settings.digits)]
    given = settings.model_dump(exclude={"all", "output"}) | {"parameters": settings.assignments}
    keyed = {name: given[name] for name in ("potential", "parameters", "shape", "digits")} | versions(*_PACKAGES)
    work.open("exact", settings.about, keyed, given, named=given | keyed)
    work.stage("solving")
    for done, one in enumerate(every[1:], 1):
        law = one.potential
        key = f"{law.weight_decay!r}/{law.beta!r}/{law.dimension}"
        points.append(work.once_record(key, PointRecord, partial(_point, one, settings.digits)))
        work.advance(done, len(every) - 1)
    entry = CATALOGUE.get(settings.about)
    law, proved = every[0].potential, every[0].proved
    return ExactRecord(
        potential=settings.about, expression=law.loss.text, proved=proved.why if proved else "", shape=law.shape,
        about=entry.about if entry else "a potential of one's own", varied=settings.varied, points=points,
    )  # fmt: skip


def _point(one: Case, digits: int | None) -> PointRecord:
    law = one.potential
    truth = solve(law, digits)
    upper, missing = upper_bounds(law, one.proved)
    comparison = compare([*upper, *lower_bounds(truth)])
    failed = [  # bounds of theorems below the truth: what was taken for their hypothesis does not hold
        Missing(c.id, f"its hypothesis fails ({c.hypotheses}): it would give {c.kind} ≤ {powers(c)}, below the truth")
        for c in comparison.failed
    ]
    entropy = None
    if law.weight_decay > 0 and law.core == 1 and law.shape != "radial":
        try:
            entropy = RelativeEntropyRecord.of(relative_entropy(law, truth))
        except InputError as error:  # C_P is known all the same
            failed.append(Missing("KL to the prior", str(error)))
    sobolev = None
    if truth.log_sobolev is not None:
        sobolev = LogSobolevRecord.of(
            value=truth.log_sobolev, status=truth.log_sobolev_status, note=truth.log_sobolev_note
        )
    return PointRecord.of(
        truth,
        **{name: getattr(law, name) for name in ("weight_decay", "beta", "dimension")},
        temperature=2 / law.beta,
        diffusion_gap=1 / (law.beta * truth.poincare),
        log_sobolev=sobolev,
        moments=asdict(truth.moments),
        identities=truth.moments.identity_errors(law.beta, law.dimension),
        relative_entropy=entropy,
        constants=comparison.constants,
        missing=[*missing, *failed],
        verdict=_verdict(truth, comparison),
    )


def _verdict(truth: Truth, comparison: Comparison) -> str:
    """One sentence: the truth and its status, what it refutes, and how loose the best bound is."""
    words = [f"C_P = {truth.poincare:.{truth.digits}g} ({truth.status}{': ' if truth.why else ''}{truth.why})"]
    words += [f"{c.id}'s {powers(c)} is refuted" for c in comparison.refuted]
    doubted = [c for c in comparison.constants if c.status == "as-claimed" and c.log_value < math.log(truth.poincare)]
    words += [f"{c.id}'s {powers(c)} lies below this estimate, which refutes nothing" for c in doubted]
    words += [f"the hypothesis of {c.id} fails" for c in comparison.failed]
    if comparison.best and comparison.log_looseness is not None:
        best, orders = comparison.best, comparison.log_looseness / math.log(10)
        loose = f"loose by {orders:.1f} orders of magnitude" if orders > 0.005 else "tight"
        bound = f"{best.id}, {best.kind} ≤ {powers(best)} ({best.status})"
        words.append(f"the best bound that may be used, {bound}, is {loose}")
    elif not comparison.best:
        words.append("no upper bound of §3 applies")
    return "; ".join(words)
