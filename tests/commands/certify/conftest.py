"""A text to hold out, and certificates of a small model by the command line."""

import json

import pytest

SMALL = "builtin:tiny?layers=1&width=8&context=16"
QUICK = ["--block", "16", "--blocks", "40", "--held-out", "README.md"]


@pytest.fixture
def text(tmp_path, monkeypatch):
    """A text to hold out, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("The quick brown fox jumps over the lazy dog. " * 30)


@pytest.fixture
def certified(villani, text):
    """The record of `villani certify` with some options."""

    def record(*words):
        code, out, err = villani("certify", SMALL, *QUICK, *words, "--json")
        assert code == 0, err
        return json.loads(out)

    return record
