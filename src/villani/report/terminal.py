"""What people see in a terminal: progress on stderr, results on stdout."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Column, Table

from villani.commands.audit import page as auditing
from villani.commands.audit.record import AuditRecord, ReplayRecord, StepRecord
from villani.commands.audit.verdict import findings, headline
from villani.commands.certify.record import CertificateRecord, PrequentialRecord
from villani.commands.constants.page import sign as constant_sign
from villani.commands.constants.page import value as constant_value
from villani.commands.converge import page as converging
from villani.commands.converge.record import ConvergenceRecord
from villani.commands.doctor.run import Finding
from villani.commands.paper.record import PaperRecord
from villani.commands.recommend import page as recommending
from villani.commands.recommend.record import RecommendationRecord
from villani.commands.spectrum import page as spectra
from villani.commands.spectrum.record import SpectrumRecord
from villani.measurement.plan import duration
from villani.report.numbers import format_interval, format_number, format_uncertain
from villani.report.outwards import lower, upper
from villani.report.tables import named_statistics
from villani.theory.catalogue import CATALOGUE
from villani.work.progress import Progress
from villani.work.records import (
    ConstantRecord,
    EstimateRecord,
    ExactRecord,
    MeasurementRecord,
    ModelConstantsRecord,
    ReferenceRecord,
)

_QUIET = 60.0  # seconds between two lines of a stage


class Lines:
    """A `villani.work.progress.Progress` where nobody watches: a line for each stage, and at most one a minute."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._stage, self._began, self._told, self._first = "", 0.0, 0.0, 0

    def stage(self, text: str) -> None:
        """Begin a stage of unknown length."""
        self._stage, self._began, self._first = text, time.monotonic(), -1
        self._say(text)

    def advance(self, done: int, total: int) -> None:
        """Show `done` of `total`."""
        now = time.monotonic()
        if self._first < 0:
            self._first, self._began = done, now
        if now - self._told >= _QUIET and done < total:
            each = (now - self._began) / (done - self._first) if done > self._first else None
            left = "" if each is None else f", about {duration(each * (total - done))} left"
            self._say(f"{self._stage}: {done} of {total}{left}")

    def _say(self, text: str) -> None:
        self._told = time.monotonic()
        with suppress(OSError, ValueError):  # nobody reads any more: no reason to stop the work
            print(f"{time.strftime('%H:%M:%S')} {text}", file=self._stream, flush=True)


class Bar:
    """A `villani.work.progress.Progress` on a terminal: one line a stage, with the time left where it is known."""

    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars
        self._task: TaskID | None = None
        self._stage = ""

    def stage(self, text: str) -> None:
        """Begin a stage of unknown length."""
        self._close()
        self._stage = text
        self._task = self._bars.add_task(text, total=None)

    def advance(self, done: int, total: int) -> None:
        """Show `done` of `total`."""
        if self._task is None:
            self.stage(self._stage or "working")
        assert self._task is not None
        self._bars.update(self._task, completed=done, total=total)

    def _close(self) -> None:
        if self._task is not None:
            self._bars.update(self._task, total=1, completed=1) if self._total() is None else None
            self._bars.stop_task(self._task)

    def _total(self) -> float | None:
        return next(task.total for task in self._bars.tasks if task.id == self._task)


@contextmanager
def progress() -> Iterator[Progress]:
    """Bars on stderr while the block runs; lines where stderr is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(sys.stderr)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=console, speed_estimate_period=3600) as bars:
        yield Bar(bars)


def print_measurement(record: MeasurementRecord, directory: Path) -> None:
    """The verdict in words, the statistics with their intervals, Ψ at every λ and s, and where the page is."""
    console = Console(highlight=False)
    console.print(headline(record), style="bold", markup=False)
    for title, paragraph in findings(record).items():
        console.print(f"{title}. {paragraph}", markup=False)
    table = Table("statistic", "estimate", f"{100 * record.design.confidence:g} % interval", "status")
    for name, estimate in named_statistics(record).items():
        table.add_row(name, *_cells(estimate))
    table.add_row("‖mθ‖²", format_number(record.decayed_norm_squared), "", "certified")
    console.print(table)
    table = Table("λ", "s", "Ψ_s", "interval", "status")
    for psi in record.psi:
        table.add_row(format_number(psi.weight_decay), format_number(psi.temperature), *_cells(psi))
    console.print(table)
    if record.cost:
        cost = record.cost
        console.print(
            f"{cost.seconds:.1f} s ({cost.seconds_per_group:.2f} s a group), peak memory "
            f"{cost.peak_memory_bytes / 2**30:.2f} GiB, {cost.tokens:,} predicted tokens"
        )
        if cost.predicted_seconds and cost.pilot_seconds is not None:
            took = cost.seconds - cost.pilot_seconds
            console.print(
                f"The plan said {cost.predicted_seconds:.3g} s; it took {took:.3g} s, and the pilot before it "
                f"{cost.pilot_seconds:.3g} s."
            )
    _print_page(console, directory)


def print_audit(record: AuditRecord, directory: Path) -> None:
    """The four verdicts with their reasons, the orbits with the smallest s*, and where page and witness are."""
    console = Console(highlight=False)
    console.print(auditing.headline(record), style="bold", markup=False, soft_wrap=True)
    for title, paragraph in auditing.findings(record).items():
        console.print(f"{title}. {paragraph}", markup=False, soft_wrap=True)
    if walk := next((orbit.walk for orbit in record.differential_evidence.orbits if orbit.walk), None):
        _print_walk(console, walk)
    if record.cost:
        console.print(f"{record.cost.seconds:.0f} s, peak memory {record.cost.peak_memory_bytes / 2**30:.2f} GiB")
    if record.witness:
        console.print(f"The witness: villani audit --replay {directory / record.witness}", markup=False, soft_wrap=True)
    _print_page(console, directory)


def print_spectrum(record: SpectrumRecord, directory: Path) -> None:
    """The eigenvalues with their bounds, what the whole spectrum comes to, and where the page is."""
    console = Console(highlight=False)
    console.print(spectra.headline(record), style="bold", markup=False, soft_wrap=True)
    for title, paragraph in spectra.findings(record).items():
        console.print(f"{title}. {paragraph}", markup=False, soft_wrap=True)
    table = Table("rank", "eigenvalue", "residual", "bound", "of that rank", "on fresh groups")
    for e in record.eigenvalues:
        held = "" if e.held_out is None else _cells(e.held_out)[0]
        table.add_row(
            str(e.rank), format_number(e.value, 7), upper(e.residual, 2), upper(e.bound, 2), spectra.rank_limit(e), held
        )
    console.print(table)
    if record.cost:
        console.print(
            f"{record.products} products; {record.cost.seconds:.1f} s in all, peak memory "
            f"{record.cost.peak_memory_bytes / 2**30:.2f} GiB"
        )
    _print_page(console, directory)


def print_replay(record: ReplayRecord, directory: Path) -> None:
    """What a witness claims, and what came out."""
    console = Console(highlight=False)
    console.print(auditing.headline(record), style="bold", markup=False, soft_wrap=True)
    for sentence in record.sentences:
        console.print(sentence, markup=False, soft_wrap=True)
    if record.walk:
        _print_walk(console, record.walk)
    _print_page(console, directory)


def _print_walk(console: Console, walk: Sequence[StepRecord]) -> None:
    table = Table("R", "change of the loss", "Ψ predicted", "Ψ measured")
    for step in walk:
        change = "the same bits" if step.loss_change == 0 else f"{step.loss_change:.1g}"
        table.add_row(f"{step.scale:g}", change, _cells(step.predicted)[0], _cells(step.measured)[0])
    console.print(table)


def print_convergence(record: ConvergenceRecord, directory: Path) -> None:
    """What was found in words, and every rate at every λ and s with its verdict."""
    console = Console(highlight=False)
    console.print(converging.headline(record), style="bold", markup=False, soft_wrap=True)
    for title, paragraph in converging.findings(record).items():
        console.print(f"{title} {paragraph}" if title.endswith("?") else f"{title}. {paragraph}", markup=False)
    for point in record.points:
        where = f"λ = {format_number(point.weight_decay)}, s = {format_number(point.temperature)}"
        table = Table("rate", "the gap is", "value", "status", "verdict", title=where, title_justify="left")
        for row in sorted(point.rates, key=lambda row: row.log10):
            table.add_row(escape(row.name), row.side, converging.power(row.log10), row.status, row.verdict or "")
        console.print(table)
    if record.cost:
        console.print(f"{record.cost.seconds:.1f} s, {record.cost.seconds_per_group:.3g} s a step")
    _print_page(console, directory)


def print_exact(record: ExactRecord, directory: Path) -> None:
    """For every point: the truth in a sentence, every bound in order, and what does not apply."""
    console = Console(highlight=False)
    console.print(f"{record.potential}: L = {record.expression} ({record.about})", markup=False, soft_wrap=True)
    for point in record.points:
        console.print(
            f"λ = {point.weight_decay:g}, s = {point.temperature:g} (β = {point.beta:g}), d = {point.dimension}: "
            f"{point.verdict}.",
            style="bold", markup=False, soft_wrap=True,
        )  # fmt: skip
        console.print(_constants(point.constants))
        first, *others = point.gaps
        gaps = ", ".join([f"{first:.{point.digits}g}", *(f"{gap:.{min(point.digits, 6)}g}" for gap in others)])
        what = "C_P is certified within" if point.status == "certified" else "Two grids and boxes differ by"
        console.print(
            f"Gaps of Δ − ∇U·∇: {gaps}; gap of the diffusion: {point.diffusion_gap:.{point.digits}g}. "
            f"{what} {upper(point.error, 1)} (relative), the identities fail by at most "
            f"{upper(max(point.identities.values()), 1)}.",
            soft_wrap=True,
        )  # fmt: skip
        for gone in point.missing:
            console.print(f"{gone.id} does not apply: {gone.reason}", markup=False, soft_wrap=True)
    _print_page(console, directory)


def print_constants(record: ModelConstantsRecord, directory: Path) -> None:
    """For every λ and s: the sentence, and the constants in order."""
    console = Console(highlight=False)
    console.print(
        f"{record.model.description}: {record.parameters:,} parameters, V = {record.vocabulary:,}", markup=False
    )
    for point in record.points:
        console.print(point.sentence, style="bold", markup=False, soft_wrap=True)
        console.print(_constants(point.constants))
        if point.spectral_gap:
            console.print(point.spectral_gap.text, markup=False, soft_wrap=True)
    _print_page(console, directory)


def print_certificate(record: CertificateRecord, directory: Path) -> None:
    """The sentence, every certificate with its terms, and what was refused."""
    console = Console(highlight=False)
    console.print(record.sentence, style="bold", markup=False, soft_wrap=True)
    if record.prequential:
        _print_passes(console, record.prequential)
        _print_page(console, directory)
        return
    table = Table(
        "λ", "certificate", "nats", "empirical", "excess", "complexity", "held-out loss", "held-out bound", "status"
    )
    for point in record.points:
        held = format_uncertain(point.held_out_loss.value, point.held_out_loss.sem)
        for name, bound in (("path", point.path), ("c4", point.chain)):
            if bound is not None:
                table.add_row(
                    f"{point.weight_decay:g}", name, upper(bound.value, places=4), f"{bound.empirical:.4f}",
                    upper(bound.excess, places=4), upper(bound.complexity, places=1), held,
                    upper(point.held_out_bound, places=4), bound.status,
                )  # fmt: skip
    console.print(table)
    for point in record.points:
        for reason in point.refusals:
            console.print(f"λ = {point.weight_decay:g}, not given: {reason}", markup=False, soft_wrap=True)
    _print_page(console, directory)


def _print_passes(console: Console, record: PrequentialRecord) -> None:
    table = Table("λ", "η", "nats", "empirical", "excess", "below start", "gain", "held-out loss", "held-out bound")
    for point in record.points:
        bound, held = point.certificate, point.held_out_loss
        table.add_row(
            f"{point.weight_decay:g}", f"{point.learning_rate:g}", upper(bound.value, places=4),
            f"{bound.empirical:.4f}", upper(bound.excess, places=4), lower(point.below_start, places=4),
            lower(point.gain.value, places=4), format_uncertain(held.value, held.sem),
            upper(point.held_out_bound, places=4),
        )  # fmt: skip
    console.print(table)


def print_paper(record: PaperRecord, directory: Path) -> None:
    """The claims with their verdicts, what was found about λ, and where the page is."""
    console = Console(highlight=False)
    console.print(record.sentence, style="bold", markup=False, soft_wrap=True)
    for words in (record.choice_sentence, record.decay_sentence):
        if words:
            console.print(words, markup=False, soft_wrap=True)
    claims = Table("claim", "verdict", "evidence", "measured")
    for claim in record.claims:
        claims.add_row(escape(claim.claim), claim.verdict, claim.status, escape(claim.measured))
    console.print(claims)
    _print_page(console, directory)


def print_recommendation(record: RecommendationRecord, directory: Path) -> None:
    """For every optimiser: the sentence, the grid, and what every rule says."""
    console = Console(highlight=False)
    for one in record.optimizers:
        console.print(one.sentence, style="bold", markup=False, soft_wrap=True)
        table = Table("λ", "held-out loss", "from the best", "interval", "training loss", "held-out bound", "")
        for cells in recommending.grid_rows(one):
            table.add_row(*cells)
        console.print(table)
        table = Table(
            "rule", "λ", "judged at", "from the best", "interval", "share", "status", Column("notes", ratio=1)
        )
        for cells in recommending.rule_rows(one):
            table.add_row(*(escape(cell) for cell in cells))
        console.print(table)
    if record.cost:
        console.print(f"{record.cost.seconds:.0f} s of training")
    _print_page(console, directory)


def _constants(constants: Sequence[ConstantRecord]) -> Table:
    table = Table("", "bound", "value", "on", "status", "if")
    for constant in constants:
        shown = f"{constant_sign(constant)} {constant_value(constant)}"
        table.add_row(
            constant.id, escape(constant.name), shown, constant.kind, constant.status,
            escape(constant.hypotheses),
        )  # fmt: skip
    return table


def print_reference(record: ReferenceRecord, directory: Path) -> None:
    """Every reference value beside the computed one."""
    console = Console(highlight=False)
    table = Table("row", "quantity", "printed", "computed", "")
    for check in record.checks:
        table.add_row(
            check.row, escape(check.quantity), check.printed, f"{check.computed:.12g}", "ok" if check.passes else "FAIL"
        )
    console.print(table)
    console.print(f"{record.passed} of {record.passed + record.failed} reproduced to the printed digits.")
    _print_page(console, directory)


def print_catalogue() -> None:
    """The named potentials."""
    table = Table("name", Column("L", overflow="fold"), "parameters", "λ", "β", "d", "what")
    for name, entry in CATALOGUE.items():
        parameters = ", ".join(f"{key}={value:g}" for key, value in entry.parameters.items())
        size = str(entry.dimension or ("2" if "*x*y" in entry.text else "1"))
        table.add_row(
            name, escape(entry.text), parameters, f"{entry.weight_decay:g}", f"{entry.beta:g}", size, entry.about
        )
    Console(highlight=False).print(table)


def _print_page(console: Console, directory: Path) -> None:
    console.print(f"The page: {directory / 'report.html'}", markup=False, soft_wrap=True)


def print_doctor(results: Sequence[Finding]) -> None:
    """One line a finding."""
    console = Console(highlight=False)
    for result in results:
        console.print(f"{'ok  ' if result.ok else 'FAIL'} {result.name}: {result.text}", markup=False, soft_wrap=True)


def _cells(estimate: EstimateRecord) -> tuple[str, str, str]:
    return format_uncertain(estimate.value, estimate.sem), format_interval(*estimate.interval), estimate.status
