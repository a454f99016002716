"""How every command runs: settings, a run directory, the work, records with their costs, and the page."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from villani.commands.blocks import Settings
from villani.errors import InputError
from villani.work.ledger import has_records, write_atomically, write_costs, write_records
from villani.work.progress import Progress
from villani.work.records import Cost
from villani.work.team import Team, alone
from villani.work.work import PAGE, Work


@dataclass(frozen=True)
class Outcome:
    """What the work of a command came to.

    Attributes:
        records: all of its records, in the order of the page.
        costs: what a record cost, by its number.
        shown: the number of the record that is printed.
        title: of the page, if not that of the settings.
        copy: a file that the page is written to, too.
    """

    records: list[Any]
    costs: Mapping[int, Cost] = field(default_factory=dict)
    shown: int = 0
    title: str | None = None
    copy: Path | None = None

    @property
    def record(self) -> Any:
        """The record that is printed, with what it cost."""
        record = self.records[self.shown]
        cost = self.costs.get(self.shown)
        return record if cost is None else record.model_copy(update={"cost": cost})

    def with_parts(self, seconds: Mapping[str, float]) -> "Outcome":
        """The same with what stages took in the cost of the record that is printed, if it has one."""
        cost = self.costs.get(self.shown)
        if cost is None:
            return self
        cost = cost.model_copy(update={"parts": dict(seconds) | (cost.parts or {})})
        return replace(self, costs={**self.costs, self.shown: cost})


Run = Callable[[Any, Work], Outcome]


def execute(
    settings: Settings, run: Path | None = None, data: Path | None = None, progress: Progress | None = None,
    team: Team | None = None,
) -> tuple[Path, Any]:  # fmt: skip
    """Do what a command does, and keep it in its run directory.

    Args:
        settings: of any command.
        run: directory; made from the settings when None. The same settings resume it.
        data: folder of text and tokenizer files; the environment variable VILLANI_DATA by default.
        progress: told where the work is.
        team: processes that share the work, all called with the same arguments; process 0 alone writes.

    Returns:
        the run directory, and the record with what it cost; None in a process that has nothing more to do.

    Raises:
        InputError: anything about the input that cannot be worked with; finished units are kept.
        LostProcess: another process of the team is gone; finished units are kept.
    """
    from villani.commands.registry import command_of  # whose types this module has

    if not command_of(settings).shared:
        alone(f"villani {settings.name}")
    with Work(run, data, progress, team) as work:
        return perform(settings, work)


def perform(settings: Settings, work: Work) -> tuple[Path, Any]:
    """As `execute`, with work that exists, such as that of a command which uses another one's."""
    from villani.commands.content import run_records  # these name this module's types
    from villani.commands.pages import page_of
    from villani.commands.registry import command_of

    command = command_of(settings)
    settings.check_all()
    outcome = command.run(settings, work)
    directory = work.directory
    assert directory is not None, "a run opens its directory"
    work.stage(PAGE)
    if not work.team.main:
        return directory, outcome.record if outcome.records else None
    title = outcome.title or settings.title
    records = run_records()(villani=version("villani"), title=title, records=outcome.records)
    earlier = None if work.stages.clock.made else _earlier_parts(directory, records, outcome)
    outcome = outcome.with_parts(earlier or work.stages.seconds())
    work.write_settings()
    write_records(directory, records, outcome.costs)
    page = page_of(directory)
    for path in (directory / "report.html", *([outcome.copy] if outcome.copy else [])):
        write_atomically(path, page)
    outcome = outcome.with_parts(earlier or work.stages.seconds())
    write_costs(directory, outcome.costs)  # the page's seconds too
    return directory, outcome.record


def _earlier_parts(directory: Path, records: BaseModel, outcome: Outcome) -> Mapping[str, float] | None:
    """What stages took in the run that this one did not add to, so that the same command says the same again."""
    from villani.commands.pages import read_costs

    if not has_records(directory, records):  # but those of another question
        return None
    with suppress(InputError):  # damaged: it is written anew
        cost = read_costs(directory / "cost.json", len(outcome.records)).get(outcome.shown)
        return cost.parts if cost else None
    return None


def versions(*packages: str) -> dict[str, str]:
    """Of what moves the last bits of a result."""
    return {name: version(name) for name in packages}
