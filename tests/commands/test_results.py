"""Results in Python: what they show, that they are equal to what was saved, and the page that is made of them."""

import json
import math
import sys
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import ModuleType

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import villani
from tests.conftest import make_model, make_pool
from tests.criteria.test_orbits import binary, factors
from tests.records import build_measurement, build_training
from villani import Estimate, InputError
from villani.commands.content import read_records
from villani.commands.measure.settings import MeasureSettings
from villani.commands.running import execute
from villani.report.page import rounded
from villani.statistics import exact
from villani.theory.comparison import compare, model_constants
from villani.theory.constants import exact_quadratic, preprint
from villani.work.records import EstimateRecord

NASTY = "<script>alert('&')</script>"
GROUPS = {"groups": 12, "sequences": 2, "block": 8}
MODEL = "builtin:tiny?layers=1&width=8"


@pytest.fixture(scope="module")
def objective():
    loaded = villani.load_model(MODEL)
    groups = villani.groups_from_text("builtin", loaded, **GROUPS)
    return villani.Objective(loaded.model, groups, weight_decay=0.1, decay="all")


@pytest.fixture(scope="module")
def results(objective):
    """A result of every kind, by name; the audit refutes (iv) on two factors, with an orbit and a walk."""
    spectrum = villani.spectrum(objective, top=2, bottom=1, density_probes=2, density_steps=8)
    measurement = villani.measure(objective)
    constants = model_constants(1000, 0.1, 2.0, 50, time=100.0)
    custom = factors(binary(0.5), 0.0, 3.0, weight_decay=0.1)
    return {
        "measurement": measurement, "psi": measurement.psi(temperature=1e-3), "exact": exact(17.625),
        "audit": villani.audit(objective, temperature=1.0, search=0, rays=("gradient",)),
        "refuted": villani.audit(custom, temperature=0.05, search=0, rays=("random",), loss_bound=0.0),
        "custom": villani.measure(custom, probes=2),
        "spectrum": spectrum, "eigenpairs": spectrum.eigenpairs, "trace": spectrum.density.trace,
        "square": 2 * spectrum.density.frobenius_squared + 1, "share": spectrum.density.negative_share(),
        "model constants": constants, "comparison": constants.comparison, "constant": constants.comparison.constants[0],
        "record": build_measurement(), "training": build_training(),
        "unknown": Estimate(3.0, math.nan, 1, "estimated"),
    }  # fmt: skip


NAMES = [
    "measurement", "psi", "exact", "audit", "refuted", "custom", "spectrum", "eigenpairs", "trace", "square", "share",
    "model constants", "comparison", "constant", "record", "training", "unknown",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_it_is_the_same_to_the_last_bit(results, name, tmp_path):
    result = results[name]
    result.save(tmp_path / "result.json")
    again = villani.load(tmp_path / "result.json")
    assert type(again) is type(result)
    assert (again == result) is True
    assert hash(again) == hash(result)
    assert again.to_dict() == result.to_dict()
    assert repr(again) == repr(result)
    if isinstance(result, Estimate):
        for level in (0.5, 0.8, 0.95, 0.999):
            np.testing.assert_array_equal(again.interval(level), result.interval(level))
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "result.json").read_bytes()


def test_what_was_loaded_answers_as_what_was_saved(results, tmp_path):
    for name in ("measurement", "audit", "spectrum"):
        results[name].save(tmp_path / f"{name}.json")
    measurement, audit, spectrum = (villani.load(tmp_path / f"{n}.json") for n in ("measurement", "audit", "spectrum"))
    own = results["measurement"]
    assert measurement.psi(0.3, temperature=2.0) == own.psi(0.3, temperature=2.0)
    assert measurement.propagate(lambda x: x[1] / x[0]) == own.propagate(lambda x: x[1] / x[0])
    for name, ray in results["audit"].rays.items():
        assert audit.rays[name].psi(0.2, temperature=3.0).fit == ray.psi(0.2, temperature=3.0).fit
    for pair, other in zip(results["spectrum"].eigenpairs.largest, spectrum.eigenpairs.largest, strict=True):
        assert torch.equal(pair.vector, other.vector)
        assert pair.vector.dtype == other.vector.dtype


@pytest.mark.parametrize("name", NAMES)
def test_its_dictionary_is_plain_json(results, name):
    shown = results[name].to_dict()
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown


def test_the_dictionary_is_the_record_of_the_command(results, tmp_path):
    """The same model and text as a command: the same figures to the last bit."""
    settings = MeasureSettings(model=MODEL, decay="all", threads=1, **GROUPS)
    execute(settings, tmp_path)
    command = json.loads((tmp_path / "records.json").read_text())["records"][0]
    shown = results["measurement"].to_dict()
    assert shown.keys() == command.keys()
    differ = {name for name in command if shown[name] != command[name]}
    assert differ <= {"model", "text", "provenance"}
    same = {
        name: value for name, value in command["provenance"].items() if name not in ("command", "parameter_checksum")
    }
    assert {name: shown["provenance"][name] for name in same} == same
    assert villani.load(tmp_path) == read_records(tmp_path / "records.json").records[0]


def test_reprs_are_a_few_lines(results):
    lengths = {name: len(repr(result)) for name, result in results.items() if not isinstance(result, villani.Estimate)}
    for name in ("measurement", "audit", "refuted", "spectrum", "eigenpairs", "comparison", "constant", "record"):
        assert lengths[name] < 400, name
        assert repr(results[name]).count("\n") <= 3
    assert lengths["model constants"] < 800  # one paragraph
    assert "(iv) fails for every s > 0.04" in repr(results["refuted"])
    assert len(repr(results["measurement"].joint)) < 200
    assert len(repr(results["spectrum"].density)) < 300
    assert len(repr(results["refuted"].differential)) < 1200
    assert "Ψ" in repr(results["record"])


def test_equality_is_a_bool_and_sees_every_figure(objective, results):
    own = results["measurement"]
    again = villani.measure(objective)
    assert (own == again) is True
    assert (own != again) is False
    assert hash(own) == hash(again)
    assert len({own, again, results["spectrum"], results["audit"]}) == 3
    values = own.joint.values.copy()
    values[2] = np.nextafter(values[2], 10)
    moved = replace(own, joint=replace(own.joint, values=values))
    assert (own == moved) is False
    assert own != results["custom"]
    assert (own == 3) is False
    assert (results["audit"] == results["refuted"]) is False
    assert (villani.measure(objective, seed=1) == own) is False
    bits = own.origin.provenance.parameter_checksum
    with torch.no_grad():
        entry = objective.parameters.tensors[0].view(-1)[:1]
        before = entry.clone()
        entry.add_(1e-3)
        assert villani.measure(objective).origin.provenance.parameter_checksum != bits
        entry.copy_(before)


@pytest.mark.parametrize("name", NAMES)
def test_it_makes_a_page_and_a_picture(results, name, tmp_path):
    written = villani.report(results[name], tmp_path / "page.html")
    assert written == tmp_path / "page.html"
    text = written.read_text(encoding="utf-8")
    assert text.lower().startswith("<!doctype html>")
    assert "{{" not in text.split("<script")[0]
    if name != "unknown":  # whose error nothing can be drawn of
        assert isinstance(results[name].plot(), go.Figure)
        with pytest.raises(InputError, match="no picture is called 'absent': expected one of"):
            results[name].plot("absent")
    assert results[name]._repr_html_().startswith("<p><strong>")


def test_the_picture_is_the_page_s_own(results, tmp_path):
    villani.report(results["audit"], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    data = json.loads(text.split('type="application/json"')[1].split(">", 1)[1].split("</script>")[0])
    for name, figure in data["figures"].items():
        assert rounded(json.loads(results["audit"].plot(name).to_json())["data"]) == figure["data"]


def test_several_results_share_a_page(results, tmp_path):
    several = [results[name] for name in ("measurement", "audit", "spectrum", "psi")]
    text = villani.report(several, tmp_path / "page.html").read_text(encoding="utf-8")
    for words in ("villani measure, audit, spectrum", "19,296 parameters", str(results["psi"])):
        assert words in text
    for bad, words in (([], "no result"), (3.0, "a float is no result"), ("text", "a str is no result")):
        with pytest.raises(InputError, match=words):
            villani.report(bad, tmp_path / "none.html")
    with pytest.raises(InputError, match="is a folder"):
        villani.report(several, tmp_path)
    with pytest.raises(InputError):
        villani.report(several, tmp_path / "absent" / "page.html")


def test_names_are_escaped_wherever_they_are_shown(tmp_path):
    model = make_model("gpt2")
    model.config.name_or_path = NASTY
    model.register_parameter(NASTY.replace(".", ""), torch.nn.Parameter(torch.zeros(3, dtype=torch.float64)))
    objective = villani.Objective(model, make_pool(4), weight_decay=0.1, decay="nanogpt")
    for result in (villani.measure(objective), villani.eigenpairs(objective, top=1, bottom=0)):
        for text in (result._repr_html_(), villani.report(result, tmp_path / "page.html").read_text(encoding="utf-8")):
            assert NASTY not in text
    record = build_measurement(model=NASTY)
    assert NASTY not in record._repr_html_()
    part = Estimate(1.0, 0.1, 4, "statistical", parts={NASTY: exact(1.0)})
    assert NASTY not in part._repr_html_()
    assert "&lt;script&gt;" in part._repr_html_()
    assert NASTY not in villani.report(part, tmp_path / "part.html").read_text(encoding="utf-8")


def test_a_table_takes_pandas_and_says_so(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)  # as where it is not installed
    for result in results.values():
        with pytest.raises(InputError, match="pip install pandas") as caught:
            result.to_dataframe()
        assert "\n" not in str(caught.value)
    pandas = ModuleType("pandas")
    pandas.DataFrame = lambda rows: rows
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    statistics = {row["name"]: row for row in results["measurement"].to_dataframe()}
    loss = results["measurement"].loss
    assert statistics["loss"]["value"] == loss.value
    assert (statistics["loss"]["low"], statistics["loss"]["high"]) == loss.interval()
    assert [row["verdict"] for row in results["refuted"].to_dataframe()][-1] == "refuted"
    assert len(results["spectrum"].to_dataframe()) == 3
    for result in results.values():
        rows = result.to_dataframe()
        assert rows
        assert all(row.keys() == rows[0].keys() for row in rows)


class OneLine(Exception):
    """A refusal as it should be."""


def load_or_line(path):
    try:
        return villani.load(path)
    except InputError as error:
        raise (OneLine if str(path) in str(error) and "\n" not in str(error) else AssertionError)(str(error)) from None


@given(st.data())
def test_damaged_files_are_refused_in_one_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damage") / "e.json"
    whole = Estimate(-3.1, 0.2, 9, "statistical", parts={"a": exact(1.5)})
    whole.save(path)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 2))
    if data.draw(st.booleans()):
        content[place] = data.draw(st.integers(0, 255))
    else:
        del content[place:]
    path.write_bytes(bytes(content))
    with suppress(OneLine):
        assert load_or_line(path) == whole


def forged(path: Path, change) -> Path:
    """A saved file whose content is another one, with a checksum that fits."""
    saved = json.loads(path.read_text(encoding="utf-8"))
    change(saved)
    text = json.dumps(saved["content"], sort_keys=True, ensure_ascii=True)
    saved["checksum"] = sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(saved))
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.update(kind="os.system"), lambda f: f.update(kind=None), lambda f: f.update(content=[1]),
        lambda f: f.update(kind="Estimate"), lambda f: f["content"].pop("joint"),
        lambda f: f["content"].update(parameters="many"), lambda f: f["content"].update(tokens=1.5),
        lambda f: f["content"].update(more=1), lambda f: f["content"]["origin"].pop("model"),
        lambda f: f["content"]["joint"]["values"].update(shape=[5]),
        lambda f: f["content"]["joint"]["values"].update(bytes="?"),
        lambda f: f["content"]["joint"]["values"].update(dtype="object"),
        lambda f: f["content"]["joint"]["values"].update(f["content"]["joint"]["deviations"]),
        lambda f: f["content"]["naive_gradient_norm_squared"].update(limits={"type": "Popen"}),
        lambda f: f["content"]["naive_gradient_norm_squared"].update(status="proved"),
        lambda f: f["content"].update(tensors=[{"name": 3}]),
    ],
)  # fmt: skip
def test_a_content_that_does_not_fit_is_refused_whatever_its_checksum(results, tmp_path, change):
    results["measurement"].save(tmp_path / "m.json")
    with pytest.raises(InputError, match=r"m\.json: damaged: .*save the result again") as caught:
        villani.load(forged(tmp_path / "m.json", change))
    assert "\n" not in str(caught.value)


def test_other_files_and_versions_are_refused(results, tmp_path):
    path = tmp_path / "m.json"
    results["measurement"].save(path)
    saved = json.loads(path.read_text(encoding="utf-8"))
    for version in (0, 2, "1", None):
        path.write_text(json.dumps(saved | {"version": version}))
        with pytest.raises(InputError, match="this villani reads 1"):
            villani.load(path)
    for text, words in (("{}", "not a result"), ("[]", "not a result"), ("", "not JSON"), ('{"format": 3}', "not a")):
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            villani.load(path)
    with pytest.raises(InputError, match="no such file"):
        villani.load(tmp_path / "absent.json")
    with pytest.raises(InputError, match="no such file"):
        villani.load(tmp_path)
    with pytest.raises(InputError, match="is a part of a result"):
        build_measurement().loss.save(path)
    with pytest.raises(InputError, match="cannot be saved"):
        Estimate(1.0, 0.1, 4, "statistical", limits=lambda level: (0.0, 2.0)).save(path)


def test_a_displaced_measurement_has_figures_but_no_page(objective, results):
    ray = next(iter(results["audit"].rays.values()))
    assert ray.measurements[0].origin is None
    with pytest.raises(InputError, match="displaced"):
        ray.measurements[0].to_dict()
    assert "tr ∇²L" in repr(ray.measurements[0])
    assert villani.measure(objective).origin.provenance == results["measurement"].origin.provenance


def test_records_are_equal_and_have_a_hash():
    assert build_measurement() == build_measurement()
    assert hash(build_measurement()) == hash(build_measurement())
    zero = {"sem": 0.0, "n": 1, "interval": (0.0, 0.0), "status": "certified"}
    assert EstimateRecord(value=0.0, **zero) == EstimateRecord(value=-0.0, **zero)
    assert hash(EstimateRecord(value=0.0, **zero)) == hash(EstimateRecord(value=-0.0, **zero))


def test_constants_of_one_law_have_a_page_too(tmp_path):
    comparison = compare([exact_quadratic(0.1, 1.0), preprint(0.1, 1.0, 10)])
    assert "C1" in comparison._repr_html_()
    assert villani.report(comparison, tmp_path / "page.html").exists()
    assert comparison == compare([exact_quadratic(0.1, 1.0), preprint(0.1, 1.0, 10)])


def test_the_documentation_of_results_runs(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "measuring.md").read_text(encoding="utf-8")
    source = page.split("## Results in Python")[1].split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(source.replace("builtin:tiny", MODEL).replace("block=64", "block=8"), "measuring.md", "exec"), {})
    assert (tmp_path / "page.html").exists()
    assert "tr ∇²L" in capsys.readouterr().out
