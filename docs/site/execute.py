"""Run the notebook and keep its outputs: `python docs/site/execute.py`. A test runs it too, and keeps nothing."""

import os
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "notebook.ipynb"


def executed(path: Path = NOTEBOOK, timeout: int = 300) -> Any:
    """The notebook with the outputs of a run from a fresh kernel; an error in a cell is raised."""
    notebook = nbformat.read(path, as_version=4)
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"  # figures as data, without a script of megabytes in each
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    NotebookClient(notebook, timeout=timeout, kernel_name="python3").execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
        if cell.cell_type != "code":
            continue
        cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr"]
        for output in cell["outputs"]:
            figures = output.get("data", {}).get("application/vnd.plotly.v1+json")
            if figures:
                figures.get("layout", {}).pop("template", None)  # colours of plotly's own, 6 kB
                output["data"] = {"application/vnd.plotly.v1+json": figures}
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


if __name__ == "__main__":
    nbformat.write(executed(), NOTEBOOK)
