"""Random settings of any command, as hypothesis draws them."""

from typing import Any, Literal, get_args, get_origin

from hypothesis import strategies as st

from villani.commands.blocks import Settings
from villani.commands.option import Form, forms
from villani.errors import InputError

SIZES = st.floats(1e-6, 1e6)
COUNTS = st.integers(2, 40)
NAMES = st.sampled_from(["builtin", "ptb", "a b.txt", "it's", "x,y", "-dash"])
BY_NAME: dict[str, Any] = {
    "seed": st.integers(0, 2**63 - 1),
    "threads": st.integers(1, 4),
    "momentum": st.floats(0, 0.99),
    "delta": st.floats(0.001, 0.5),
    "alpha": st.floats(0.001, 0.5),
    "device": st.just("cpu"),
    "decay": st.sampled_from(["all", "hf", "match:^h\\.0", "match:a|b c"]),
    "block": st.integers(2, 64),
    "groups": st.integers(18, 40),
}


def settings_of(
    cls: type[Settings], given: int = 6, must: tuple[str, ...] = (), **overrides: Any
) -> st.SearchStrategy[Settings]:
    """Settings that are accepted, with at most `given` fields that are not the defaults.

    Args:
        cls: of which command.
        given: how many fields somebody gave.
        must: fields that are always given, beside those that have no default.
        overrides: strategies of fields by name; of those that must be given, too.
    """
    known = forms(cls)

    def one(form: Form) -> st.SearchStrategy[Any]:
        return overrides[form.name] if form.name in overrides else _values(form)

    @st.composite
    def drawn(draw: Any) -> Settings | None:
        always = [name for name, form in known.items() if form.default is ... or name in must]
        some = draw(st.lists(st.sampled_from(list(known)), max_size=given, unique=True))
        values = {name: draw(one(known[name])) for name in dict.fromkeys([*always, *some])}
        try:
            return cls.given(**values)
        except InputError:
            return None

    return drawn().filter(lambda settings: settings is not None)  # type: ignore[return-value]


def _values(form: Form) -> st.SearchStrategy[Any]:
    kind = form.kind
    if get_origin(kind) is list:
        one = _of(form.name, get_args(kind)[0])
        return st.lists(one, min_size=1, max_size=3, unique=True)
    if get_origin(kind) is dict:
        return st.dictionaries(st.sampled_from(["a", "b", "c"]), SIZES, max_size=2)
    values = _of(form.name, kind)
    return st.none() | values if form.optional else values


def _of(name: str, kind: Any) -> st.SearchStrategy[Any]:
    if name in BY_NAME:
        return BY_NAME[name]
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    return {bool: st.booleans(), int: COUNTS, float: SIZES, str: NAMES}[kind]
