"""What the options of several commands have in common: their names, choices, help, and how their text is read.

Which numbers they take is in `bounds`. `Command` refuses options that what was asked does not look at (`IGNORED`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from villani.errors import InputError
from villani.inputs.folders import local_path

T = TypeVar("T")


class TraceChoice(StrEnum):
    """Ways to tr ∇²L."""

    gauss_newton = "gauss-newton"
    hutchinson = "hutchinson"
    taylor = "taylor"


class BlocksChoice(StrEnum):
    """What gets a probe of its own."""

    whole = "whole"
    layer = "layer"
    tensor = "tensor"


class ProductsChoice(StrEnum):
    """Ways to the product of the Hessian with a vector."""

    reverse_over_reverse = "reverse-over-reverse"
    forward_over_reverse = "forward-over-reverse"
    finite_differences = "finite-differences"


class OperatorChoice(StrEnum):
    """Matrices whose spectrum is wanted."""

    hessian = "hessian"
    gauss_newton = "gauss-newton"


class MatrixChoice(StrEnum):
    """With or without the λ of weight decay on its coordinates."""

    loss = "loss"
    objective = "objective"


class TargetChoice(StrEnum):
    """Figures that an error may be wanted for."""

    hessian_trace = "hessian_trace"
    psi = "psi"


class DtypeChoice(StrEnum):
    """Precisions that second derivatives survive in."""

    float32 = "float32"
    float64 = "float64"


class SpecialTokensChoice(StrEnum):
    """Special tokens that stand before every block."""

    auto = "auto"
    none = "none"
    bos = "bos"


class PriorChoice(StrEnum):
    """Where the centre of a certificate's prior comes from."""

    init = "init"
    text = "text"
    given = "given"


class ScaleChoice(StrEnum):
    """Units that the noise of a certified run is isotropic in."""

    unit = "unit"
    relative = "relative"


class DirectionChoice(StrEnum):
    """Directions of a certified run."""

    sgd = "sgd"
    momentum = "momentum"
    adam = "adam"


class ChainStartChoice(StrEnum):
    """Where a certified run starts."""

    prior = "prior"
    centre = "centre"


class KindChoice(StrEnum):
    """Kinds of certificates."""

    path = "path"
    prequential = "prequential"


class TowardsChoice(StrEnum):
    """What decay pulls towards in a prequential pass."""

    centre = "centre"
    zero = "zero"


class ShapeChoice(StrEnum):
    """Ways in which a potential of one or two coordinates extends to d."""

    ridge = "ridge"
    copies = "copies"
    radial = "radial"


class MethodChoice(StrEnum):
    """Kernels of Langevin dynamics."""

    noisy_sgd = "noisy-sgd"
    matched = "matched"
    mala = "mala"


class ScheduleChoice(StrEnum):
    """Step sizes along a chain."""

    constant = "constant"
    cosine = "cosine"


class StartChoice(StrEnum):
    """Where chains begin."""

    same = "same"
    spread = "spread"


def path_of(text: str) -> Path:
    """A path as it was typed, with `~` filled in; used as `parser`, so that the message names the option."""
    if not text:
        raise typer.BadParameter("'' is no path: name one, or leave the option out")
    try:
        return local_path(text, "path")
    except InputError as error:
        raise typer.BadParameter(str(error)) from None


Model = Annotated[str, typer.Argument(help="folder, hub id, config:NAME[?layers=2&width=64] or builtin:tiny")]
Text = Annotated[str, typer.Option(help="builtin, ptb, wikitext-103, hub:NAME, or UTF-8 files")]
Tokenizer = Annotated[str | None, typer.Option(help="builtin, gpt2, folder or hub id; default: the model's own")]
SpecialTokens = Annotated[
    SpecialTokensChoice,
    typer.Option(help="before every block: what the tokenizer's template puts at a start, nothing, or its BOS token"),
]
Decay = Annotated[str, typer.Option(help="what decays: all, hf, nanogpt, olmo or match:REGEX")]
Sequences = Annotated[int, typer.Option(help="blocks in a group")]
Block = Annotated[int, typer.Option(help="tokens in a block")]
Probes = Annotated[int, typer.Option(help="independent probes in each group")]
Finite = Annotated[bool, typer.Option("--finite", help="the groups are the whole data set, not a sample of it")]
Dtype = Annotated[DtypeChoice, typer.Option(help="precision to measure in")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; rounding depends on it; default: torch's choice")]
MicroTokens = Annotated[int, typer.Option(help="tokens in one forward pass at most: sets the memory needed")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="let a checkpoint run its code")]
AllowUnused = Annotated[
    str | None, typer.Option(help="names of stored weights that the model may leave unused, a regular expression")
]
Run = Annotated[
    Path | None,
    typer.Option(help="run directory; made from the settings when not given", parser=path_of, metavar="PATH"),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="folder of PTB, WikiText and GPT-2 BPE files; default VILLANI_DATA", parser=path_of, metavar="PATH"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print one record on stdout, and nothing else")]


def numbers(name: str, text: str) -> list[float]:
    """Numbers with commas between them.

    Raises:
        InputError: not numbers.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--{name} {text!r}: expected numbers, several with commas") from None


def number(name: str, text: str) -> float:
    """One number, or an InputError."""
    values = numbers(name, text)
    if len(values) > 1:
        raise InputError(f"--{name} {text!r}: expected one number")
    return values[0]


def optional(read: Callable[[str, str], list[T]], name: str, text: str | None) -> list[T]:
    """What `read` makes of an option; nothing where it is not given."""
    return [] if text is None else read(name, text)


def whole_numbers(name: str, text: str) -> list[int]:
    """As `numbers`, whole ones."""
    values = numbers(name, text)
    if not all(value.is_integer() for value in values):
        raise InputError(f"--{name} {text!r}: expected whole numbers, several with commas")
    return [int(value) for value in values]


def choices(name: str, text: str, known: Sequence[T]) -> list[T]:
    """Names with commas between them, out of those that are known."""
    found: list[T] = []
    for part in text.split(","):
        if part not in known:
            raise InputError(f"--{name} {part!r}: unknown; expected {', '.join(map(str, known))}")
        found.append(next(value for value in known if value == part))
    return found


def rates(text: str | None, names: Sequence[str], default: Mapping[str, float]) -> dict[str, float]:
    """A learning rate for each name: one number for all, NAME=VALUE with commas, or the defaults.

    Raises:
        InputError: neither; or a name that is not among them.
    """
    found = {name: default[name] for name in names}
    if text is None:
        return found
    if "=" not in text:
        return dict.fromkeys(names, number("learning-rate", text))
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in found:
            raise InputError(f"--learning-rate {part!r}: expected NAME=VALUE with a name out of {', '.join(names)}")
        found[name] = number("learning-rate", value)
    return found


def assignments(texts: list[str]) -> dict[str, float]:
    """NAME=VALUE, each as an option of its own."""
    pairs = [text.partition("=") for text in texts]
    for (name, sign, value), text in zip(pairs, texts, strict=True):
        if not (name.strip().isidentifier() and sign and value.strip()):
            raise InputError(f"--set {text!r}: expected NAME=VALUE")
    found = {name.strip(): numbers(f"set {name.strip()}", value)[0] for name, _, value in pairs}
    for name, given in found.items():
        if not math.isfinite(given):
            raise InputError(f"--set {name}={given}: expected a finite number")
    return found


@dataclass(frozen=True)
class Mode:
    """A way of calling a command that does not look at some of its options.

    Attributes:
        command: whose.
        words: what such a call is, after "is not used".
        applies: whether the values of all options make it one.
        ignored: the options, by the names of their parameters.
    """

    command: str
    words: str
    applies: Callable[[Mapping[str, Any]], bool]
    ignored: tuple[str, ...]


# A number that is out of range is told first, by the command itself; so are some pairs that exclude each other.
_TEXTUAL = (
    "text", "tokenizer", "special_tokens", "decay", "groups", "sequences", "block", "dtype", "device", "threads",
    "micro_tokens",
)  # fmt: skip
IGNORED = (
    Mode("measure", "without --target-error", lambda o: o["target_error"] is None, ("max_groups",)),
    Mode(
        "measure", "without --trace hutchinson", lambda o: o["trace"] != "hutchinson" and o["target_error"] is None,
        ("products",),
    ),
    Mode(
        "measure", "without --trace taylor",
        lambda o: o["trace"] != "taylor" and o["target_error"] is None and o["shares"] >= 0, ("shares",),
    ),
    Mode(
        "audit", "with --replay, where the witness says", lambda o: o["replay"] is not None,
        (
            "weight_decay", "temperature", "decay", "groups", "sequences", "block", "probes", "confirmed", "search",
            "rays", "ray_groups", "finite", "dtype", "special_tokens",
        ),
    ),
    Mode("spectrum", "without --layers", lambda o: not o["layers"], ("layer_steps",)),
    Mode("spectrum", "with --density-probes 0", lambda o: o["density_probes"] == 0, ("density_steps",)),
    Mode(
        "converge", "for a potential", lambda o: o["model"].startswith("exact:"),
        (*_TEXTUAL, "full", "coupled", "psi_groups", "trust_remote_code", "allow_unused", "data"),
    ),
    Mode(
        "converge", "without --psi-every", lambda o: not o["psi_every"] and o["psi_groups"] >= 3, ("psi_groups",)
    ),
    Mode("certify", "without --prior text", lambda o: o["prior"] != "text", ("prior_share", "prior_steps")),
    Mode(
        "certify", "with --kind prequential", lambda o: o["kind"] == "prequential",
        ("scale", "start", "temperature", "steps", "chains"),
    ),
    Mode("certify", "without --kind prequential", lambda o: o["kind"] != "prequential", ("towards", "warm_up")),
    Mode("recommend", "without sgd", lambda o: "sgd" not in o["optimizer"].split(","), ("momentum",)),
    Mode(
        "recommend", "without the rule guard", lambda o: not {"guard", "all"} & set(o["rules"].split(",")), ("audit",)
    ),
)  # fmt: skip


class Command(TyperCommand):
    """A command that refuses options which it would ignore."""

    def invoke(self, ctx: Any) -> Any:
        """Refuse, or run.

        Raises:
            InputError: an option was given that what was asked does not look at.
        """
        for mode in IGNORED:
            if mode.command == self.name and mode.applies(ctx.params):
                for name in mode.ignored:
                    if (source := ctx.get_parameter_source(name)) is not None and source.name == "COMMANDLINE":
                        raise InputError(
                            f"--{name.strip('_').replace('_', '-')} is not used {mode.words}: leave it out"
                        )
        return super().invoke(ctx)
