"""What a reader of an audit sees: verdicts by criterion, thresholds with their kind, and what is not proved."""

import itertools

import pytest

from tests.commands.synthetic import estimate, made, told
from villani.commands.audit.page import exit_code
from villani.commands.audit.record import (
    AuditRecord,
    DifferentialRecord,
    NormalisationRecord,
    ObjectiveRecord,
    OrbitRecord,
    OutcomeRecord,
    RayRecord,
    ReplayRecord,
    SkippedRecord,
    SmoothnessRecord,
    StepRecord,
    ThresholdRecord,
)

CRITERIA = ("smoothness", "growth", "tails", "differential_growth")
SIGNS = ("(i)", "(ii)", "(iii)", "(iv)")


def audit(**changes):
    verdicts = {name: OutcomeRecord(verdict="not refuted", reason=f"because of {name}") for name in CRITERIA}
    objective = made(ObjectiveRecord, weight_decay=0.25)
    return made(AuditRecord, **verdicts | {"objective": objective, "villani": None} | changes)


@pytest.mark.parametrize("refuted", [c for n in range(5) for c in itertools.combinations(range(4), n)], ids=str)
def test_the_headline_names_what_is_refuted_and_nothing_else(refuted):
    outcomes = {CRITERIA[i]: OutcomeRecord(verdict="refuted", reason="seen.") for i in refuted}
    section = told(audit(**outcomes, villani=False if refuted else None))
    if not refuted:
        assert section.headline.startswith("It is undecided whether F is a Villani function at λ = 0.25: ")
        assert section.headline.endswith("(i), (ii), (iii) and (iv) are neither proved nor refuted.")
        return
    assert section.headline.startswith("F is not a Villani function at λ = 0.25")
    named = section.headline.partition(": ")[2]
    assert [sign for sign in SIGNS if sign in named.replace(",", " ").split()] == [SIGNS[i] for i in refuted]
    assert ("are refuted" in named) == (len(refuted) > 1)


def test_all_four_hold_only_where_the_record_says_so():
    held = {name: OutcomeRecord(verdict="holds", reason="proved") for name in CRITERIA}
    assert "all four criteria hold" in told(audit(**held, villani=True)).headline


def test_every_verdict_stands_with_its_reason():
    section = told(audit())
    for name, sign in zip(CRITERIA, SIGNS, strict=True):
        [(title, text)] = [(k, v) for k, v in section.findings.items() if k.startswith(f"{sign} ")]
        assert title.endswith(": not refuted")
        assert text.startswith(f"Because of {name}.")
    assert section.findings[title].endswith("Finding nothing proves nothing.")


def test_what_holds_is_told_where_nothing_is_refuted():
    held = OutcomeRecord(verdict="holds", reason="proved")
    assert told(audit(smoothness=held, growth=held, tails=held)).headline.endswith(
        ": (i), (ii) and (iii) hold, and (iv) is neither proved nor refuted."
    )


def failing(temperature, above, *others):
    """(iv) is refuted for every s > `above`, on an orbit with s* = 0.5 and the same bound."""
    refuted = OutcomeRecord(verdict="refuted", reason="seen")
    orbits = [orbit(True, upper=None), orbit(True, upper=above, value=0.5, norm_squared=0.0)]
    evidence = made(DifferentialRecord, refuted_above=above, orbits=orbits, rays=[])
    more = dict.fromkeys((*others, "differential_growth"), refuted)
    return told(audit(**more, villani=False, temperature=temperature, differential_evidence=evidence))


def test_the_headline_has_the_condition_of_the_refutation_and_the_user_s_own_s():
    assert failing(0.001, 0.75).headline.endswith(
        "(iv) fails for every s > 0.75; at your s = 0.001 nothing is refuted."
    )
    assert failing(2.0, 0.75).headline.endswith("(iv) fails for every s > 0.75, your s = 2 among them.")
    both = failing(0.001, 0.75, "growth", "tails").headline
    assert both.endswith(
        ": (ii) and (iii) are refuted, and (iv) fails for every s > 0.75; at your s = 0.001 (iv) is not refuted."
    )


def test_the_picture_shows_where_it_fails_beside_the_user_s_walk():
    pictures = failing(0.001, 0.75).pictures
    title, figure, caption = pictures["side-fails"]
    assert [*pictures][:2] == ["side-fails", "side-orbit"]
    assert title.startswith("At s = 2:")
    yours, fails = figure.data
    # ‖∇_B L‖² = 1 and Δ_B L = 2: what is left of Ψ is (1/2 − 2)·R^(2k) at s = 2, and 998·R^(2k) at s = 0.001.
    assert all(later < earlier < 0 for earlier, later in zip(fails.y, fails.y[1:], strict=False))
    assert all(later > earlier > 0 for earlier, later in zip(yours.y, yours.y[1:], strict=False))
    # With the bound 3/4 of s* in place of 1/2: 2·(0.375 − 1), still below 0, and 2·(750 − 1).
    assert fails.text[0].endswith(": −1.5, at most −1.25")
    assert yours.text[0].endswith(": 998, at most 1498")
    assert all(y + bar < 0 for y, bar in zip(fails.y, fails.error_y.array, strict=True))
    assert "s* = 0.5" in caption
    assert "side-fails" not in failing(2.0, 0.75).pictures or failing(2.0, 0.75).pictures["side-fails"] is None


def test_orbits_without_a_bound_look_like_no_evidence():
    section = failing(0.001, 0.75)
    assert '<span class="muted">none: no bound</span>' in section.tables
    marks = section.pictures["thresholds"][1].data[0].marker
    assert [*marks.symbol] == ["circle-open", "circle"]
    assert marks.color[0] != marks.color[1]


def test_not_refuted_has_no_red_badge():
    assert '<span class="badge not-refuted"' in told(audit()).tables
    assert '"badge not refuted"' not in told(audit()).tables


def test_normalisations_are_told_with_what_their_least_eps_allows():
    norms = [made(NormalisationRecord, eps=eps) for eps in (1e-4, 1e-6)]
    smooth = OutcomeRecord(verdict="holds", reason="all are smooth")
    evidence = made(SmoothnessRecord, operations=37, findings=[], normalisations=norms)
    section = told(audit(smoothness=smooth, smoothness_evidence=evidence))
    [text] = [v for k, v in section.findings.items() if k.startswith("(i) ")]
    assert "37 operations were examined" in text
    assert "2 normalisations" in text
    assert "ε = 1·10⁻⁶, Jacobians reach 1000 and second derivatives 1000000" in text


def orbit(confirmed=False, **threshold):
    fields = {"value": 0.5, "upper": 0.75, "level": 0.95, "norm_squared": 0.1, "laplacian": estimate(2.0),
              "gradient_norm_squared": estimate(1.0)}  # fmt: skip
    walk = [made(StepRecord, scale=s, predicted=estimate(-s), measured=estimate(-s)) for s in (1.0, 2.0, 4.0)]
    own = ThresholdRecord(**fields | threshold)
    return made(OrbitRecord, name="q ↑ k ↓", theorem="C", walk=walk, threshold=own, confirmed=confirmed)


@pytest.mark.parametrize(
    ("threshold", "words"),
    [({}, "0.5 (&lt; 0.75)"), ({"level": 1.0}, "0.5 (up to rounding)"), ({"upper": None}, "0.5 (no bound)"),
     ({"value": None, "upper": None}, "none seen (no bound)")],
)  # fmt: skip
def test_a_threshold_stands_with_the_kind_of_its_bound(threshold, words):
    section = told(audit(differential_evidence=made(DifferentialRecord, orbits=[orbit(**threshold)], rays=[])))
    assert words in section.tables
    assert "q ↑ k ↓" in section.tables
    assert any("orbit" in name for name in section.pictures)


def test_rays_never_decide():
    ray = made(RayRecord, direction="random 0")
    evidence = made(DifferentialRecord, orbits=[], rays=[ray])
    assert "Rays cannot decide (iv)" in told(audit(differential_evidence=evidence)).findings["Why rays look fine"]


def test_what_was_skipped_is_listed_with_what_it_hides():
    skipped = [made(SkippedRecord, operation="aten.hypot.default", tensors=[f"t{i}" for i in range(9)], count=2)]
    section = told(audit(differential_evidence=made(DifferentialRecord, orbits=[], rays=[], skipped=skipped)))
    assert "aten.hypot.default" in section.tables
    assert "t0" in section.tables
    assert "more" in section.tables


@pytest.mark.parametrize("reproduced", [True, False])
def test_a_replay_says_whether_it_refutes_again_and_exits_so(reproduced):
    record = made(ReplayRecord, reproduced=reproduced, sentences=["One.", "Two."])
    section = told(record)
    assert ("not refute again" in section.headline) != reproduced
    assert [*section.findings.values()] == ["One.", "Two."]
    assert exit_code(record) == (0 if reproduced else 1)
    assert exit_code(audit()) == 0
