"""Spectra and audits side by side, from records of runs and records that were changed by hand."""

import json
import shutil

import pytest

from tests.test_cli import refused
from villani.commands.audit.settings import AuditSettings
from villani.commands.running import execute
from villani.commands.spectrum.settings import SpectrumSettings

TINY = "builtin:tiny?layers=1&width=8&context=32"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("compare")
    execute(
        SpectrumSettings.given(
            model=TINY, groups=3, sequences=1, block=16, density_probes=0, top=2, bottom=1, held_out=0
        ),
        base / "spectrum",
    )
    execute(AuditSettings.given(model=TINY, groups=8, sequences=1, block=16, search=0), base / "audit")
    return base


@pytest.fixture
def runs(base, tmp_path, monkeypatch):
    """A run of each command, and another of each to be changed."""
    for name in ("spectrum", "audit"):
        for copy in ("one", "two"):
            shutil.copytree(base / name, tmp_path / f"{name}-{copy}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def change(run, make):
    path = run / "records.json"
    content = json.loads(path.read_text())
    make(content["records"][0])
    path.write_text(json.dumps(content))


def test_eigenvalues_differ_by_rank_within_both_bounds(villani, runs):
    def move(record):
        first, second, last = record["eigenvalues"]
        first["value"] += 3.0
        second["value"] -= 0.5 * (second["bound"] + 1e-9)
        last["rank"] = -2  # which the other run has not

    change(runs / "spectrum-two", move)
    code, out, err = villani("compare", "spectrum-one", "spectrum-two", "--run", "out", "--json")
    assert code == 0, err
    record = json.loads(out)
    (pair,) = record["spectra"]
    first, second = pair["eigenvalues"]
    assert (pair["same_groups"], first["rank"], second["rank"], record["pairs"]) == (True, 1, 2, [])
    reach = first["reference_bound"] + first["other_bound"]
    assert first["interval"] == pytest.approx([3 - reach, 3 + reach])
    assert (first["change"], second["change"]) == ("rises", "undecided")
    page = (runs / "out" / "report.html").read_text()
    assert "the largest eigenvalue rises by " in page
    assert "if no eigenvalue was missed" in page


def test_spectra_of_different_matrices_are_refused(villani, runs):
    change(runs / "spectrum-two", lambda record: record["design"].update(operator="gauss-newton"))
    refused(villani("compare", "spectrum-one", "spectrum-two", "--json"), "another matrix than spectrum-one (operator")
    change(runs / "spectrum-one", lambda record: record["design"].update(operator="gauss-newton"))
    change(runs / "spectrum-one", lambda record: record.update(eigenvalues=record["eigenvalues"][2:]))
    change(runs / "spectrum-two", lambda record: record.update(eigenvalues=record["eigenvalues"][:2]))
    refused(villani("compare", "spectrum-one", "spectrum-two", "--json"), "have no rank of an eigenvalue in common")


def test_verdicts_stand_side_by_side(villani, runs):
    def hold(record):
        record["differential_growth"]["verdict"] = "not refuted"
        record["differential_evidence"]["refuted_above"] = None

    change(runs / "audit-one", lambda record: record["differential_growth"].update(verdict="refuted"))
    change(runs / "audit-one", lambda record: record["differential_evidence"].update(refuted_above=0.0026))
    change(runs / "audit-two", hold)
    code, out, err = villani("compare", "audit-one", "audit-two", "--run", "out")
    assert code == 0, err
    assert "(iv): refuted for audit-one, not refuted for audit-two" in out
    assert "(iv) fails for audit-one for every s > 0.0026; for audit-two no s was shown from which (iv) fails." in out
    record = json.loads((runs / "out" / "records.json").read_text())["records"][0]
    assert [audit["refuted_above"] for audit in record["audits"]] == [0.0026, None]
    assert (record["compared"], record["comparisons"]) == ("audit", 0)


def test_runs_of_different_commands_are_refused(villani, runs):
    words = "audit-two is a run of audit and spectrum-one of spectrum: compare runs of one command"
    refused(villani("compare", "spectrum-one", "audit-two", "--json"), words)
