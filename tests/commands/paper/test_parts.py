"""The tables of a study's file: what each refuses, by its name and with the bound that it declares."""

from typing import get_args

import pytest
from annotated_types import Ge

from tests.commands.paper.test_settings import QUICK
from villani.commands.paper.parts import PARTS
from villani.commands.paper.settings import PaperSettings, read_settings
from villani.errors import InputError

KINDS = {
    name: next(kind for kind in get_args(PaperSettings.model_fields[name].annotation) if kind is not type(None))
    for name in PARTS
}
BOUNDS = [
    (name, key, bound.ge)
    for name, kind in KINDS.items()
    for key, field in kind.model_fields.items()
    for bound in field.metadata
    if isinstance(bound, Ge)
]


def test_every_count_of_a_part_has_a_least():
    bounded = {(name, key) for name, key, _ in BOUNDS}
    counts = {
        (name, key)
        for name, kind in KINDS.items()
        for key, field in kind.model_fields.items()
        if field.annotation in (int, int | None)
    }
    assert counts - bounded == {("spectra", "most"), ("spectra", "basis"), ("certificates", "blocks")}  # see `check`


@pytest.mark.parametrize(("part", "key", "least"), BOUNDS)
def test_less_than_the_least_is_refused_in_a_line_that_says_it(tmp_path, part, key, least):
    needed = {"certificates": "weight_decay = [0.1]\n", "forgetting": 'text = "builtin"\n'}.get(part, "")
    (tmp_path / "study.toml").write_text(f"{QUICK}[{part}]\n{needed}{key} = {least - 1}\n")
    with pytest.raises(InputError, match=rf": {part}.{key}={least - 1}: expected at least {least}$"):
        read_settings(tmp_path / "study.toml", None)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_has_no_key_but_its_own(tmp_path, part):
    (tmp_path / "study.toml").write_text(f"{QUICK}[{part}]\nsmoothing = 1\n")
    with pytest.raises(InputError, match=f"unknown key '{part}.smoothing'; known are "):
        read_settings(tmp_path / "study.toml", None)
