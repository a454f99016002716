"""What a reader of the study sees: every claim with its verdict, none confirmed, and nothing that was not measured."""

import pytest

from tests.commands.synthetic import estimate, made, told
from villani.commands.paper.record import (
    ClaimRecord,
    EffectRecord,
    LandscapePoint,
    PaperRecord,
    TrainingPoint,
    TrendRecord,
)
from villani.commands.recommend.record import OptimizerRecord, RuleRecord
from villani.work.records import TextRecord


def study(**changes):
    empty = {name: [] for name in ("criteria", "landscape", "spectra", "learned", "convergence", "training",
                                   "certificates", "choices", "pathologies")}  # fmt: skip
    whole = empty | {"trends": {}, "estimators": None, "claims": [], "common_loss": {}, "certificate_sentence": ""}
    return told(made(PaperRecord, **whole | changes))


VERDICTS = ("refuted", "consistent", "not identifiable")


def test_every_claim_stands_with_its_verdict_and_evidence():
    claims = [
        made(ClaimRecord, claim=f"Claim {i}.", measured=f"Measured {i}.", verdict=verdict)
        for i, verdict in enumerate(VERDICTS)
    ]
    section = study(claims=claims, sentence="One refuted.")
    assert section.headline == "One refuted."
    rows = section.tables.split("<tr")
    for i, verdict in enumerate(VERDICTS):
        [row] = [r for r in rows if f"Claim {i}." in r]
        assert verdict in row
        assert f"Measured {i}." in row
    assert "No verdict is ever “confirmed”" in section.tables


def test_what_was_not_measured_has_no_table_and_no_picture():
    section = study()
    for heading in ("E1: Ψ over λ and s", "E2: spectra", "E3: what is promised", "E5: ways to tr"):
        assert heading not in section.tables
    for name in ("orbits", "rays", "spectra", "densities", "rates"):
        assert section.pictures[name] is None or section.pictures[name][1] is None


@pytest.mark.parametrize(("change", "resolved"), [(-0.5, True), (-0.01, False)])
def test_a_trend_is_told_beyond_its_error_only(change, resolved):
    first = made(TrendRecord, optimizer="sgd", weight_decay=0.0, value=estimate(1.0, 0.02, 5), change=None)
    moved = made(
        TrendRecord, optimizer="sgd", weight_decay=1.0, value=estimate(1.0 + change, 0.02, 5),
        change=estimate(change, 0.02, 5),
    )  # fmt: skip
    text = study(trends={"massive activations": [first, moved]}).findings["Pathologies"]
    assert ("changed beyond the error over seeds in 1 of 1" in text) == resolved
    assert ("show no change with λ beyond their error in 1 comparisons" in text) != resolved
    # t(4) at 0.975 is 2.776; rounded up
    assert (
        "The largest, with SGD with L2 at λ = 1, is -0.01 to 0.99, and would have had to be 0.056" in text
    ) != resolved


def test_losses_of_training_stand_by_optimiser_and_lambda():
    points = [
        made(TrainingPoint, optimizer="sgd", weight_decay=d, held_out=estimate(4.5 - d, 0.05, 3), steps=120.0)
        for d in (0.0, 0.25)
    ]
    tables = study(training=points, optimizers=["sgd"], common_loss={"sgd": 5.0}).tables
    assert "4.50 ± 0.05" in tables
    assert "4.25 ± 0.05" in tables
    assert "120" in tables


def test_orbits_through_models_are_told_with_their_bound():
    point = made(LandscapePoint, weight_decay=0.5, refuted_above=0.0123, level=0.95)
    assert "0.0123" in study(landscape=[point], temperatures=[0.5]).tables


def test_rules_are_marked_by_where_they_land():
    rules = [
        made(RuleRecord, name=name, judged_at=at, weight_decay=at, interval=None, margin=None)
        for name, at in (("first", 0.1), ("second", 1.0), ("third", None))
    ]
    section = study(choices=[made(OptimizerRecord, optimizer="sgd", rules=rules, kept=[0.0, 0.1])])
    words = section.findings["E6: the grid against rules"]
    assert "cannot be told from the best: 0, 0.1; 1 of the 2 rules that name a λ land there, 1 more name none" in words
    rows = section.tables.split("<tr")
    for name, mark in (("first", "✓"), ("second", "✗"), ("third", "–")):
        [row] = [r for r in rows if f"{name}<" in r]
        assert f">{mark}<" in row


def test_what_tuning_changed_stands_by_sense_and_lambda_and_leads_the_page():
    def row(optimizer, decay, change, **more):
        return made(
            EffectRecord, quantity="held-out loss", optimizer=optimizer, weight_decay=decay, memory=4.0,
            value=estimate(4.0, 0.25), change=change, **more,
        )  # fmt: skip

    effects = [
        row("adamw", 0.0, None, kept=True),
        row("adamw", 8.0, estimate(0.5, 0.0625), resolved=True, kept=False),
        row("adamw-start", 8.0, estimate(0.001, 0.01), resolved=False, detectable=0.0375, kept=True),
        made(EffectRecord, quantity="‖θ‖", optimizer="adamw", weight_decay=0.0, kept=None),
    ]
    words = "What decay changes."
    section = study(
        effects=effects, other_text=made(TextRecord, spec="other.txt"), tuning_sentence=words, sentence="Claims."
    )
    assert section.headline.startswith("Least held-out loss, as far as can be told at 95%: no decay, λ = 8 towards")
    assert section.findings["What decay changes"] == words
    assert section.findings["What decay does"] == ""  # of seeds alone: E7 has errors over text besides
    assert section.findings["The preprint's claims"] == "Claims."
    rows = section.tables.split("<tr")
    [seen] = [r for r in rows if "✓<" in r]
    assert "AdamW<" in seen
    assert ">no<" in seen
    [unseen] = [r for r in rows if "AdamW towards its start" in r]
    assert "needs 0.038" in unseen
    assert "may be" in unseen
    assert "other.txt" in section.tables
    assert section.pictures["tuned"][1] is not None
    assert section.pictures["forgotten"][1] is None
    assert "E7" not in study().tables
    assert study(sentence="Claims.").headline == "Claims."
