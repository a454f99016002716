"""Sentences and rows of comparisons whose figures are given."""

from types import SimpleNamespace

import pytest

from villani.commands.compare import words
from villani.commands.compare.record import (
    AuditedRun,
    ComparisonRecord,
    DifferenceRecord,
    EigenvalueDifference,
    PairRecord,
    SpectrumPair,
)

ONE = {"value": 3.0, "sem": 0.25, "n": 4, "interval": (2.0, 4.0), "status": "statistical"}


def difference(quantity, change, value=0.0, sem=0.0, interval=(0.0, 0.0), **pair):
    return DifferenceRecord(
        quantity=quantity, change=change, value=value, sem=sem, interval=interval, n=4, status="statistical",
        degrees_of_freedom=3.0, reference=ONE, other=ONE, **pair,
    )  # fmt: skip


def pair(*differences, run="after"):
    return PairRecord(run=run, method="paired", reason="", unlike=[], differences=[*differences])


def eigenvalue(rank, change, difference=0.0, bounds=(0.0, 0.0)):
    return EigenvalueDifference(
        rank=rank, reference=1.0, reference_bound=bounds[0], other=1.0 + difference, other_bound=bounds[1],
        difference=difference, interval=(difference - sum(bounds), difference + sum(bounds)), change=change,
    )  # fmt: skip


def audit(run, refuted_above=None, **verdicts):
    fields = dict.fromkeys(("smoothness", "growth", "tails", "differential_growth"), "not refuted") | verdicts
    return AuditedRun(
        run=run, weight_decay=0.1, temperature=1e-3, villani=None, refuted_above=refuted_above, **fields
    )  # fmt: skip


def headline(compared, **parts):
    whole = {"pairs": [], "spectra": [], "audits": []} | parts
    return words.headline(
        ComparisonRecord.model_construct(compared=compared, runs=[SimpleNamespace(name="before")], **whole)
    )


FALLS = difference("loss", "falls", -0.5, 0.02, (-0.56, -0.44))
RISES = difference("hessian_trace", "rises", 3.0)
SAME = difference("gradient_norm_squared", "unchanged")
OPEN = difference("psi", "undecided", 1.0, 5.0, (-9.0, 11.0), weight_decay=(0.1, 0.1), temperature=(1e-3, 1e-3))


def test_a_headline_gives_the_size_of_a_change():
    """The interval of what falls is that of the size; what is not sampled has none."""
    said = headline("measurement", pairs=[pair(FALLS)])
    assert said == "Between before and after the loss falls by 0.50 ± 0.02, [0.440, 0.560]."
    assert headline("measurement", pairs=[pair(RISES)]) == "Between before and after tr ∇²L rises by 3."


def test_a_headline_says_what_moved_then_what_is_open_then_what_is_the_same():
    """In an order of its own, without quantities that are told in the table alone."""
    other = difference("decayed_norm_squared", "rises", 1.0)
    assert headline("measurement", pairs=[pair(other, OPEN, SAME, FALLS, RISES)]) == (
        "Between before and after tr ∇²L rises by 3; the loss falls by 0.50 ± 0.02, [0.440, 0.560]; "
        "Ψ (λ = 0.1, s = 0.001) cannot be told apart; the same weights give the same figures: ‖∇L‖²."
    )


@pytest.mark.parametrize(("runs", "end"), [(3, ""), (4, "1 more run stands below."), (5, "2 more runs stand below.")])
def test_a_headline_tells_of_three_runs(runs, end):
    said = headline("measurement", pairs=[pair(RISES, run=f"r{i}") for i in range(runs)])
    assert said.count("Between before and ") == 3
    assert said.removesuffix(end) == " ".join(
        f"Between before and r{i} tr ∇²L rises by 3." for i in range(3)
    ) + " " * bool(end)  # fmt: skip


def test_psi_has_its_place_in_its_name():
    moved = difference("psi", "undecided", weight_decay=(0.1, 0.01), temperature=(1e-3, 1e-3))
    assert words.name(moved) == "Ψ (λ = 0.1 → 0.01, s = 0.001)"
    assert words.name(FALLS) == "the loss"


def test_eigenvalues_at_the_ends_are_told():
    spectrum = SpectrumPair(
        run="after", same_groups=True, unlike=[],
        eigenvalues=[
            eigenvalue(1, "rises", 2.0, (0.25, 0.25)), eigenvalue(2, "falls", -1.0), eigenvalue(-1, "undecided"),
        ],
    )  # fmt: skip
    assert headline("spectrum", spectra=[spectrum]) == (
        "Between before and after the largest eigenvalue rises by 2.0 ± 0.5; the smallest eigenvalue cannot be told "
        "apart within the bounds, if no eigenvalue was missed."
    )
    inner = spectrum.model_copy(update={"eigenvalues": [eigenvalue(-3, "falls", -2.0)]})
    assert "after eigenvalue −3 falls by 2, if no" in headline("spectrum", spectra=[inner])


def test_verdicts_that_differ_are_told_and_where_iv_fails():
    runs = [audit("a", 0.25), audit("b", 0.12345, tails="refuted"), audit("c")]
    assert headline("audit", audits=runs) == (
        "Of 3 audits the verdicts differ in (iii): not refuted for a, refuted for b. (iv) fails for a for every s > "
        "0.25 and for b for every s > 0.124; for c no s was shown from which (iv) fails."
    )
    assert headline("audit", audits=[audit("a"), audit("b")]) == (
        "Of 2 audits all verdicts are the same. For a and b no s was shown from which (iv) fails."
    )


def test_rows_of_a_table():
    assert words.difference_rows(pair(FALLS), "before", 0.95) == [{
        "statistic": "the loss", "in before": "3.0 ± 0.2", "in after": "3.0 ± 0.2",
        "difference ± standard error": "-0.50 ± 0.02".replace("-", "−"),
        "all hold at once, 95 %": "[−0.560, −0.440]", "change": "falls",
    }]  # fmt: skip
    spectrum = SpectrumPair(run="after", same_groups=True, unlike=[], eigenvalues=[eigenvalue(-2, "rises", 1 / 3)])
    (row,) = words.eigenvalue_rows(spectrum, "before")
    assert (row["rank"], row["in before"], row["change"]) == ("−2", "1", "rises")
    assert row["difference lies in"] == "[0.3333, 0.3334]", "rounded outwards"
    rows = words.audit_rows([audit("a", 0.12345), audit("b", growth="refuted")])
    cells = {row["criterion"]: (row["in a"], row["in b"]) for row in rows}
    assert cells["(ii) F grows at least quadratically"] == ("not refuted", "refuted")
    assert cells["(iv) fails for every s above"] == ("0.124", "—")
    assert cells["λ"] == ("0.1", "0.1")


def test_a_folder_may_have_the_name_of_a_column():
    (row,) = words.difference_rows(pair(FALLS, run="statistic"), "change", 0.95)
    assert len(row) == 6
    assert row["change"] == "falls"
