"""`villani exact` as a user types it: records, the page, and every kind of bad input."""

import json
import re
import sys
import tomllib

import pytest

from villani.cli import main
from villani.commands.exact import run as exact_run
from villani.commands.exact.ladder import ladder
from villani.commands.exact.page import sweep
from villani.commands.exact.record import ExactRecord
from villani.commands.exact.settings import ExactSettings
from villani.commands.pages import write_report
from villani.commands.running import execute
from villani.errors import InputError
from villani.theory.reference import Check


@pytest.fixture
def villani(monkeypatch, capsys, tmp_path):
    """Run a command in this process, in an empty folder; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["villani", "exact", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out = capsys.readouterr()
        return stopped.value.code, out.out, out.err

    return run


def test_a_sweep_gives_one_record_and_a_page(villani, tmp_path):
    page = tmp_path / "page.html"
    code, out, err = villani("ce1", "--dimension", "5,15", "--set", "a=20", "--json", "--run", "r", "--output", page)
    assert code == 0, err
    assert out.count("\n") == 1
    record = ExactRecord.model_validate_json(out)
    assert record.varied == "dimension"
    assert [point.dimension for point in record.points] == [5, 15]
    assert record.points[1].poincare > 10 * record.points[0].poincare
    status = {constant.id: constant.status for constant in record.points[1].constants if constant.id != "truth"}
    assert status["C8"] == "refuted"
    assert status["C3"] == "certified"
    assert "C8's 1510 is refuted" in record.points[1].verdict
    html = page.read_text(encoding="utf-8")
    assert html == (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    shown = re.search(r"<main>.*?(?=<dl id=.words)", html, re.S)[0]
    assert record.points[1].verdict.split(";")[0] in shown
    assert "C8 is refuted at 15." in shown
    assert "condition (iv)" not in shown  # nothing of a measurement's page
    figure = json.loads(re.search(r'id="data">(.*?)</script>', html, re.S)[1])["figures"]["truth"]
    assert figure["layout"]["xaxis"]["title"]["text"] == "dimension d"


def test_a_run_answers_again_and_makes_its_page_from_records(villani, tmp_path):
    words = ("binary-ce", "--weight-decay", "0.5,1,2", "--json", "--run", "r")
    first = villani(*words)
    kept = (tmp_path / "r" / "records.json").read_bytes()
    page = (tmp_path / "r" / "report.html").read_bytes()
    assert villani(*words)[1] == first[1]
    assert (tmp_path / "r" / "records.json").read_bytes() == kept
    (tmp_path / "r" / "report.html").unlink()
    write_report(tmp_path / "r")
    assert (tmp_path / "r" / "report.html").read_bytes() == page
    tomllib.loads((tmp_path / "r" / "settings.toml").read_text(encoding="utf-8"))
    other = villani("tied", "--set", "a=3", "--run", "r")
    assert other[0] == 2
    assert "was begun with parameters" in other[2]


def test_points_of_a_killed_run_are_not_solved_again(tmp_path, monkeypatch):
    settings = ExactSettings(potential="binary-ce", weight_decay=[0.5, 1.0, 2.0])
    solve = exact_run.solve

    def failing(law, *rest, **options):
        if law.weight_decay == 2.0:
            raise KeyboardInterrupt
        return solve(law, *rest, **options)

    monkeypatch.setattr(exact_run, "solve", failing)
    with pytest.raises(KeyboardInterrupt):
        execute(settings, tmp_path)
    seen = []
    monkeypatch.setattr(
        exact_run, "solve", lambda law, *rest, **options: seen.append(law.weight_decay) or solve(law, *rest, **options)
    )
    resumed = execute(settings, tmp_path)[1]
    assert seen == [0.5, 2.0]  # the first is always solved: what it refuses leaves no directory
    assert resumed == execute(settings, tmp_path / "other")[1]


def test_what_is_refused_leaves_no_directory(villani, tmp_path):
    assert villani("w**3", "--run", "r")[0] == 2
    assert list(tmp_path.iterdir()) == []


def test_people_get_a_verdict_and_a_table(villani):
    code, out, _ = villani("log(1+exp(-a*w))", "--set", "a=3", "--weight-decay", "0.5", "--temperature", "0.4")
    assert code == 0
    assert "s = 0.4 (β = 5)" in out
    assert "Bakry" in out
    assert "C3 does not apply: L is unbounded" in out


def test_without_a_potential_it_lists_the_names(villani):
    code, out, _ = villani()
    assert code == 0
    assert "ce1" in out
    assert "two-factors" in out


def test_a_list_of_names_is_no_record_to_print(villani):
    code, out, err = villani("--json")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "give a name or an expression" in err


def test_temperature_and_beta_are_the_same_question(tmp_path):
    by_beta = execute(ExactSettings(potential="0*w", weight_decay=[0.1], beta=[4.0]), tmp_path / "b")[1]
    by_temperature = execute(ExactSettings(potential="0*w", weight_decay=[0.1], temperature=[0.5]), tmp_path / "s")[1]
    assert by_beta.points == by_temperature.points
    assert by_beta.points[0].poincare == pytest.approx(2.5)
    assert by_beta.points[0].verdict.endswith("is tight")


def test_the_picture_shows_every_constant_and_points_to_what_is_too_far(tmp_path):
    record = execute(ExactSettings(potential="binary-ce", weight_decay=[0.05, 0.1]), tmp_path)[1]
    figure = sweep(record)
    names = {trace.name for trace in figure.data}
    assert names == {c.name if c.id == "truth" else f"{c.id} {c.name}" for p in record.points for c in p.constants}
    far = next(trace for trace in figure.data if trace.name.startswith("C4"))
    assert set(far.marker.symbol) == {"triangle-up"}
    assert "10" in far.text[0]
    assert figure.layout.xaxis.title.text == "weight decay λ"
    assert figure.layout.xaxis.type == "log"
    own = sorted(c.log10 for c in record.points[0].constants)
    near = [log10 for log10 in own if log10 < 30]  # what is further stands as an arrow at the edge
    assert ladder(record.points[0].constants).data[0].x[: len(near)] == tuple(near)
    assert len(near) < len(own)


def test_the_reference_values_as_json(villani, monkeypatch, tmp_path):
    good = [Check(f"T{i}", "right", "1.5", 1.5) for i in range(1, 4)]  # the values themselves: theory/test_reference
    monkeypatch.setattr(exact_run, "checks", lambda: iter([*good, Check("T0", "made wrong", "1.5", 2.5)]))
    code, out, _ = villani("--all", "--json", "--run", "r")
    found = json.loads(out)
    assert "T0, made wrong" in (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert code == 1
    assert found["failed"] == 1
    assert found["passed"] == 3
    assert [check["row"] for check in found["checks"] if not check["passes"]] == ["T0"]


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["nosuch"], ["'nosuch'", "ce1"]),
        (["foo(w)"], ["unknown function foo"]),
        (["__import__('os').getcwd()"], ["not arithmetic"]),
        (["log(1+exp(w)"], ["not readable"]),
        (["w**3", "--weight-decay", "1"], ["does not confine"]),
        (["sqrt(w)"], ["not a real number"]),
        (["w+1j"], ["not a real number"]),
        (["x*y*z"], ["3 coordinates"]),
        (["ce1", "--weight-decay", "-1"], ["weight_decay=-1"]),
        (["ce1", "--weight-decay", "nan"], ["weight_decay=nan"]),
        (["ce1", "--temperature", "0"], ["temperature=0"]),
        (["ce1", "--beta", "x"], ["--beta", "expected numbers"]),
        (["ce1", "--beta", "1", "--temperature", "2"], ["give one"]),
        (["ce1", "--beta", "1,2", "--dimension", "2,3"], ["one of them at a time"]),
        (["ce1", "--dimension", "2.5"], ["whole numbers"]),
        (["ce1", "--dimension", "-3"], ["dimension=-3"]),
        (["ce1", "--dimension", "0"], ["dimension=0"]),
        (["ce1", "--set", "b=3"], ["no such parameter", "it has a"]),
        (["ce1", "--set", "a"], ["NAME=VALUE"]),
        (["tied", "--digits", "40"], ["digits=40"]),
        (["tied", "--output", "no/such/folder/page.html"], ["no such folder"]),
        (["tied", "--output", "."], ["is a folder"]),
        (["tied", "--run", "/proc/x"], ["cannot write to /proc/x"]),
        (["tied", "--all"], ["--all"]),
        (["--beta", "3"], ["need a potential"]),
        (["--run", "r"], ["need a potential"]),
        (["w**9**9**9**9"], ["no finite number"]),
        (["exp(exp(exp(w)))", "--weight-decay", "-1"], ["weight_decay=-1"]),
        (["tied", "--shape", "cube"], ["cube"]),
    ],
)
def test_bad_input_is_one_line(villani, words, fragments):
    code, out, err = villani(*words)
    lines = [line for line in err.splitlines() if line.startswith("villani: ")]
    assert code == 2, (code, err)
    assert out == ""
    assert len(lines) == 1
    assert "Traceback" not in err
    for fragment in fragments:
        assert fragment in lines[0], lines[0]


def test_settings_refuse_two_axes_before_anything_is_solved(tmp_path):
    with pytest.raises(InputError, match="weight_decay and dimension"):
        execute(ExactSettings(potential="ce1", weight_decay=[1, 2], dimension=[3, 4]), tmp_path)


def test_a_relative_entropy_that_cannot_be_had_leaves_the_rest(villani):
    """E_π exp(0.06w²) is infinite at λ = 0.1; C_P is none the worse for it."""
    code, out, err = villani("exp(0.06*w**2)", "--weight-decay", "0.1", "--beta", "1", "--json")
    assert code == 0, err
    (point,) = json.loads(out)["points"]
    assert point["relative_entropy"] is None
    assert any("mean of L under the prior" in gone["reason"] for gone in point["missing"])
    assert point["status"] == "certified"
