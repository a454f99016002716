"""A settings field as an option: its help, its text on the command line, and back.

A field's type and default say how its text is read: numbers and names with commas between them for a list, NAME=VALUE
for a table, `none` for nothing. `words` writes settings as the command that reads back to them.
"""

import math
import shlex
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

from villani.errors import InputError

T = TypeVar("T")
REQUIRED: Any = ...  # in place of a default: the field must be given


@dataclass(frozen=True)
class Option:
    """What a settings field is on the command line, declared by `option`.

    Attributes:
        help: what it is, in a few words.
        group: heading under which `--help` lists it.
        flags: its names, if not `--field-name`.
        argument: it has no flag, but a place.
        metavar: what stands for its value in `--help`.
        each: the option is given once for each entry of a list or table, not once with commas; or several places are.
        path: its text is a path, `~` filled in.
        default: in words, where the field's own default only marks that nothing was given.
        hidden: not an option: a field that only files and Python set.
        always: a rerun command names it even at its default.
        names: abbreviations of whole values, such as `all` for every rule; a rerun command spells out an option that it
            always names.
    """

    help: str = ""
    group: str = ""
    flags: tuple[str, ...] = ()
    argument: bool = False
    metavar: str | None = None
    each: bool = False
    path: bool = False
    default: str | None = None
    hidden: bool = False
    always: bool = False
    names: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Form:
    """How the value of one field is written as text.

    Attributes:
        name: of the field.
        option: what was declared of it.
        kind: its type without None.
        optional: whether None is a value of it.
        default: its default; `...` where it must be given.
    """

    name: str
    option: Option
    kind: Any
    optional: bool
    default: Any

    @property
    def flags(self) -> tuple[str, ...]:
        """Its names on the command line."""
        return self.option.flags or ("--" + self.name.strip("_").replace("_", "-"),)

    @property
    def is_flag(self) -> bool:
        """Whether it is given by its name alone."""
        return self.kind is bool

    @property
    def is_text(self) -> bool:
        """Whether its value is read from text here, not by the parser of the command line."""
        listed = get_origin(self.kind) in (list, dict)
        named = self.option.names is not None
        return listed or named or self.kind is float or (self.optional and self.default is not None)

    def read(self, text: Any) -> Any:
        """The value of the field that a text stands for.

        Raises:
            InputError: it stands for none.
        """
        if not self.is_text or text is None:
            return text
        if self.option.names is not None and text in self.option.names:
            return self.option.names[text]
        if self.option.each:
            return _table(self.flags[0], text) if get_origin(self.kind) is dict else [self._one(part) for part in text]
        if text == "none" and (self.optional or get_origin(self.kind) is list):
            return None if self.optional else []
        if get_origin(self.kind) is list:
            return [self._one(part, text) for part in text.split(",")]
        if get_origin(self.kind) is dict:
            return _table(self.flags[0], text.split(",")) if "=" in text else {"": self._number(text)}
        return self._one(text)

    def _one(self, text: str, whole: str | None = None) -> Any:
        """One value; `whole` is the text that it stands in, for messages."""
        kind = (get_args(self.kind) or (self.kind,))[0] if get_origin(self.kind) is list else self.kind
        if kind is float:
            return self._number(text, whole)
        if kind is int:
            number = self._number(text, whole)
            if not float(number).is_integer():
                raise InputError(f"{self.flags[0]} {whole or text!r}: expected whole numbers, several with commas")
            return int(text) if text.strip().lstrip("+-").isdigit() else int(number)
        if get_origin(kind) is Literal and text not in get_args(kind):
            raise InputError(f"{self.flags[0]} {text!r}: unknown; expected {', '.join(map(str, get_args(kind)))}")
        return text

    def _number(self, text: str, whole: str | None = None) -> float:
        try:
            return float(text)
        except ValueError:
            many = get_origin(self.kind) in (list, dict)
            expected = "numbers, several with commas" if many else "a number"
            raise InputError(f"{self.flags[0]} {whole or text!r}: expected {expected}") from None

    def write(self, value: Any) -> list[str]:
        """The words that read back to a value."""
        if self.is_flag:
            return [self.flags[0]] if value else []
        if self.option.each:
            parts = [f"{k}={written(v)}" for k, v in value.items()] if isinstance(value, Mapping) else map(str, value)
            lead = [] if self.option.argument else [self.flags[0]]
            return [word for part in parts for word in (*lead, part)]
        if not self.option.always and self.option.names is not None:
            for name, whole in self.option.names.items():
                if value == whole:
                    return self._worded(name)
        if isinstance(value, Mapping):
            text = ",".join(f"{k}={written(v)}" if k else written(v) for k, v in value.items())
        elif isinstance(value, list | tuple):
            text = ",".join(written(v) for v in value) or "none"
        else:
            text = "none" if value is None else written(value)
        return self._worded(text)

    def _worded(self, text: str) -> list[str]:
        if self.option.argument:
            return [text]
        return [f"{self.flags[0]}={text}"] if text.startswith("-") else [self.flags[0], text]


def written(value: Any) -> str:
    """A scalar as text that reads back to it exactly, and short where that is possible."""
    if isinstance(value, float) and math.isfinite(value):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)


def forms(settings: type[BaseModel]) -> dict[str, Form]:
    """The fields of settings that are options, by name, in their order.

    Raises:
        TypeError: a field without an `Option`, which nobody could give.
    """
    made = {}
    for name, field in settings.model_fields.items():
        option = next((m for m in field.metadata if isinstance(m, Option)), None)
        if option is None:
            raise TypeError(f"{settings.__name__}.{name} has no Option")
        if not option.hidden:
            made[name] = _form(name, field, option)
    return made


def _form(name: str, field: FieldInfo, option: Option) -> Form:
    kind, optional = field.annotation, False
    if get_origin(kind) in (Union, types.UnionType):
        some = [one for one in get_args(kind) if one is not type(None)]
        kind, optional = some[0], len(some) < len(get_args(kind))
    default = ... if field.is_required() else field.get_default(call_default_factory=True)
    return Form(name, option, kind, optional, default)


def words(
    command: str, settings: BaseModel, fields: Callable[[str], bool] = bool,
    defaults: Mapping[str, Any] = types.MappingProxyType({}),
) -> str:  # fmt: skip
    """The command with these settings: those that are not the defaults, and those that are always named.

    Args:
        command: its name.
        settings: of it.
        fields: which of them.
        defaults: of these settings, where they are not those of the fields.
    """
    places: list[str] = []
    options: list[str] = []
    for name, form in forms(type(settings)).items():
        value = getattr(settings, name)
        if not fields(name) or (value == defaults.get(name, form.default) and not form.option.always):
            continue
        (places if form.option.argument else options).extend(form.write(value))
    lead = ["--"] if any(place.startswith("-") for place in places) else []
    return shlex.join(
        ["villani", *command.split(), *([] if lead else places), *options, *lead, *(places if lead else [])]
    )


def _table(flag: str, texts: list[str]) -> dict[str, float]:
    pairs = [text.partition("=") for text in texts]
    table = {}
    for (name, sign, value), text in zip(pairs, texts, strict=True):
        if not (name.strip() and sign and value.strip()):
            raise InputError(f"{flag} {text!r}: expected NAME=VALUE")
        try:
            table[name.strip()] = float(value)
        except ValueError:
            raise InputError(f"{flag} {name.strip()} {value!r}: expected a number") from None
        if not math.isfinite(table[name.strip()]):
            raise InputError(f"{flag} {name.strip()}={table[name.strip()]:g}: expected a finite number")
    return table


def option(default: T, /, help: str = "", group: str = "", *, exclude: bool = False, **more: Any) -> T:
    """A settings field, as `steps: int = option(200, "of a run", TRAINING)`.

    Args:
        default: of the field, or `REQUIRED`.
        help: see `Option`.
        group: see there.
        exclude: whether nothing that is kept depends on it.
        more: other attributes of an `Option`.
    """
    field: Any = Field(default, exclude=exclude or None)
    field.metadata.append(Option(help, group, **more))
    declared: T = field
    return declared
