"""The one extension point: a folder and a line make a command."""

import json
import shlex

import pytest

from tests.commands.toy import run as toy
from villani import cli
from villani.commands import content, registry
from villani.commands.registry import Command
from villani.commands.session import run as session


@pytest.fixture(autouse=True)
def _registered(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "COMMANDS", registry.COMMANDS)
    registry.COMMANDS.append(Command("toy", "tests.commands.toy"))
    monkeypatch.chdir(tmp_path)
    toy.THROWN.clear()
    yield
    registry.COMMANDS.pop()


def call(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["villani", *words])
    with pytest.raises(SystemExit) as ended:
        session(cli.command)
    return ended.value.code, *capsys.readouterr()


def test_a_folder_and_a_line_make_a_command(monkeypatch, capsys, tmp_path):
    code, shown, _ = call(monkeypatch, capsys, "toy", "--help")
    assert (code, "--throws" in shown, "Throw dice" in shown, "Dice:" in shown) == (0, True, True, True)

    code, shown, _ = call(monkeypatch, capsys, "toy", "--throws", "4", "--json")
    record = json.loads(shown)
    assert (code, len(record["throws"]), record["command"]) == (0, 4, "villani toy --throws 4")
    [folder] = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "records.json").read_text())["records"] == [record]
    assert "throws = 4" in (folder / "settings.toml").read_text()
    assert f"{sum(record['throws'])} dots" in (folder / "report.html").read_text()
    assert "toy" in json.dumps(content.run_records().model_json_schema())


def test_it_resumes_and_reads_back(monkeypatch, capsys, tmp_path):
    call(monkeypatch, capsys, "toy", "--run", "here", "--seed", "5")
    before = (tmp_path / "here" / "records.json").read_bytes()
    assert toy.THROWN == [0, 1, 2]
    assert call(monkeypatch, capsys, "toy", "--run", "here", "--seed", "5")[0] == 0
    assert toy.THROWN == [0, 1, 2]
    assert (tmp_path / "here" / "records.json").read_bytes() == before
    code, _, error = call(monkeypatch, capsys, "toy", "--run", "here", "--seed", "6")
    assert (code, "begun with seed = 5" in error) == (2, True)
    _, settings, _ = cli.parse(shlex.split("toy --throws 9"))
    assert cli.parse(shlex.split(settings.command())[1:])[1] == settings


def test_bad_options_are_one_line(monkeypatch, capsys):
    code, _, error = call(monkeypatch, capsys, "toy", "--throws", "many")
    assert (code, error.count("\n")) == (2, 1)
    code, _, error = call(monkeypatch, capsys, "toy", "--throws", str(10**12))
    assert (code, error) == (2, f"villani: throws={10**12}: expected at most {10**9}\n")
