"""What `villani exact` does: the truth about potentials beside every bound on them, and the reference values of §9."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from villani.bounds import check_bounds
from villani.commands.exact.record import (
    CheckRecord,
    ConstantRecord,
    ExactRecord,
    LogSobolevRecord,
    MissingRecord,
    PointRecord,
    ReferenceRecord,
    RelativeEntropyRecord,
)
from villani.commands.finish import default_name, finish
from villani.errors import InputError
from villani.theory.applicable import Missing, lower_bounds, upper_bounds
from villani.theory.catalogue import CATALOGUE, Case, case
from villani.theory.comparison import Comparison, compare, powers
from villani.theory.constants import Constant
from villani.theory.exact import Truth, relative_entropy, solve
from villani.theory.potential import Shape
from villani.theory.reference import checks
from villani.work.ledger import Ledger, write_settings
from villani.work.progress import Progress, Silent


class ExactSettings(BaseModel):
    """What `villani exact` was asked; None and [] mean the defaults of the catalogue. β = 2/s."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    potential: str
    weight_decay: list[float] = []
    temperature: list[float] = []
    beta: list[float] = []
    dimension: list[int] = []
    parameters: dict[str, float] = {}
    shape: Shape | None = None
    digits: int | None = None

    @property
    def betas(self) -> list[float]:
        """β, from whichever of the two was given.

        Raises:
            InputError: both were, or s is not positive.
        """
        if self.temperature and self.beta:
            raise InputError("temperature and beta say the same (β = 2/s): give one")
        for s in self.temperature:
            if not 0 < s < math.inf:
                raise InputError(f"temperature={s:g}: expected a finite number > 0")
        return self.beta or [2 / s for s in self.temperature]

    @property
    def varied(self) -> Literal["weight_decay", "temperature", "dimension"] | None:
        """Which of λ, s and d has several values.

        Raises:
            InputError: more than one of them.
        """
        lists: list[tuple[Literal["weight_decay", "temperature", "dimension"], Sequence[float]]] = [
            ("weight_decay", self.weight_decay), ("temperature", self.betas), ("dimension", self.dimension),
        ]  # fmt: skip
        several = [name for name, values in lists if len(values) > 1]
        if len(several) > 1:
            raise InputError(f"{' and '.join(several)} have several values: vary one of them at a time")
        return several[0] if several else None


def run_exact(
    settings: ExactSettings, run: Path | None = None, progress: Progress | None = None
) -> tuple[Path, ExactRecord]:
    """Solve the potential at every asked λ, s and d; λ, s and d are questions, the rest is what a run is about.

    Args:
        settings: what to solve.
        run: directory; made from the settings when None. Points that it holds are not solved again.
        progress: told where the work is.

    Returns:
        the run directory and its record.

    Raises:
        InputError: anything about the potential or the settings that cannot be solved. What fails at the first point
            leaves no directory.
    """
    progress = progress or Silent()
    check_bounds(settings)
    cases = _cases(settings)
    progress.stage("solving")
    progress.advance(0, len(cases))
    points = [_point(cases[0], settings.digits)]
    asked = {
        **settings.model_dump(),
        "parameters": [f"{name}={value:g}" for name, value in settings.parameters.items()],
    }
    keyed = {name: asked[name] for name in ("potential", "parameters", "shape", "digits")} | versions()
    directory = run or Path("runs") / default_name("exact", settings.potential, {**asked, **keyed})
    with Ledger(directory, keyed) as ledger:
        write_settings(directory, asked)
        for done, one in enumerate(cases[1:], 1):
            progress.advance(done, len(cases))
            points.append(_kept(ledger, one, settings.digits))
        progress.advance(len(cases), len(cases))
        record = _record(settings, cases[0], points)
        finish(directory, f"villani exact {settings.potential}", [record], {})
    return directory, record


def run_reference(run: Path | None = None, progress: Progress | None = None) -> tuple[Path, ReferenceRecord]:
    """Recompute every reference value of THEORY.md that is about exact truths.

    Args:
        run: directory; made from the versions of the software when None.
        progress: told where the work is.

    Returns:
        the run directory and its record.
    """
    progress = progress or Silent()
    progress.stage("recomputing the reference values")
    found = [
        CheckRecord(
            row=check.row, quantity=check.quantity, printed=check.printed, computed=check.computed, passes=check.passes
        )
        for check in checks()
    ]  # fmt: skip
    passed = sum(check.passes for check in found)
    record = ReferenceRecord(passed=passed, failed=len(found) - passed, checks=found)
    keyed = {"all": True, **versions()}
    directory = run or Path("runs") / default_name("exact", "all", keyed)
    with Ledger(directory, keyed):
        write_settings(directory, {"all": True})
        finish(directory, "villani exact --all", [record], {})
    return directory, record


def versions() -> dict[str, str]:
    """Of what moves the last bits of a truth."""
    return {name: version(name) for name in ("villani", "numpy", "scipy")}


def _cases(settings: ExactSettings) -> list[Case]:
    decays: list[float | None] = [*settings.weight_decay] or [None]
    betas: list[float | None] = [*settings.betas] or [None]
    dimensions: list[int | None] = [*settings.dimension] or [None]
    _ = settings.varied  # refuses two axes before anything is solved
    return [
        case(
            settings.potential, weight_decay=decay, beta=beta, parameters=settings.parameters, dimension=dimension,
            shape=settings.shape,
        )
        for decay, beta, dimension in product(decays, betas, dimensions)
    ]  # fmt: skip


def _kept(ledger: Ledger, one: Case, digits: int | None) -> PointRecord:
    """A point from the ledger, solved and put there if it is not."""
    law = one.potential
    key = f"{law.weight_decay!r}/{law.beta!r}/{law.dimension}"
    if (row := ledger.get(key)) is not None:
        return PointRecord.model_validate_json(row["record"].tobytes())
    start = perf_counter()
    point = _point(one, digits)
    content = np.frombuffer(point.model_dump_json().encode(), dtype=np.uint8)
    ledger.put(key, {"record": content}, seconds=perf_counter() - start, peak_memory_bytes=0)
    return point


def _record(settings: ExactSettings, first: Case, points: list[PointRecord]) -> ExactRecord:
    entry = CATALOGUE.get(settings.potential)
    return ExactRecord(
        potential=settings.potential,
        expression=first.potential.loss.text,
        about=entry.about if entry else "a potential of one's own",
        proved=first.proved.why if first.proved else "",
        shape=first.potential.shape,
        varied=settings.varied,
        points=points,
    )


def _point(one: Case, digits: int | None) -> PointRecord:
    law = one.potential
    truth = solve(law, digits)
    upper, missing = upper_bounds(law, one.proved)
    comparison = compare([*upper, *lower_bounds(truth)])
    entropy = None
    if law.weight_decay > 0 and law.core == 1 and law.shape != "radial":
        entropy = RelativeEntropyRecord(**asdict(relative_entropy(law, truth)))
    sobolev = None
    if truth.log_sobolev is not None and truth.log_sobolev_status is not None:
        sobolev = LogSobolevRecord(
            value=truth.log_sobolev, status=truth.log_sobolev_status, note=truth.log_sobolev_note
        )  # fmt: skip
    return PointRecord(
        weight_decay=law.weight_decay,
        temperature=2 / law.beta,
        beta=law.beta,
        dimension=law.dimension,
        gaps=list(truth.gaps),
        poincare=truth.poincare,
        error=truth.error,
        status=truth.status,
        why=truth.why,
        digits=truth.digits,
        floor=truth.floor,
        diffusion_gap=1 / (law.beta * truth.poincare),
        log_sobolev=sobolev,
        moments=asdict(truth.moments),
        identities=truth.moments.identity_errors(law.beta, law.dimension),
        relative_entropy=entropy,
        constants=[constant_record(constant) for constant in comparison.constants],
        missing=[MissingRecord(id=gone.id, reason=gone.reason) for gone in (*missing, *failed_hypotheses(comparison))],
        verdict=_verdict(truth, comparison),
    )


def constant_record(constant: Constant) -> ConstantRecord:
    """A bound as a record."""
    return ConstantRecord(
        id=constant.id, name=constant.name, value=constant.value if constant.log10 < 300 else None,
        log10=constant.log10, direction=constant.direction, kind=constant.kind, hypotheses=constant.hypotheses,
        status=constant.status, source=constant.source,
    )  # fmt: skip


def failed_hypotheses(comparison: Comparison) -> list[Missing]:
    """Theorems whose bound lies below the truth: what was taken for their hypothesis does not hold."""
    return [
        Missing(
            constant.id,
            f"its hypothesis fails ({constant.hypotheses}): it would give {constant.kind} ≤ {powers(constant)}, "
            "below the truth",
        )
        for constant in comparison.failed
    ]


def _verdict(truth: Truth, comparison: Comparison) -> str:
    """One sentence: the truth and its status, what it refutes, and how loose the best bound is."""
    words = [f"C_P = {truth.poincare:.{truth.digits}g} ({truth.status}{': ' if truth.why else ''}{truth.why})"]
    words += [f"{c.id}'s {powers(c)} is refuted" for c in comparison.refuted]
    doubted = [c for c in comparison.constants if c.status == "as-claimed" and c.log_value < math.log(truth.poincare)]
    words += [f"{c.id}'s {powers(c)} lies below this estimate, which refutes nothing" for c in doubted]
    words += [f"the hypothesis of {c.id} fails" for c in comparison.failed]
    if comparison.best and comparison.log_looseness is not None:
        best = comparison.best
        orders = comparison.log_looseness / math.log(10)
        loose = f"loose by {orders:.1f} orders of magnitude" if orders > 0.005 else "tight"
        words.append(
            f"the best bound that may be used, {best.id}, {best.kind} ≤ {powers(best)} ({best.status}), is {loose}"
        )
    elif not comparison.best:
        words.append("no upper bound of §3 applies")
    return "; ".join(words)
