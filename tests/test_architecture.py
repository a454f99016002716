"""The structure that docs/architecture.md describes: imports run one way, in no circle; tests mirror the package."""

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


TESTS = Path(__file__).parent
FIELDS = "declares fields; what pages make of them is in the command's test_page.py"
PICTURES = "pieces of the command's page, which its test_page.py shows records to"
STEPS = "steps of the command's run, which its test_run.py takes from outside"
COVERED = {  # module → why it has no test file of its own
    "__main__.py": "starts commands/session.py, whose tests run it",
    "_lazy.py": "imports of the face: test_face.py",
    "criteria/verdicts.py": "declares fields",
    "report/colours.py": "names of colours: report/test_estimates.py",
    "commands/running.py": "every command runs through it: test_registry.py has it run a toy",
    "commands/compare/record.py": "declares fields, of which commands/compare/test_words.py makes sentences",
    "commands/compare/page.py": "commands/compare/test_run.py reads the page and the terminal that it makes",
    **dict.fromkeys([f"commands/{name}/record.py" for name in (
        "audit", "certify", "constants", "converge", "demo", "exact", "measure", "paper", "recommend", "spectrum",
    )], FIELDS),
    "objective/streamed_head.py": "a piece of streamed passes: objective/test_streamed.py, against whole models",
    **dict.fromkeys([f"commands/{name}.py" for name in (
        "audit/figures", "audit/tables", "certify/figures", "measure/figures", "measure/tables",
        "paper/figures", "spectrum/figures",
    )], PICTURES),
    **dict.fromkeys([f"commands/{name}.py" for name in (
        "certify/certified_text", "certify/path", "certify/results", "converge/chains",
        "converge/coupling", "converge/equilibrium", "converge/models", "converge/potentials", "converge/results",
        "recommend/results",
    )], STEPS),
}  # fmt: skip


def test_every_module_has_a_test_file_of_its_own():
    """Named as it is, in the same folder of tests/; or it stands in `COVERED` with the reason."""
    files = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if path.name != "__init__.py"}
    own = {name for name in files if (TESTS / Path(name).parent / f"test_{Path(name).name}").exists()}
    assert sorted(files - own - COVERED.keys()) == [], "no test file, and no reason"
    assert sorted(own & COVERED.keys()) == [], "a reason, and a test file"
    assert sorted(COVERED.keys() - files) == [], "a reason for what is not there"
    assert len(COVERED) <= 35


def is_private(name):
    return name.startswith("_") and not name.startswith("__") and name != "_repr_html_"  # which notebooks call


def private_names():
    """What modules of the package define with a leading underscore: functions, classes, constants, attributes."""
    names = set()
    for _, path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(
                node, ast.AnnAssign
            ) else []  # fmt: skip
            for inner in (inner for target in targets for inner in ast.walk(target)):
                if isinstance(inner, ast.Name):
                    names.add(inner.id)
                elif isinstance(inner, ast.Attribute) and ast.unparse(inner.value) == "self":
                    names.add(inner.attr)
    return {name for name in names if is_private(name)}


def uses_of(names, tree):
    """Where a test imports a private name of the package, reads or sets it on something else than itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "villani":
            yield from (f"{node.lineno}: {a.name}" for a in node.names if is_private(a.name))
        elif isinstance(node, ast.Attribute) and node.attr in names:
            owner = ast.unparse(node.value)
            if owner not in ("self", "cls") and owner.split(".")[0] not in ("aten", "torch"):
                yield f"{node.lineno}: {owner}.{node.attr}"
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("setattr", "delattr", "setitem"):
            for word in (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)):
                if word in names or re.fullmatch(r"villani(\.\w+)*\._\w+", word):
                    yield f"{node.lineno}: {word!r}"


def test_tests_speak_to_public_names():
    names = private_names()
    assert len(names) > 100
    used = {
        str(path.relative_to(TESTS)): found
        for path in TESTS.rglob("*.py")
        if (found := [*uses_of(names, ast.parse(path.read_text()))])
    }
    assert not used, used


@pytest.mark.parametrize(
    "code",
    [
        "from villani.theory.exact import _DEPTHS", "found._held", "monkeypatch.setattr(module, '_point', None)",
        "monkeypatch.setattr('villani.theory.exact._DEPTHS', None)",
    ],
)  # fmt: skip
def test_a_private_name_would_be_seen(code):
    assert [*uses_of({"_held", "_point"}, ast.parse(code))]
