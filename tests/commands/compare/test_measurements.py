"""Differences of measurements whose groups are given, by hand; and a record held against its ledger."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import t as student

from tests.commands.compare.records import record
from villani.commands.compare.measurements import STATISTICS, MeasuredRun, compare_measurements, measured_run, relation
from villani.commands.content import read_records
from villani.commands.measure.settings import MeasureSettings
from villani.commands.running import execute
from villani.errors import InputError
from villani.measurement.differences import Point
from villani.statistics import GroupSums, sampled_statistics

GROUPS, TOKENS, PSI = 6, 10.0, (0.1, 0.5)
NORMS = {"before": 4.0, "after": 6.0}


def groups(seed):
    """(G,) losses and traces, (G, 3) gradients and (G,) ⟨g, mθ⟩, per token."""
    draw = np.random.default_rng(seed)
    return (
        draw.normal(2, 1, GROUPS),
        draw.normal(5, 1, GROUPS),
        draw.normal(3, 1, (GROUPS, 3)),
        draw.normal(size=GROUPS),
    )


def measured(name, seed, known=True, mask=True, **changes):
    """A run of those groups; `known`: one by one; without `mask` of other ⟨g, mθ⟩, since θ does not decay."""
    losses, traces, gradients, dots = (TOKENS * x for x in groups(seed))
    dots = dots if mask else 0 * dots
    sums = GroupSums(np.full(GROUPS, TOKENS), losses, gradients, dots, traces[:, None])
    own = record(**{"provenance": {"parameter_checksum": name}, **changes})
    own.plan, own.decayed_norm_squared = None, NORMS.get(name, 4.0)
    own.tensors = [SimpleNamespace(decayed=mask)]
    own.psi = [SimpleNamespace(weight_decay=PSI[0], temperature=PSI[1])]
    point = Point.of(sampled_statistics(sums), sums if known else None)
    return MeasuredRun(name, own, point, "" if known else "no ledger")


def compared(*runs):
    pairs, count = compare_measurements(runs)
    return [{d.quantity: d for d in pair.differences} for pair in pairs], pairs, count


def test_paired_differences_are_those_of_groups():
    (own,), (pair,), count = compared(measured("before", 1), measured("after", 2))
    assert (pair.run, pair.method, pair.unlike) == ("after", "paired", [])
    assert "measured the same 6 groups of text" in pair.reason
    assert [*own] == [*STATISTICS, "decayed_norm_squared", "psi"]
    (losses, traces, gradients, dots), (later, bent, moved, turned) = groups(1), groups(2)
    gaps = {"loss": later - losses, "hessian_trace": bent - traces, "gradient_dot_parameters": turned - dots}
    for quantity, gap in gaps.items():
        assert own[quantity].value == pytest.approx(gap.mean())
        assert own[quantity].sem == pytest.approx(gap.std(ddof=1) / GROUPS**0.5)
        assert (own[quantity].n, own[quantity].degrees_of_freedom) == (GROUPS, GROUPS - 1)
    norms = [(g @ g.T)[~np.eye(GROUPS, dtype=bool)].mean() for g in (gradients, moved)]
    assert own["gradient_norm_squared"].value == pytest.approx(norms[1] - norms[0])
    assert own["decayed_norm_squared"].interval == (2.0, 2.0)
    assert own["decayed_norm_squared"].change == "rises"
    decay, temperature = PSI
    psi = [
        norm / temperature + 2 * decay * dot.mean() / temperature - trace.mean() + decay**2 * theta / temperature
        for norm, dot, trace, theta in zip(norms, (dots, turned), (traces, bent), NORMS.values(), strict=True)
    ]
    assert own["psi"].value == pytest.approx(psi[1] - psi[0])
    assert own["psi"].reference.value == pytest.approx(psi[0] - decay * 3), "of three decayed parameters"
    assert count == 5


def test_variances_of_other_seeds_add_and_standard_errors_of_what_may_be_shared():
    losses, later = groups(1)[0], groups(2)[0]
    errors = [x.std(ddof=1) / GROUPS**0.5 for x in (losses, later)]
    before = measured("before", 1)
    (own,), (pair,), _ = compared(before, measured("after", 2, design={"seed": 1}))
    assert pair.method == "independent"
    assert own["loss"].sem == pytest.approx(np.hypot(*errors))
    v, w = np.square(errors)
    assert own["loss"].degrees_of_freedom == pytest.approx((v + w) ** 2 / ((v**2 + w**2) / (GROUPS - 1)))
    (own,), (pair,), _ = compared(before, measured("after", 2, known=False))
    assert (pair.method, "not known one by one (no ledger)" in pair.reason) == ("dependent", True)
    assert own["loss"].sem == pytest.approx(sum(errors))
    assert own["loss"].degrees_of_freedom == GROUPS - 1


@pytest.mark.parametrize(
    "changes",
    [{"text": {"token_checksum": "y"}}, {"design": {"block": 32}}, {"design": {"sequences": 2}},
     {"objective": {"finite": True}}],
)  # fmt: skip
def test_only_the_same_groups_are_paired(changes):
    method, reason = relation(measured("before", 1), measured("after", 2, **changes))
    assert method == "dependent"
    assert "the groups are not the same" in reason


def test_intervals_hold_together():
    """Ten sampled differences: each at 1 − 0.05/10."""
    owns, _, count = compared(measured("before", 1), measured("after", 2), measured("later", 3, design={"seed": 1}))
    sampled = [d for own in owns for d in own.values() if d.sem]
    assert count == len(sampled) == 10
    for d in sampled:
        half = student.ppf(1 - 0.05 / 20, d.degrees_of_freedom) * d.sem
        assert d.interval == pytest.approx((d.value - half, d.value + half))
        told = 0 if abs(d.value) <= half else np.sign(d.value)
        assert d.change == {0: "undecided", 1: "rises", -1: "falls"}[told]


def test_the_same_weights_change_nothing_but_what_the_mask_and_the_decay_change():
    same = {"provenance": {"parameter_checksum": "θ"}}
    (own,), _, count = compared(measured("before", 1, **same), measured("after", 1, **same))
    assert {d.change for q, d in own.items() if q != "decayed_norm_squared"} == {"unchanged"}
    assert count == 0
    (own,), _, _ = compared(measured("before", 1, **same), measured("after", 1, mask=False, **same))
    assert {q for q, d in own.items() if d.change == "unchanged"} == {"loss", "gradient_norm_squared", "hessian_trace"}


def test_designs_that_differ_are_told():
    other = measured("after", 2, design={"trace": "hutchinson", "probes": 4})
    (pair,), _ = compare_measurements([measured("before", 1), other])
    assert pair.unlike == ["way to the trace: taylor and hutchinson", "probes in a group: 1 and 4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare") / "run"
    model = "builtin:tiny?layers=1&width=8&context=32"
    execute(MeasureSettings.given(model=model, tokenizer="builtin", groups=3, sequences=1, block=16), folder)
    return folder, read_records(folder / "records.json").records[0]


def test_a_record_and_its_ledger_are_read_together(run, tmp_path):
    folder, own = run
    whole = measured_run(folder, "run", own)
    assert whole.missing == ""
    assert len(whole.point.tokens) == 3
    assert whole.estimate(np.eye(4)[3]).value == pytest.approx(own.hessian_trace.value)
    shutil.copy(folder / "records.json", tmp_path)
    alone = measured_run(tmp_path, "run", own)
    assert alone.missing
    assert len(alone.point.tokens) == 0
    assert alone.estimate(np.eye(4)[0]).sem == pytest.approx(own.loss.sem)


def test_a_record_that_its_ledger_contradicts_is_refused(run):
    folder, own = run
    moved = own.loss.model_copy(update={"value": own.loss.value + 0.01})
    half = [[0.5 * x for x in row] for row in own.covariance]
    lopsided = [[x + (i > j) for j, x in enumerate(row)] for i, row in enumerate(own.covariance)]
    for changes, match in (
        ({"loss": moved}, "records.json says loss = .* one of them was changed"),
        ({"covariance": half}, "other standard errors"),
        ({"covariance": lopsided}, "its covariance is none"),
        ({"covariance": (-np.eye(4)).tolist()}, "its covariance is none"),
        ({"degrees_of_freedom": 0.0}, "measured on one group"),
    ):
        with pytest.raises(InputError, match=match) as caught:
            measured_run(folder, "run", own.model_copy(update=changes))
        assert "\n" not in str(caught.value)
