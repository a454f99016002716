"""The structure that docs/architecture.md describes: imports run one way, and in no circle."""

import ast
import re
from pathlib import Path

import pytest

import villani

ROOT = Path(villani.__file__).parent
# From the bottom; a folder may import those before it, and itself.
LAYERS = [
    "errors", "outwards", "results", "bounds", "estimate", "statistics", "streams", "theory", "work", "objective",
    "inputs", "curvature", "measurement", "criteria", "dynamics", "choice", "integrations", "report", "commands", "cli",
    "__main__",
]  # fmt: skip
UNORDERED = {"__init__", "_lazy"}  # the face names all, and imports nothing until it is used


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__") or "__init__", path


def imports(path, known, *, whole):
    """Modules of villani that a file imports; with `whole`, also inside of functions."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if whole else _outside_functions(tree)
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "villani":
            base = ".".join(node.module.split(".")[1:])
            for name in node.names:
                inner = f"{base}.{name.name}".strip(".")
                yield inner if inner in known else base or "__init__"
        elif isinstance(node, ast.Import):
            yield from (".".join(n.name.split(".")[1:]) for n in node.names if n.name.startswith("villani."))


def _outside_functions(tree):
    stack = [tree]
    while stack:
        node = stack.pop()
        yield node
        stack += [n for n in ast.iter_child_nodes(node) if not isinstance(n, ast.FunctionDef | ast.Lambda)]


@pytest.fixture(scope="module")
def graph():
    known = dict(modules())
    return {name: {m for m in imports(path, known, whole=False) if m != name} for name, path in known.items()}


def test_imports_run_in_no_circle(graph):
    """Blocks under TYPE_CHECKING included."""
    done, path = set(), []

    def visit(name):
        if name in path:
            pytest.fail(" → ".join([*path[path.index(name) :], name]))
        if name in done:
            return
        path.append(name)
        for other in sorted(graph.get(name, ())):
            visit(other)
        path.pop()
        done.add(name)

    for name in graph:
        if name not in UNORDERED:
            visit(name)


def test_no_layer_imports_one_above_it():
    known = dict(modules())
    place = {layer: number for number, layer in enumerate(LAYERS)}
    wrong = [
        f"{name} imports {other}"
        for name, path in known.items()
        if name not in UNORDERED
        for other in imports(path, known, whole=True)
        if other not in UNORDERED and place[other.split(".")[0]] > place[name.split(".")[0]]
    ]
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_the_theory_needs_no_torch():
    for name, path in modules():
        if name.split(".")[0] in ("theory", "statistics", "outwards"):
            text = path.read_text()
            assert "import torch" not in text, name
            assert "from torch" not in text, name


def test_the_architecture_names_files_that_are_there():
    """Every file of the table in docs/architecture.md, and no folder without a row."""
    page = (ROOT.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set()
    for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE):
        folder = ""
        for name in re.findall(r"`([^`]+)`", row):
            *above, file = name.split("/")
            folder = "/".join(above) or folder
            named.add(f"{folder}/{file}".strip("/"))
    missing = [name for name in named if "NAME" not in name and not (ROOT / name).exists() and name != "sizes/"]
    assert not missing, missing
    parts = {
        "settings.py", "record.py", "run.py", "page.py", "tables.py", "figures.py", "terminal.py", "results.py",
        "words.py", "path_results.py", "prequential_results.py", "__init__.py", "__main__.py",
    }  # fmt: skip
    files = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py")}
    unnamed = sorted(f for f in files - named if Path(f).name not in parts)
    assert not unnamed, unnamed
