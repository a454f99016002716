"""The commands: one line each here, and a folder each with settings.py, record.py, run.py and page.py.

The folder of a command gives four things by these names, imported when they are used:

- `settings.SETTINGS`: its class of settings, whose fields are its options (`commands/option.py`, `commands/blocks.py`);
- `record.RECORDS`: the kinds of record that its run may hold;
- `run.run(settings, work) -> Outcome`: the work;
- `page`: `headline`, `findings`, `pictures`, `tables` and `limits` of one record, where an empty finding and a picture
  that is None are left out; `show`, which prints all but where the page is; `summary` of all records of a run, where
  they must be told together; `exit_code` of a record, where it is not always 0.
"""

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from villani.commands.blocks import Settings
from villani.commands.running import Run


@dataclass(frozen=True)
class Command:
    """A command of `villani`.

    Attributes:
        name: as it is typed.
        package: where its folder is.
        shared: processes of torchrun can share its units, or its training runs.
        directory: where a run is kept, if not in a folder named after its settings.
    """

    name: str
    package: str
    shared: bool = False
    directory: str | None = None

    @property
    def settings(self) -> type[Settings]:
        """Its class of settings."""
        made: type[Settings] = self._module("settings").SETTINGS
        return made

    @property
    def records(self) -> tuple[type[Any], ...]:
        """The kinds of record of its run."""
        kinds: tuple[type[Any], ...] = self._module("record").RECORDS
        return kinds

    @property
    def run(self) -> Run:
        """What does the work."""
        run: Run = self._module("run").run
        return run

    @property
    def page(self) -> ModuleType:
        """What tells of its records."""
        return self._module("page")

    def _module(self, name: str) -> ModuleType:
        return import_module(f"{self.package}.{name}")


def _own(name: str, **options: Any) -> Command:
    return Command(name, f"villani.commands.{name.split()[-1]}", **options)


COMMANDS = [
    _own("measure", shared=True),
    _own("audit"),
    _own("spectrum"),
    _own("converge"),
    _own("certify"),
    _own("recommend", shared=True),
    _own("compare"),
    _own("constants"),
    _own("exact"),
    _own("study paper", shared=True),
    _own("demo", directory="runs/demo"),
]


def command_of(settings: Settings) -> Command:
    """The command that settings belong to."""
    return next(command for command in COMMANDS if command.name == settings.name)


def command_for(record: Any) -> Command:
    """The command whose page tells of a record."""
    return next(command for command in COMMANDS if type(record) in command.records)
