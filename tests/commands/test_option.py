"""A settings field as text: what each type reads, what it refuses, and that writing reads back."""

import shlex
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from villani.commands.option import REQUIRED, forms, option, words
from villani.errors import InputError


class Everything(BaseModel):
    """One field of each form."""

    model: str = option(REQUIRED, "a place", argument=True)
    count: int = option(3, "whole")
    rate: float = option(0.5, "real")
    clip: float | None = option(1.0, "none for none")
    most: int | None = option(None, "not given")
    kind: Literal["a", "b"] = option("a", "one of")
    many: list[float] = option([0.1], "several", always=True)
    names: list[str] = option(["x"], "several", names={"all": ["x", "y"]})
    table: dict[str, float] = option({}, "each", flags=("--set",), each=True)
    rates: dict[str, float] = option({}, "with commas")
    quick: bool = option(False, "a flag")
    hidden: int = option(0, hidden=True)


FORMS = forms(Everything)


def test_what_is_hidden_is_no_option():
    assert "hidden" not in FORMS
    assert FORMS["table"].flags == ("--set",)
    assert FORMS["quick"].is_flag


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("many", "1,2e-3", [1.0, 2e-3]), ("many", "none", []), ("clip", "none", None), ("clip", "2", 2.0),
        ("names", "all", ["x", "y"]), ("names", "a,b", ["a", "b"]), ("table", ["a=1", " b = 2"], {"a": 1.0, "b": 2.0}),
        ("rates", "sgd=1,adam=2", {"sgd": 1.0, "adam": 2.0}), ("rates", "3", {"": 3.0}), ("most", None, None),
    ],
)  # fmt: skip
def test_text_is_read_by_the_type_of_its_field(name, text, value):
    assert FORMS[name].read(text) == value


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("many", "1,x", "--many '1,x': expected numbers, several with commas"),
        ("clip", "x", "--clip 'x': expected a number"),
        ("table", ["a"], "--set 'a': expected NAME=VALUE"),
        ("table", ["a=x"], "--set a 'x': expected a number"),
        ("rates", "a=1,b", "--rates 'b': expected NAME=VALUE"),
    ],
)
def test_text_that_stands_for_nothing_is_one_line(name, text, line):
    with pytest.raises(InputError) as refused:
        FORMS[name].read(text)
    assert str(refused.value) == line


def test_a_field_without_an_option_is_a_mistake():
    class Forgotten(BaseModel):
        field: int = 0

    with pytest.raises(TypeError, match=r"Forgotten\.field has no Option"):
        forms(Forgotten)


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None)
@given(
    st.builds(
        Everything, model=st.sampled_from(["m", "-m", "a b", "it's"]), count=st.integers(), rate=NUMBERS,
        clip=st.none() | NUMBERS, kind=st.sampled_from("ab"), many=st.lists(NUMBERS, max_size=3),
        rates=st.dictionaries(st.sampled_from(["sgd", "adam"]), NUMBERS, min_size=1), quick=st.booleans(),
    )
)  # fmt: skip
def test_words_read_back_to_the_last_bit(asked):
    """By hand here; each command's own test goes through the parser."""
    text = shlex.split(words("toy", asked))[2:]
    read, left = {}, []
    while text:
        word = text.pop(0)
        if word == "--":
            left, text = left + text, []
            continue
        flag, sign, value = word.partition("=")
        form = next((form for form in FORMS.values() if flag in form.flags), None)
        if form is None:
            left.append(word)
        elif form.is_flag:
            read[form.name] = True
        else:
            read[form.name] = form.read(value if sign else text.pop(0))
    (model,) = left
    assert Everything(model=model, **read) == asked


class Short(BaseModel):
    """The same option declared both ways."""

    long: list[float] = option([0.1], "several", "Law", always=True)
    short: list[float] = option([0.1], "several", "Law", always=True)
    kept: int | None = option(None, "not told", default="as it comes", exclude=True)


def test_a_default_with_its_option_declares_the_same_field():
    made = forms(Short)
    assert made["long"].option == made["short"].option
    assert (made["long"].kind, made["long"].default) == (made["short"].kind, made["short"].default)
    assert (made["kept"].kind, made["kept"].optional, made["kept"].option.default) == (int, True, "as it comes")
    assert Short(short=[2], kept=1).model_dump() == {"long": [0.1], "short": [2.0]}
    assert Short().short is not Short().short  # nobody changes the default of another
    with pytest.raises(ValueError, match="short"):
        Short(short="x")
