"""The library's face: which names it has, that nothing takes their place, and what each import costs."""

import ast
import inspect
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import villani

ROOT = Path(__file__).parent.parent
PACKAGE = Path(villani.__file__).parent
CONTRACT = {  # names that outsiders rely on
    "Audit", "ConstantMemory", "Estimate", "GuardFollowing", "GuardMeter", "HessianOperator", "InputError",
    "Langevin", "LeastCertificate", "Measurement", "Mixture", "Objective", "Spectrum", "Target", "VillaniCallback",
    "__version__", "audit", "certify", "converge", "eigenpairs", "groups_from_text", "load", "load_model", "measure",
    "measure_to", "recommend", "report", "spectrum", "theory",
}  # fmt: skip
MATHEMATICS = {"constants", "exact", "pac_bayes", "rates"}


def python(code: str) -> str:
    """What a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def submodules(package):
    """Names of all modules in a package, without importing them; `__main__` would run."""
    found = []
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if module.name.endswith("__main__"):
            continue
        found.append(module.name)
        if module.ispkg:
            found += submodules(import_module(module.name))
    return found


def test_names_are_all_there_and_listed():
    assert set(villani.__all__) == CONTRACT
    assert set(dir(villani)) == CONTRACT
    assert set(villani.theory.__all__) == set(dir(villani.theory)) == MATHEMATICS
    for name in CONTRACT:
        value = getattr(villani, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__name__ == name  # one name for one thing
    for package in (villani, villani.theory):
        with pytest.raises(AttributeError, match=r"has no attribute 'absent'"):
            _ = package.absent
    names: dict[str, object] = {}
    exec("from villani import *", names)
    assert set(names) >= CONTRACT


def test_no_name_is_that_of_another_module():
    """`import villani.audit` would put a module in the function's place for good; of `report` the face sees to it."""
    for package, names in ((villani, CONTRACT - {"theory", "report"}), (villani.theory, set())):
        modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
        assert not names & modules
    assert {module.name for module in pkgutil.iter_modules(villani.theory.__path__)} >= MATHEMATICS


def test_names_survive_the_import_of_every_module():
    before = {name: getattr(villani, name) for name in villani.__all__}
    modules = [name for name in submodules(villani) if name != "villani.integrations.lightning"]  # an extra, and slow
    assert {"villani.measurement.plan", "villani.commands.audit.run", "villani.theory.exact"} <= set(modules)
    for name in modules:
        import_module(name)
    for name, value in before.items():
        assert getattr(villani, name) is value
        if name not in ("theory", "__version__"):
            assert getattr(sys.modules[value.__module__], name) is value


@pytest.mark.parametrize("first", ["villani.report.numbers", "villani.commands.pages", "villani.report"])
def test_the_report_function_is_not_taken_by_the_folder(first):
    code = f"""
import importlib, villani
importlib.import_module({first!r})
before = villani.report
from villani.report.numbers import format_number
from villani.report import page
from villani import report
assert report is villani.report is before and report.__name__ == "report" and callable(report), report
assert page.__name__ == "villani.report.page"
"""
    assert python(code) == ""


def test_mathematics_without_torch():
    """`villani.theory` after a plain import, where torch is not to be had."""
    code = """
import importlib.abc, math, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import villani
assert not {"torch", "transformers", "numpy"} & {name for name, module in sys.modules.items() if module}
theory = villani.theory
assert abs(theory.constants.Smoothing(4, 0.5).highest - math.log(8)) < 1e-12  # ln(V/α)
assert abs(theory.rates.diffusion_gap(0.25, 2.0) - 2.0) < 1e-12  # 1/(β C_P)
law = theory.exact, theory.rates, theory.pac_bayes, theory.constants
assert issubclass(villani.InputError, ValueError) and villani.Estimate(1.0, 0.0, 1, "certified").interval() == (1, 1)
print([module.__name__.split(".")[-1] for module in law], "torch" in villani.__dict__)
"""
    assert python(code) == "['exact', 'rates', 'pac_bayes', 'constants'] False"


def test_import_and_dir_load_no_library():
    code = "import sys, villani; dir(villani), villani.__all__, villani.theory; "
    code += "print({'torch', 'scipy', 'pydantic', 'transformers', 'plotly'} & set(sys.modules))"
    assert python(code) == "set()"


def imported(source: str) -> set[str]:
    """Modules of the package that a script imports."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name for name in names if name.split(".")[0] == "villani"}


def blocks(page: Path) -> list[str]:
    """The Python code of a page in Markdown."""
    return [part.split("```")[0] for part in page.read_text(encoding="utf-8").split("```python\n")[1:]]


def attributes(source: str) -> set[str]:
    """Names that a script takes from the package itself."""
    nodes = ast.walk(ast.parse(source))
    pairs = {(n.value.id, n.attr) for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}
    return {name for owner, name in pairs if owner == "villani"}


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_import_from_the_face_alone(script):
    source = script.read_text(encoding="utf-8")
    assert imported(source) == {"villani"}
    assert attributes(source) <= CONTRACT


def test_readme_imports_from_the_face_alone():
    sources = blocks(ROOT / "README.md")
    assert len(sources) == 2
    for source in sources:
        assert imported(source) == {"villani"}
        assert attributes(source) <= CONTRACT


def test_readme_example_runs(capsys):
    source = blocks(ROOT / "README.md")[0]
    smaller = {
        '"builtin:tiny"': '"builtin:tiny?layers=1&width=8"', "groups=12": "groups=8", "block=64": "block=8",
        "audit(objective, temperature=1e-3": "audit(objective, temperature=1e-3, search=0, rays=()",
    }  # fmt: skip
    for words, others in smaller.items():
        assert words in source
        source = source.replace(words, others)
    exec(compile(source, "README.md", "exec"), {})
    assert "hessian_trace" in capsys.readouterr().out


def test_package_is_typed():
    """The marker and the stubs lie where the wheel takes everything from; the stub is all that `attach` reads."""
    assert {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.pyi")} == {
        "__init__.pyi", "theory/__init__.pyi",
    }  # fmt: skip
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize("name", sorted(CONTRACT - {"__version__", "theory"}))
def test_docstrings_say_what_goes_in_and_what_goes_wrong(name):
    """Arguments are described by name, errors are named, and no argument is untyped."""
    value = getattr(villani, name)
    text = inspect.getdoc(value) or ""
    assert len(text.split()) > 5
    start = value.__init__ if inspect.isclass(value) else value
    if inspect.isclass(value) and (issubclass(value, Exception) or hasattr(value, "__dataclass_fields__")):
        return
    parameters = [p for p in inspect.signature(start).parameters.values() if p.name != "self"]
    for parameter in parameters:
        assert f"{parameter.name}:" in text, parameter.name
        assert parameter.annotation is not inspect.Parameter.empty, parameter.name
    assert "Raises:" in text
    assert "InputError" in text
