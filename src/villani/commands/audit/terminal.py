"""An audit and a replay in the terminal: what was decided and why, and Ψ along the worst orbit."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from villani.commands.audit.record import AuditRecord, ReplayRecord, StepRecord
from villani.report.terminal import estimate_cells, print_page


def show_audit(record: AuditRecord, directory: Path, console: Console) -> None:
    """Ψ along the worst orbit, what the audit cost, and where page and witness are."""
    if walk := next((orbit.walk for orbit in record.differential_evidence.orbits if orbit.walk), None):
        _print_walk(console, walk)
    if record.cost:
        console.print(f"{record.cost.seconds:.0f} s, peak memory {record.cost.peak_memory_bytes / 2**30:.2f} GiB")
    if record.witness:
        console.print(f"The witness: villani audit --replay {directory / record.witness}", markup=False, soft_wrap=True)
    print_page(console, directory)


def show_replay(record: ReplayRecord, directory: Path, console: Console) -> None:
    """What a witness claims, and what came out."""
    for sentence in record.sentences:
        console.print(sentence, markup=False, soft_wrap=True)
    if record.walk:
        _print_walk(console, record.walk)
    print_page(console, directory)


def _print_walk(console: Console, walk: Sequence[StepRecord]) -> None:
    table = Table("R", "change of the loss", "Ψ predicted", "Ψ measured")
    for step in walk:
        change = "the same bits" if step.loss_change == 0 else f"{step.loss_change:.1g}"
        table.add_row(f"{step.scale:g}", change, estimate_cells(step.predicted)[0], estimate_cells(step.measured)[0])
    console.print(table)
