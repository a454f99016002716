"""What a reader of a recommendation sees: λ by optimiser, which it belongs to, what diverged, where rules land."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from tests.commands.synthetic import estimate, made, told
from villani.commands.recommend import page
from villani.commands.recommend.record import (
    ConventionRecord,
    GridPoint,
    MarginRecord,
    OptimizerRecord,
    RecommendationRecord,
    RuleRecord,
)


def optimizer(name, recommended, **changes):
    grid = [
        made(
            GridPoint, weight_decay=decay, diverged=0, held_out=estimate(4.0 + decay, 0.01), kept=decay < 1,
            margin=MarginRecord(value=decay, low=decay / 2, high=2 * decay), curve=[(0, 8.0), (10, 4.0 + decay)],
        )
        for decay in (0.0, 0.1, 1.0)
    ]  # fmt: skip
    fields = {"points": grid, "rules": [], "refusals": [], "kept": [], "sentence": f"{name} says so."}
    return made(OptimizerRecord, optimizer=name, recommended=recommended, **fields | changes)


def recommendation(*optimizers, **changes):
    return told(made(RecommendationRecord, optimizers=list(optimizers), **changes))


def test_the_headline_has_a_lambda_for_each_optimiser():
    section = recommendation(optimizer("adamw", 0.1), optimizer("sgd", 0.0001))
    assert section.headline == "Least held-out loss of the grid: AdamW: λ = 0.1; SGD with L2: λ = 0.0001."
    assert section.findings["AdamW"] == "adamw says so."
    assert set(section.pictures) == {f"{kind}-{name}" for kind in ("decay", "steps") for name in ("adamw", "sgd")}


def test_the_headline_names_no_winner_that_its_grid_denies():
    sure = optimizer("adamw", 0.1, kept=[0.1])
    half = optimizer("sgd", 0.1, kept=[0.0, 0.1])
    none = optimizer("noisy-sgd", 0.1, kept=[0.0, 0.1, 1.0], undecided=True)
    assert recommendation(sure).headline == "Least held-out loss of the grid: AdamW: λ = 0.1."
    assert recommendation(half).headline == "Least held-out loss of the grid: SGD with L2: λ = 0.1 (not told from 0)."
    assert recommendation(none).headline == "Undecided: no λ of the grid can be told from another."
    assert recommendation(sure, none).headline == (
        "Least held-out loss of the grid: AdamW: λ = 0.1; noisy SGD with L2: undecided."
    )


def test_the_headline_says_where_stopping_earlier_does_more_than_any_lambda():
    early = optimizer("adamw", 0.1, stopping="It is better to stop earlier: the least …")
    unseen = optimizer("adamw", 0.1, stopping="Every block is seen 43 times, …")
    plain = "Least held-out loss of the grid: AdamW: λ = 0.1."
    assert recommendation(early).headline == f"{plain} It is better to stop earlier (AdamW)."
    assert recommendation(unseen).headline == plain


def test_the_first_line_says_what_decides():
    slow = optimizer("adamw", 0.1, undecided=True, action="at η = 1e-05 decay cannot act: …")
    assert recommendation(slow).headline.endswith("from another. AdamW: at η = 1e-05 decay cannot act: ….")
    console = Console(record=True, width=200, file=io.StringIO())
    page.show(made(RecommendationRecord, optimizers=[slow]), Path("r"), console)
    first = console.export_text().splitlines()[0]
    assert first.startswith("Undecided")
    assert "cannot act" in first


def test_where_all_diverged_there_is_no_lambda():
    left = [made(GridPoint, weight_decay=0.1, diverged=2, kept=False, curve=[])]
    only = recommendation(optimizer("sgd", None, points=left))
    assert only.headline == "Training diverged at every λ: lower the learning rate."
    both = recommendation(optimizer("sgd", None, points=left), optimizer("adamw", 0.5))
    assert both.headline == "Least held-out loss of the grid: AdamW: λ = 0.5."


def test_seeds_that_share_a_start_are_said_to():
    for shared, words in ((True, "from one start, of which alone they speak"), (False, "of own starts")):
        assert words in recommendation(optimizer("sgd", 0.1), shared_start=shared).tables


@pytest.mark.parametrize("refused", [None, "needs training from scratch"])
def test_a_rule_stands_with_its_lambda_or_with_its_refusal(refused):
    rule = made(
        RuleRecord, name="EMA timescale", weight_decay=None if refused else 0.2, would_be=0.3 if refused else None,
        refused=refused, flags=[], judged_at=None if refused else 0.1,
        margin=None if refused else MarginRecord(value=0.05, low=0.01, high=0.09), share=None if refused else 0.25,
    )  # fmt: skip
    tables = recommendation(optimizer("sgd", 0.1, rules=[rule])).tables
    assert "EMA timescale" in tables
    assert (refused or "0.2") in tables
    assert ("25" in tables) or refused


def test_conventions_and_refused_certificates_are_told():
    own = [ConventionRecord(name="AdamW as published", weight_decay=None, note="no conversion")]
    section = recommendation(optimizer("noisy-sgd", 0.1, conventions=own, refusals=["λ = 1: the clip was passed"]))
    assert "AdamW as published" in section.tables
    assert section.findings["Certificates that were not given"] == "λ = 1: the clip was passed."
