import json
import math
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from villani.commands.constants.record import ModelConstants, ModelPointRecord
from villani.commands.exact.record import ConstantRecord
from villani.commands.measure import figures
from villani.commands.measure.record import PlanRecord
from villani.commands.pages import page as render
from villani.commands.pages import write_report
from villani.errors import InputError
from villani.report.numbers import format_interval, format_number, format_uncertain

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{data}}\u2028&"


def page_of(run_records, *records, costs=None, **run):
    return render(run_records(*records, **run), costs or {})


def embedded(page):
    return re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]


def ours(page):
    """The page without the name of SVG's elements, which is no address that anything is fetched from."""
    return page.replace('"http://www.w3.org/2000/svg"', '""')


def node(page, expression):
    """Evaluate `expression` after the page's own arithmetic."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    script = re.search(r'<script id="arithmetic">(.*?)</script>', page, re.S)[1]
    point = json.dumps(json.loads(embedded(page))["point"])
    program = f"{script}\nconst point = {point};\nconsole.log(JSON.stringify({expression}));"
    done = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


def test_negative_psi_is_expected_and_proves_nothing(measurement_record, run_records):
    page = page_of(run_records, measurement_record(norm=100.0))
    assert "Ψ is negative at λ = 0.1, s = 0.001: " in page
    assert "A negative Ψ is no evidence against (iv)" in page
    assert "at equilibrium, where there is one, the average of Ψ is −½ times" in page


def test_positive_psi_is_no_evidence_for_the_condition(measurement_record, run_records):
    page = page_of(run_records, measurement_record())
    assert "Ψ is positive at λ = 0.1, s = 0.001: " in page
    assert "A positive Ψ here is no evidence for (iv)" in page


def test_undecided_sign_is_not_called_positive(measurement_record, run_records):
    record = measurement_record(
        norm=0.0, gradient=221800.0 * 1e-3, sems=[0.02, 1.0, 0.1, 60.0], dot=0.0, grid=[(0.1, 1e-3)]
    )
    low, high = record.psi[0].interval
    assert low < 0 < high
    page = page_of(run_records, record)
    assert "The sign of Ψ is undecided" in page
    assert "nothing to read into it" in page


def test_full_decay_is_certified(measurement_record, run_records):
    page = page_of(run_records, measurement_record(undecayed=0))
    assert "All parameters decay, so F ≥ (λ/2)‖θ‖² holds (certified" in page
    assert "Every tensor decays." in page
    assert "do not decay. Decay" not in page


def test_partial_decay_has_no_certificate(measurement_record, run_records):
    page = page_of(run_records, measurement_record(undecayed=3))
    assert "576 of 2,195,328 parameters (0.026 %) do not decay" in page
    assert "criteria (ii) and (iii) have no certificate" in page
    assert "exactly flat direction" in page
    assert "transformer.h.0.mlp.c_proj.bias and 2 more may be such a bias" in page
    assert "(certified, since" not in page
    assert "<summary>3 tensors that do not decay</summary>" in page


def test_no_decay_at_zero_is_not_certified(measurement_record, run_records):
    page = page_of(run_records, measurement_record(grid=[(0.0, 1e-3)]))
    assert "λ = 0, so nothing decays here" in page
    assert "certified, since" not in page


def test_exact_terms_are_told_apart_from_the_data(measurement_record, run_records):
    record = measurement_record(undecayed=1)
    psi = record.psi[0]
    exact = psi.parts.decay_norm.value + psi.parts.decay_laplacian.value
    data = figures.data_part(psi)
    assert data.value == pytest.approx(psi.value - exact, rel=1e-9)
    assert data.sem == psi.sem
    assert data.interval[0] < data.value < data.interval[1]
    page = page_of(run_records, record)
    assert f"Together they come to {format_number(exact)}" in page
    assert f"What depends on the data comes to {format_uncertain(data.value, data.sem)}" in page


@pytest.mark.parametrize(
    ("gradient", "words"),
    [
        (0.0421, "The mini-batch figure is 7.53 times the unbiased one."),
        (-0.002, "The gradient cannot be told from zero with these 16 groups."),
        (0.002, "The gradient cannot be told from zero with these 16 groups."),
        (-0.05, "A squared norm cannot be negative"),
    ],
)
def test_gradient_statement(measurement_record, run_records, gradient, words):
    assert words in page_of(run_records, measurement_record(gradient=gradient))


def test_zero_errors_give_points(measurement_record, run_records):
    record = measurement_record(sems=[0, 0, 0, 0], finite=True, df=0.0)
    page = page_of(run_records, record)
    assert "without sampling error" in page
    assert "the whole data set: only probes are noise" in page
    assert json.loads(embedded(page))["point"]["quantile"] == 0
    assert "±" not in re.search(r'<div id="live">.*?</table>', page, re.S)[0].replace("value ± error", "")


def test_one_group_has_no_quantile(measurement_record, run_records):
    page = page_of(run_records, measurement_record(df=0.0))
    assert json.loads(embedded(page))["point"]["quantile"] is None


def test_quantile_is_student_t(measurement_record, run_records):
    # 2.1314 is the two-sided 95 % point for 15 degrees of freedom in any printed t table.
    assert json.loads(embedded(page_of(run_records, measurement_record())))["point"]["quantile"] == pytest.approx(
        2.1314, abs=1e-4
    )


def test_grid_is_drawn_only_when_there_is_one(measurement_record, run_records):
    single = json.loads(embedded(page_of(run_records, measurement_record())))["figures"]
    assert "grid" not in single
    grid = [(0.1, 1e-3), (0.1, 1e-2), (1.0, 1e-3)]
    record = measurement_record(grid=grid)
    page = page_of(run_records, record)
    cells = json.loads(embedded(page))["figures"]["grid"]["data"][0]
    assert (cells["x"], cells["y"]) == (["0.1", "1"], ["0.001", "0.01"])
    assert cells["z"][1][1] is None
    for psi in record.psi:
        assert format_uncertain(psi.value, psi.sem) in page


def test_demo_shows_training_and_rays(demo_run, cost):
    page = render(demo_run, {2: cost})
    specs = json.loads(embedded(page))["figures"]
    assert {"training0", "ray0", "ray1", "parts", "tensors", "layers", "gradient"} <= set(specs)
    assert [curve["name"] for curve in specs["ray0"]["data"]][:3] == ["Ψ", "λ²‖mθ‖²/s, exact", "data-dependent part"]
    assert len(specs["ray0"]["data"][0]["x"]) == 6  # five radii and the trained point
    assert "Rays cannot detect that condition (iv) fails: orbits" in page
    assert "held out: 3.21" in page
    assert "<h2>Every point measured</h2>" in page
    assert "<td>41.2</td>" in page


def test_training_alone_is_a_page(demo_run, run_records):
    page = page_of(run_records, demo_run.records[0])
    assert "holds no measurement of Ψ yet" in page
    assert 'id="sliders"' not in page


def test_main_point_is_the_undisplaced_one(measurement_record, run_records):
    page = page_of(run_records, measurement_record(ray=("u", 4.0), loss=9.0), measurement_record())
    assert json.loads(embedded(page))["point"]["statistics"][0] == 4.247


def test_layers_have_their_own_intervals(measurement_record):
    record = measurement_record()
    trace = figures.layer_traces(record).data[0]
    second = next(layer.hessian_trace for layer in record.layers if layer.name == "1")
    assert list(trace.x) == [0, 1, 2, 3]
    assert trace.y[1] == second.value
    assert trace.error_y.array[1] == pytest.approx(second.interval[1] - second.value)


def test_bars_of_layers_reach_to_the_ends_of_their_intervals(measurement_record):
    record = measurement_record()
    estimate = record.hessian_trace.model_copy(update={"value": 5.0, "interval": (4.0, 8.0)})
    layers = [SimpleNamespace(name=name, hessian_trace=estimate) for name in ("0", "1")]
    bars = figures.layer_traces(record.model_copy(update={"layers": layers})).data[0].error_y
    assert (bars.arrayminus, bars.array) == ((1.0, 1.0), (3.0, 3.0))


def test_a_plan_is_told(measurement_record, run_records):
    plan = PlanRecord(
        quantity="hessian_trace", error=0.01, relative=True, pilot_groups=40, planned_groups=300,
        probe_deviation=12.0, data_deviation=34.0, note="no Taylor rule for <x>",
    )  # fmt: skip
    page = page_of(run_records, measurement_record().model_copy(update={"plan": plan}))
    assert "300 groups planned from a pilot of 40 groups" in page
    counting = plan.model_copy(update={"pilot_groups": 0, "start_groups": 16})
    assert "300 groups planned from the first 16 and" in page_of(
        run_records, measurement_record().model_copy(update={"plan": counting})
    )
    assert "no Taylor rule for &lt;x&gt;" in page
    assert "the design was given" in page_of(run_records, measurement_record())


def test_constants_are_shown_or_their_absence_explained(measurement_record, run_records):
    record = measurement_record(grid=[(0.1, 1e-3), (0.1, 2.0)])
    bounds = [
        ConstantRecord(
            id=id, name=name, value=None if log10 > 300 else 10**log10, log10=log10, direction="upper",
            kind="log-Sobolev", hypotheses="", status=status, source="",
        )
        for id, name, log10, status in (
            ("C8", "preprint", 3.5, "as-claimed"), ("C3", "smoothed cross-entropy", 11308.6, "certified"),
        )
    ]  # fmt: skip
    points = [
        ModelPointRecord(weight_decay=0.1, temperature=s, visible=s * 50, sentence=f"At s = {s}.", constants=bounds)
        for s in (1e-3, 2.0)
    ]
    constants = ModelConstants(
        parameters=2_195_328, vocabulary=50257, alpha=0.1, smoothing_cost=0.105, time=100, points=points
    )
    page = page_of(run_records, record.model_copy(update={"constants": constants}))
    assert "At s = 0.001. Nothing measured here enters." in page
    assert "<td>11,305.1 more</td>" in page
    drawn = json.loads(embedded(page))["figures"]["constants"]
    x, symbols = drawn["data"][0]["x"], drawn["data"][0]["marker"]["symbol"]
    assert sorted(x) == pytest.approx(
        [math.log10(0.005), math.log10(0.05), 3.5, 7.5]
    )  # 10^11308.6 is beyond the picture
    assert symbols[3] == "triangle-right"
    assert "4·10¹¹³⁰⁸" in drawn["layout"]["annotations"][3]["text"]
    assert "No log-Sobolev constant is offered" in page_of(run_records, measurement_record(undecayed=2))


def test_hostile_names_stay_text(measurement_record, run_records):
    record = measurement_record(model=HOSTILE, undecayed=1, ray=(HOSTILE, 2.0))
    tensor = record.tensors[0].model_copy(update={"name": HOSTILE})
    record = record.model_copy(update={"tensors": [tensor, *record.tensors[1:]]})
    page = ours(page_of(run_records, record, title=HOSTILE))
    assert page.lower().count("<script") == page.lower().count("</script>") == 4
    assert "alert(1)</script>" not in page
    assert "<img" not in page
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in page
    data = embedded(page)
    assert not set("<>&\u2028\u2029") & set(data)
    annotation = json.loads(data)["figures"]["tensors"]["layout"]["annotations"][0]["text"]
    assert annotation.startswith("&lt;/script&gt;")


def test_page_needs_no_network(demo_run):
    page = ours(render(demo_run, {}))
    assert "http:" not in page
    assert "https:" not in page
    assert not re.search(r"<(link|iframe|img)\b|\bsrc=|\bhref=|@import|url\((?!#)", page)
    assert "default-src 'none'" in page


def test_page_never_shows_nan(demo_run, measurement_record, run_records):
    awkward = measurement_record(
        trace=0.0, gradient=0.0, naive=0.0, dot=0.0, norm=0.0, sems=[0, 0, 0, 0], grid=[(0.0, 1.0)]
    )
    for page in (render(demo_run, {}), page_of(run_records, awkward)):
        visible = re.search(r"<main>.*</main>", page, re.S)[0]
        assert not re.search(r"\b(nan|inf|none|null)\b", visible, re.I)
        assert "NaN" not in embedded(page)


@pytest.mark.parametrize("pair", [(0.1, 1e-3), (0.0, 0.5), (3.0, 1e-6)])
def test_sliders_agree_with_the_records(measurement_record, run_records, pair):
    record = measurement_record(grid=[pair], undecayed=2)
    rows = node(page_of(run_records, record), f"psiAt(point, {pair[0]}, {pair[1]})")
    psi = record.psi[0]
    for row, truth in zip(rows, [psi, *figures.named_parts(psi.parts).values()], strict=True):
        assert row["value"] == pytest.approx(truth.value, rel=1e-9)
        assert row["sem"] == pytest.approx(truth.sem, rel=1e-9)
        assert (row["low"], row["high"]) == pytest.approx(truth.interval, rel=1e-9)


def test_sliders_give_points_without_noise(measurement_record, run_records):
    rows = node(page_of(run_records, measurement_record(sems=[0, 0, 0, 0])), "psiAt(point, 0.1, 0.001)")
    assert all(row["low"] == row["value"] == row["high"] for row in rows)


def test_page_and_python_round_alike(measurement_record, run_records):
    rng = np.random.default_rng(0)
    values = rng.normal(size=300) * 10.0 ** rng.uniform(-9, 9, 300)
    sems = np.abs(values) * 10.0 ** rng.uniform(-8, 3, 300)
    pairs = [*zip(values.tolist(), sems.tolist(), strict=True), (0.0, 0.02), (5.0, 0.0), (0.0, 0.0), (1.0, 1e-20)]
    page = page_of(run_records, measurement_record())
    shown = node(
        page,
        f"{json.dumps(pairs)}.map(([v, e]) => [formatUncertain(v, e), formatInterval(v - e, v + e), formatNumber(v)])",
    )
    for (value, sem), texts in zip(pairs, shown, strict=True):
        assert texts == [format_uncertain(value, sem), format_interval(value - sem, value + sem), format_number(value)]


def write_run(folder, records, costs=None):
    (folder / "records.json").write_text(records.model_dump_json(), encoding="utf-8")
    if costs is not None:
        (folder / "cost.json").write_text(json.dumps(costs), encoding="utf-8")


def test_write_report_with_costs(tmp_path, measurement_record, run_records, cost):
    write_run(tmp_path, run_records(measurement_record()), {"0": cost.model_dump()})
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    page = path.read_text(encoding="utf-8")
    assert page == render(run_records(measurement_record()), {0: cost})
    assert "41.2 s, 812 MiB at the peak" in page
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cost.json", "records.json", "report.html"]


def test_write_report_without_costs_replaces_the_old_page(tmp_path, measurement_record, run_records):
    (tmp_path / "report.html").write_text("old")
    write_run(tmp_path, run_records(measurement_record()))
    assert "not recorded" in write_report(tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        ("{not json", "not JSON"),
        ("[]", "not a villani record"),
        ('{"schema_version": 2, "future": true}', "schema version 2, but this villani reads 1"),
        ('{"schema_version": 1}', "not a villani record"),
    ],
)
def test_bad_records_are_refused_in_one_line(tmp_path, content, words):
    if content is not None:
        (tmp_path / "records.json").write_text(content)
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such run directory"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize("costs", [{"7": None}, {"0": {"seconds": 1}}, [1]])
def test_bad_costs_are_refused(tmp_path, measurement_record, run_records, cost, costs):
    if isinstance(costs, dict) and "7" in costs:
        costs = {"7": cost.model_dump()}
    write_run(tmp_path, run_records(measurement_record()), costs)
    with pytest.raises(InputError, match="cost") as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)


def test_report_imports_no_torch():
    program = "import sys, villani.commands.pages; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=120, check=False).returncode == 0


def test_records_fixture_is_consistent(measurement_record):
    psi = measurement_record().psi[0]
    assert psi.value == pytest.approx(math.fsum(e.value for e in figures.named_parts(psi.parts).values()))
