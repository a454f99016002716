import shlex
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.commands.strategies import settings_of
from villani import cli
from villani.commands.exact.settings import ExactSettings
from villani.commands.running import execute
from villani.errors import InputError

POTENTIALS = st.sampled_from(["ce1", "tied", "log(1+exp(-a*w))", "-log(cosh(m*w))", "w ** 2 - 'x'", "--all"])
ONE = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=1)
SOLVED = settings_of(
    ExactSettings, 4, ("potential",), potential=POTENTIALS, all=st.just(False), temperature=ONE, beta=ONE,
    output=st.just("page.html"),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(SOLVED | st.sampled_from([ExactSettings(), ExactSettings(all=True), ExactSettings(all=True, output="a b.html")]))
def test_the_command_reads_back(asked):
    assert cli.parse(shlex.split(asked.command())[1:])[1] == asked


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({}, None),
        ({"all": True}, None),
        ({"all": True, "output": "page.html"}, None),
        ({"all": True, "potential": "ce1"}, "all=True: recomputes every reference value; leave out 'ce1'"),
        ({"all": True, "digits": 0}, "options need a potential"),
        ({"digits": 0}, "options need a potential"),
        ({"output": "page.html"}, "options need a potential"),
        ({"potential": "ce1", "parameters": {"a b": 3.0}}, "--set 'a b=3': expected NAME=VALUE"),
        ({"potential": "ce1", "parameters": {"a": float("inf")}}, "parameters a=inf: expected a finite number"),
        ({"potential": "ce1", "temperature": [1.0], "beta": [2.0]}, "give one"),
        ({"potential": "ce1", "output": "no/such/page.html"}, "no such folder"),
        ({"potential": "ce1", "colour": "red"}, "colour: no such option"),
    ],
)
def test_what_goes_together_is_said_in_one_place(given, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if line is None:
        ExactSettings.given(**given)
    else:
        with pytest.raises(InputError, match=line.replace("(", r"\(")):
            ExactSettings.given(**given)


@pytest.mark.parametrize("words", [["ce1", "--dimension", "2"], []])
def test_it_loads_no_torch(words, tmp_path):
    code = (
        "import sys; from villani.cli import main; sys.argv = ['villani', 'exact', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit as ended: assert not ended.code, ended.code\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False False"


def test_parameters_that_differ_in_the_last_digits_are_different_runs(tmp_path):
    """What six digits do not tell apart, a ledger must: points of the one would be read for the other."""
    kind = {"potential": "c*w**2", "dimension": [1, 2]}
    execute(ExactSettings.given(**kind, parameters={"c": 0.1234567}), tmp_path / "r")
    with pytest.raises(InputError, match="begun with"):
        execute(ExactSettings.given(**kind, parameters={"c": 0.1234568}), tmp_path / "r")
    assert ExactSettings(potential="a", parameters={"a": 20.0}).assignments == ["a=20"]
