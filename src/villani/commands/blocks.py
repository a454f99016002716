"""Blocks that the settings of commands are composed of; a field declared here is an option of every command with it.

`Settings` is what all have in common: how they are checked, and which of the options that were given do nothing.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from villani.bounds import check_bounds
from villani.commands.option import REQUIRED, Option, forms, option, words
from villani.errors import InputError

MODEL, TEXT, DESIGN, COMPUTE = "Model", "Text", "Design", "Compute"  # headings of --help


class Unused(NamedTuple):
    """Options that do nothing, given the others; `words` say when that is, after "is not used"."""

    words: str
    fields: tuple[str, ...]


class Settings(BaseModel):
    """What a command was asked; the docstring of a subclass is the help of its command."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str]  # of the command
    free: ClassVar[frozenset[str]] = frozenset()  # fields that the units of a run do not depend on
    least: ClassVar[dict[str, int]] = {"sequences": 1, "block": 2, "micro_tokens": 1, "threads": 1}

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, values: Any) -> Any:
        """For calls from Python: one value is a list of it where several may be given, an array its values; names."""
        if not isinstance(values, dict):
            return values
        plain = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in values.items()}
        for name, field in cls.model_fields.items():
            if isinstance(plain.get(name), str):
                whole = next((m.names for m in field.metadata if isinstance(m, Option) and m.names), {})
                plain[name] = whole.get(plain[name], plain[name])
            listed = any(get_origin(kind) is list for kind in (field.annotation, *get_args(field.annotation)))
            if listed and plain.get(name) is not None and not isinstance(plain[name], list | tuple):
                plain[name] = [plain[name]]
        return plain

    @classmethod
    def given(cls, **values: Any) -> Self:
        """Settings as somebody gave them: made, and refused where they are wrong or an option would do nothing.

        Raises:
            InputError: a wrong name, type or number; settings that do not go together; an option that is not used.
        """
        try:
            settings = cls(**values)
        except ValidationError as error:
            raise InputError(first_problem(error, cls)) from None
        settings.check_all()
        for unused in settings.unused():
            for name in unused.fields:
                if name in settings.model_fields_set:
                    raise InputError(f"{forms(cls)[name].flags[0]} is not used {unused.words}: leave it out")
        return settings

    def check_all(self) -> None:
        """Refuse numbers that no command can use, and what `check` refuses."""
        check_bounds(self)
        self.check()

    @property
    def about(self) -> str:
        """What the command is about, for its title and the name of its run."""
        return str(getattr(self, "model", ""))

    @property
    def title(self) -> str:
        """Of the page."""
        return f"villani {self.name} {self.about}".strip()

    @property
    def lists(self) -> bool:
        """Whether they ask for no work, but for what there is to choose from; `page.show_names` prints that."""
        return False

    def check(self) -> None:
        """Refuse what cannot be done, before anything is loaded.

        Raises:
            InputError: numbers out of range or settings that do not go together.
        """
        self.check_least()

    def check_least(self, **least: int) -> None:
        """Refuse numbers that are too small.

        Raises:
            InputError: one is.
        """
        for name, low in (self.least | least).items():
            value = getattr(self, name, None)
            if value is not None and value < low:
                raise InputError(f"{name}={value}: expected at least {low}")

    def check_some(self, *names: str) -> None:
        """Refuse lists without a value, where one at least is needed.

        Raises:
            InputError: one is empty.
        """
        for name in names:
            if not getattr(self, name):
                raise InputError(f"{name}=[]: expected at least one number")

    def unused(self) -> Iterator[Unused]:
        """Options that these settings make no use of."""
        return iter(())

    def command(self) -> str:
        """The command that does this again, without where it is kept."""
        idle = {name for unused in self.unused() for name in unused.fields}
        return words(self.name, self, lambda name: name not in idle, self.assumed())

    def assumed(self) -> Mapping[str, Any]:
        """Defaults that follow from other settings, where they are not those of the fields."""
        return {}


class ModelBlock(BaseModel):
    """Which model."""

    model: str = option(
        REQUIRED, "folder, hub id, config:NAME[?layers=2&width=64] or builtin:tiny", MODEL, argument=True
    )


class TextBlock(BaseModel):
    """Which text."""

    text: str = option("builtin", "builtin, ptb, wikitext-103, hub:NAME, or UTF-8 files", TEXT, always=True)
    tokenizer: str | None = option(None, "builtin, gpt2, folder or hub id", TEXT, default="the model's own")


class DecayBlock(BaseModel):
    """Which parameters decay."""

    decay: str = option("all", "what decays: all, hf, nanogpt, olmo or match:REGEX", MODEL)


class DesignBlock(BaseModel):
    """How a text is cut into groups, and what is drawn on each."""

    groups: int = option(16, "independent groups of blocks, the unit of data noise", DESIGN)
    sequences: int = option(4, "blocks in a group", DESIGN)
    block: int = option(128, "tokens in a block", DESIGN)
    probes: int = option(1, "independent probes in each group", DESIGN)
    finite: bool = option(False, "the groups are the whole data set, not a sample of it", DESIGN)


class SeedBlock(BaseModel):
    """What everything random is drawn from."""

    seed: int = option(0, "of everything random", DESIGN)


class SpecialTokensBlock(BaseModel):
    """What stands before every block."""

    special_tokens: Literal["auto", "none", "bos"] = option(
        "auto", "before every block: what the tokenizer's template puts at a start, nothing, or its BOS token", TEXT
    )


class DeviceBlock(BaseModel):
    """Where a model is run, and in which precision."""

    dtype: Literal["float32", "float64"] = option("float32", "precision to measure in", COMPUTE)
    device: str = option("cpu", "cpu, cuda, cuda:1, …", COMPUTE)
    threads: int | None = option(None, "CPU threads; rounding depends on it", COMPUTE, default="torch's choice")


class ComputeBlock(DeviceBlock):
    """Where and how a model is run."""

    micro_tokens: int = option(512, "tokens in one forward pass at most: sets the memory needed", COMPUTE)


class TrustBlock(BaseModel):
    """What a checkpoint may do and leave out, and what is merged into it."""

    adapter: str | None = option(
        None, "folder or hub id of a PEFT adapter (LoRA), merged into the model's weights", MODEL
    )
    trust_remote_code: bool = option(False, "let a checkpoint run its code", MODEL)
    allow_unused: str | None = option(
        None, "names of stored weights that the model may leave unused, a regular expression", MODEL
    )


class ConsentBlock(BaseModel):
    """Whether long and large work may begin unasked."""

    yes: bool = option(
        False, "begin without being asked, however long it takes and much it needs", COMPUTE, exclude=True
    )


class StreamBlock(BaseModel):
    """Where weights are while they are used."""

    streamed: Literal["auto", "yes", "no"] = option(
        "auto", "read weights from disk as they are used, a layer at a time; auto: where memory is too small", COMPUTE
    )
    memory: float | None = option(None, "GiB that the process may take", COMPUTE, default="what is free")

    def check_memory(self) -> None:
        """Refuse a limit that is none.

        Raises:
            InputError: it is not positive.
        """
        if self.memory is not None and not 0 < self.memory < float("inf"):
            raise InputError(f"memory={self.memory}: expected a number of GiB > 0")


class SubjectSettings(
    TrustBlock, ComputeBlock, SpecialTokensBlock, SeedBlock, DesignBlock, DecayBlock, TextBlock, ModelBlock, Settings
):
    """A model on a text, as commands that measure it take them."""

    @property
    def at_once(self) -> int:
        """Tokens in one pass: blocks are never split."""
        return max(min(self.micro_tokens, self.sequences * self.block), self.block)


def shared(settings: Settings, other: type[Settings]) -> dict[str, Any]:
    """Fields of the blocks that two commands are composed of: which model, text, device and seed, for the other one."""
    blocks = (ModelBlock, TextBlock, SpecialTokensBlock, SeedBlock, DeviceBlock, TrustBlock)
    names = {name for block in blocks for name in block.model_fields} & other.model_fields.keys()
    return {name: getattr(settings, name) for name in names if hasattr(settings, name)}


def first_problem(error: ValidationError, settings: type[BaseModel] | None = None) -> str:
    """What is wrong first in settings, or else in a record, in a line."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    if isinstance(refusal := first.get("ctx", {}).get("error"), InputError):
        return str(refusal)
    if first["type"] == "finite_number" and settings is None:  # records take no other
        return f"the figure {where} overflows: ask for λ, s and the like of a more moderate size"
    if first["type"] == "extra_forbidden" and settings is not None:
        return f"{where}: no such option; there are: {', '.join(settings.model_fields)}"
    if first["type"] == "missing":
        return f"{where} is missing"
    return f"{where}={str(first['input'])[:80]!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
