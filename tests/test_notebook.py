"""The notebook of docs/ runs from a fresh kernel, and carries the outputs of such a run."""

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def kinds(cell):
    """Of its outputs: each result, and whether it printed, in however many pieces; warnings may come and go."""
    outputs = cell.get("outputs", [])
    shown = [output.output_type for output in outputs if output.output_type != "stream"]
    return shown, any(output.output_type == "stream" and output.name == "stdout" for output in outputs)


@pytest.mark.thorough
def test_notebook_runs_and_has_its_outputs(monkeypatch):
    pytest.importorskip("ipykernel")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = DOCS / "notebook.ipynb"
    assert path.stat().st_size < 300_000
    run = runpy.run_path(str(DOCS / "site" / "execute.py"))["executed"](path)  # raises where a cell does
    saved = nbformat.read(path, as_version=4)
    for before, after in zip(saved.cells, run.cells, strict=True):
        assert kinds(before) == kinds(after), before.source
    assert sum(bool(cell.get("outputs")) for cell in saved.cells) > 8
