"""What `villani compare` is asked."""

from pathlib import Path

from villani.commands.blocks import Settings
from villani.commands.option import REQUIRED, option
from villani.errors import InputError
from villani.inputs.folders import local_path
from villani.work import foreign


class CompareSettings(Settings):
    """What changed between runs: differences with intervals, paired where the runs measured the same groups of text.

    The first run is the reference. All are runs of measure (or demo), all of spectrum, or all of audit.

    Example: villani compare runs/before runs/after
    """

    name = "compare"

    runs: list[str] = option(
        REQUIRED, "run folders, two or more; the first is the reference",
        argument=True, each=True, path=True, metavar="RUN",
    )  # fmt: skip

    @property
    def about(self) -> str:
        """See `Settings.about`."""
        return "-".join(self.labels)

    @property
    def labels(self) -> list[str]:
        """A short name of each run: the last part of its path, or as many as tell them apart; no control codes."""
        parts = [Path(run).parts for run in self.runs]
        for length in range(1, max(map(len, parts), default=0) + 1):
            names = [str(Path(*part[-length:])) if part else "." for part in parts]
            if len({*names}) == len(names):
                break
        else:
            names = list(self.runs)
        return [name if name.isprintable() else f"run {number}" for number, name in enumerate(names, 1)]

    def check(self) -> None:
        """See `Settings.check`."""
        if len(self.runs) < 2:
            raise InputError(f"{len(self.runs)} run to compare: give two or more, the first of which is the reference")
        places: set[Path] = set()
        for run in self.runs:
            with foreign.reading(f"run {run!r}", "check its name"):
                place = local_path(run, "run").resolve()
            if place in places:
                raise InputError(f"{run} is given twice: give runs of different folders")
            places.add(place)


SETTINGS = CompareSettings
