"""What `villani study paper` is asked: a TOML file, checked before any work, with one line for what is wrong.

`PaperSettings` is the content of such a file, `PaperOptions` what the command line chooses one by.
"""

import hashlib
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from villani.bounds import check_bounds
from villani.commands.blocks import ConsentBlock, Settings, shared
from villani.commands.certify.settings import CertifySettings
from villani.commands.converge.settings import ConvergeSettings
from villani.commands.option import option
from villani.commands.paper.parts import (
    PARTS,
    CertificatesPart,
    ConvergencePart,
    EstimatorsPart,
    ForgettingPart,
    LandscapePart,
    Part,
    PartName,
    PathologiesPart,
    SchedulesPart,
    SpectraPart,
)
from villani.commands.recommend.settings import CellKey, SweepSettings, TrainedName, check_grid
from villani.errors import InputError, check_positive
from villani.work import foreign

Size = Literal["tiny", "small", "125m", "pretrained", "overfit", "long", "fine-tuning"]
_HELD_OUT = {  # named corpora have a split of their own to judge by
    "ptb": "ptb:valid", "ptb:train": "ptb:valid", "wikitext": "wikitext-103:test", "wikitext-103": "wikitext-103:test",
    "wikitext-103:valid": "wikitext-103:test",
}  # fmt: skip
_TOLD = 5  # things wrong with a file, in one line


class PaperSettings(Part):
    """A study: what is trained, and which experiments are done with it. A part that is left out is not done."""

    sweep: SweepSettings
    temperature: list[float]
    grids: dict[TrainedName, list[float]] = Field(default_factory=dict)  # λ of an optimiser with a grid of its own
    cut: list[str] = Field(default_factory=list)  # what was made smaller than it should be, in words
    landscape: LandscapePart | None = None
    spectra: SpectraPart | None = None
    convergence: ConvergencePart | None = None
    certificates: CertificatesPart | None = None
    estimators: EstimatorsPart | None = None
    pathologies: PathologiesPart | None = None
    schedules: SchedulesPart | None = None
    forgetting: ForgettingPart | None = None

    def grid(self, optimizer: TrainedName) -> list[float]:
        """λ that one optimiser trains at."""
        return self.grids.get(optimizer, self.sweep.weight_decay)

    def cells(self) -> list[CellKey]:
        """The training runs: optimisers in order, λ in the order of each one's grid, then seeds."""
        sweep = self.sweep
        return [(o, decay, seed) for o in sweep.optimizers for decay in self.grid(o) for seed in sweep.training_seeds]

    def examined(self, part: str) -> range:
        """Training seeds whose models E1 or E2 looks at."""
        most = getattr(self, part).seeds
        return self.sweep.training_seeds[: self.sweep.seeds if most is None else most]

    def cuts(self) -> list[str]:
        """What this study leaves out or does less of, in words."""
        preprint = {name: words for name, words in PARTS.items() if name not in ("schedules", "forgetting")}
        if self.forgetting and self.forgetting.pathologies:  # which has them
            del preprint["pathologies"]
        left = [f"{words}: left out" for name, words in preprint.items() if getattr(self, name) is None]
        fewer = [
            f"{PARTS[name]}: at {len(self.examined(name))} of {self.sweep.seeds} training seeds"
            for name in ("landscape", "spectra")
            if getattr(self, name) is not None and len(self.examined(name)) < self.sweep.seeds
        ]
        if self.convergence and 0 < len(self.convergence.weight_decay) < len(self.sweep.weight_decay):
            fewer.append(
                f"{PARTS['convergence']}: at {len(self.convergence.weight_decay)} of {len(self.sweep.weight_decay)} λ"
            )
        return [*left, *fewer, *self.cut]

    def check(self) -> None:
        """Refuse what cannot be done, before anything is loaded.

        Raises:
            InputError: it is one of these.
        """
        self.sweep.check()
        self._check_grids()
        if self.sweep.seeds < 2:
            raise InputError(f"sweep.seeds={self.sweep.seeds}: expected at least 2, for intervals over training seeds")
        if not self.temperature:
            raise InputError("temperature=[]: expected at least one s > 0")
        for value in self.temperature:
            check_positive(temperature=value)
        if self.landscape and self.landscape.search and self.landscape.groups < 12:
            raise InputError(f"landscape.groups={self.landscape.groups}: expected at least 12 with search")
        if self.landscape and len({0.0, *self.landscape.radii}) < 4:
            raise InputError(f"landscape.radii={self.landscape.radii}: expected at least 3 that differ and are not 0")
        if self.schedules:
            check_positive(**{"schedules.cap": self.schedules.cap})
            if "constant" not in self.schedules.ways or len(set(self.schedules.ways)) < len(self.schedules.ways):
                raise InputError(f"schedules.ways={self.schedules.ways}: expected different ones, constant among them")
            if "adamw" not in self.sweep.optimizers:
                raise InputError("sweep.optimizers: schedules are of adamw: add adamw, or leave schedules out")
        if self.forgetting and (grid := self.sweep.weight_decay)[0] != 0:
            raise InputError(
                f"sweep.weight_decay={grid}: with forgetting, whose changes are from no decay, it has to begin with 0"
            )
        for name, low in (("pathologies", 2), ("groups", 3)):
            if 0 < (count := getattr(self.forgetting, name, 0)) < low:
                raise InputError(f"forgetting.{name}={count}: expected 0, or at least {low}, for an error")
        if self.convergence:
            check_positive(**{"convergence.temperature": self.convergence.temperature})
            self.chains().filled()
        if self.certificates:
            self.certified().check()
        descended = (self.landscape, self.spectra, self.estimators)  # at models where λ is that of F exactly
        if any(descended) and "sgd" not in self.sweep.optimizers:
            raise InputError("sweep.optimizers: landscape, spectra and estimators look at what sgd led to: add sgd")

    def _check_grids(self) -> None:
        for name, grid in self.grids.items():
            if name not in self.sweep.optimizers:
                raise InputError(f"grids: one for {name!r}, which is not among the optimizers")
            check_grid(f"grids.{name}", grid)
            if grid[0] != self.sweep.weight_decay[0]:
                raise InputError(
                    f"grids.{name}={grid}: expected it to begin with {self.sweep.weight_decay[0]:g}, as weight_decay "
                    "does: changes are told from there"
                )

    def chains(self) -> ConvergeSettings:
        """What `villani converge` is asked for E3."""
        assert self.convergence is not None
        sweep, part = self.sweep, self.convergence
        given = {"temperature": [part.temperature], "weight_decay": part.weight_decay or sweep.weight_decay}
        return ConvergeSettings(
            **shared(sweep, ConvergeSettings), decay=sweep.decay, block=sweep.block, **(part.model_dump() | given)
        )

    def certified(self) -> CertifySettings:
        """What `villani certify` is asked for E4."""
        assert self.certificates is not None
        sweep = self.sweep
        part = self.certificates.model_dump()
        return CertifySettings(
            **shared(sweep, CertifySettings), held_out=sweep.held_out, block=sweep.block, start="centre", clip=None,
            **(part | {"learning_rate": [part["learning_rate"]]}),
        )  # fmt: skip

    def digest(self, part: str) -> str:
        """Of what determines the rows of a part, beside the sweep: a part may be changed, and only it is done again."""
        given = getattr(self, part, None)
        # what no row depends on, and what came later, where it changes nothing
        later = {"seeds", "memory", "ways"} if part == "schedules" else {"seeds", "memory"}
        later |= {n for n in ("basis", "weight_decay") if not getattr(given, n, None)}
        text = "" if given is None else given.model_dump_json(exclude=later)
        if part == "landscape":
            text += repr(self.temperature)
        if part == "choice":  # of the grid; its rules look at the certificates
            text = f"{self.digest('certificates')} {self.sweep.model_dump_json()} {self.grids}"
        return hashlib.sha256(text.encode()).hexdigest()[:8]


class PaperOptions(ConsentBlock, Settings):
    """Rerun the preprint's experiments, with seeds and intervals, and judge its abstract claim by claim.

    Killed or interrupted, the same command goes on where it was. Sizes: tiny, small; pretrained, for --model FOLDER
    of about 135M parameters, and 125m, random weights, each sized to four hours of two cores; overfit and long, about
    decay alone; fine-tuning, about decay towards zero and towards the checkpoint that --model FOLDER is.

    Example: villani study paper --size small --text ptb
    """

    name = "study paper"

    config: str | None = option(None, "a study in TOML; a run's settings.toml is one", path=True)
    size: Size | None = option(None, "a study that comes with villani")
    text: str | None = option(None, "instead of the study's: ptb, wikitext, builtin, hub:NAME, or UTF-8 files")
    model: str | None = option(None, "instead of the study's: folder, hub id or config:NAME")
    without: list[PartName] = option([], f"parts to leave out, several with commas: {', '.join(PARTS)}")
    keep_weights: bool = option(False, "keep the weights of every training run, in RUN/models", exclude=True)
    study: PaperSettings | None = option(None, hidden=True)

    def check(self) -> None:
        """See `Settings.check`."""
        if self.study is not None:
            check_bounds(self.study)
            self.study.check()
        else:
            _check_one(self.config, self.size)

    def read(self) -> PaperSettings:
        """The study.

        Raises:
            InputError: no such file, no TOML, a wrong key or value, by its name.
        """
        if self.study is not None:
            return self.study
        config = Path(self.config) if self.config else None
        return read_settings(config, self.size, text=self.text, model=self.model, without=self.without)


def _check_one(config: Any, size: str | None) -> None:
    if (config is None) == (size is None):
        raise InputError(f"study paper: give either --config FILE.toml or --size {', '.join(get_args(Size))}")


def read_settings(
    config: Path | None, size: str | None, *, text: str | None = None, model: str | None = None,
    without: Sequence[PartName] = (),
) -> PaperSettings:  # fmt: skip
    """The study in a file, or the one of a size that comes with villani.

    Args:
        config: a TOML file.
        size: one of `Size`, if there is no file.
        text: instead of the file's; of PTB and WikiText the next split is then held out, of others the last tenth.
        model: instead of the file's; `pretrained` and `fine-tuning` name none of their own.
        without: parts that are left out.

    Raises:
        InputError: both or neither are given, no such file, no TOML, a wrong key or value, by its name.
    """
    _check_one(config, size)
    if config is not None:
        name = str(config)
        if not config.exists():
            raise InputError(f"--config {config}: no such file")
        content = foreign.read_toml(config, "give a study as docs/rerunning.md describes one")
    else:
        name = f"--size {size}"
        file = resources.files("villani.commands.paper") / "sizes" / f"{size}.toml"
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    changes: dict[str, Any] = {}
    if text is not None:
        named = "wikitext-103" + text.removeprefix("wikitext") if text.split(":")[0] == "wikitext" else text
        changes = {"text": named, "held_out": _HELD_OUT.get(named)}
    if model is not None:
        changes["model"] = model
    if size in ("pretrained", "fine-tuning") and model is None:
        raise InputError(f"--size {size}: which checkpoint? give --model FOLDER, or a hub id")
    for part in without:
        if content.pop(part, None) is None:
            raise InputError(f"--without {part}: {name} has no such part, or it is given twice; leave it out")
    if isinstance(content.get("sweep"), dict):
        content["sweep"] = {k: v for k, v in (content["sweep"] | changes).items() if v is not None}
    with foreign.reading(name, "mend that key"):
        try:
            settings = PaperSettings.model_validate(content)
        except ValidationError as error:
            raise InputError(f"{name}: {_refusals(error)}") from None
        check_bounds(settings)
        settings.check()
    return settings


def _refusals(error: ValidationError) -> str:
    """All that is wrong, in a line; unknown keys come before missing ones, which they may be meant to be."""
    found = sorted(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
    more = len(found) - _TOLD
    return "; ".join(map(_refusal, found[:_TOLD])) + (f"; and {more} more" if more > 0 else "")


def _refusal(found: ErrorDetails) -> str:
    where = ".".join(map(str, found["loc"]))
    match found["type"]:
        case "extra_forbidden":
            parent: Any = PaperSettings
            for key in found["loc"][:-1]:
                part = parent.model_fields[str(key)].annotation
                parent = next(kind for kind in (part, *get_args(part)) if hasattr(kind, "model_fields"))
            return f"unknown key {foreign.clipped(repr(where))}; known are {', '.join(parent.model_fields)}"
        case "missing":
            return f"{where} is missing"
        case "greater_than_equal":
            return f"{where}={found['input']}: expected at least {found['ctx']['ge']}"
        case _:
            seen = foreign.clipped(repr(found["input"]))
            return f"{where}: {found['msg'][0].lower()}{found['msg'][1:]}, found {seen}"


SETTINGS = PaperOptions
