"""E7's tables: one for each quantity, what was seen and what would have been, and which λ may be the best."""

from types import SimpleNamespace

from villani.commands.paper.effect_tables import effect_tables
from villani.commands.paper.record import EffectRecord
from villani.work.records import EstimateRecord


def estimate(value, width):
    return EstimateRecord(
        value=value, sem=width / 2, n=6, interval=(value - width, value + width), status="statistical"
    )


def effect(quantity="held-out loss", decay=0.0, change=None, **more):
    memory = 0.5 / decay if decay else None
    fields = {
        "quantity": quantity, "optimizer": "adamw-start", "weight_decay": decay, "memory": memory,
        "seeds": 3, "units": 40, "value": estimate(3.2, 0.1), "change": change, "resolved": False, "detectable": None,
        "kept": True,
    }  # fmt: skip
    return EffectRecord(**fields | more)


def page(*effects):
    other = SimpleNamespace(spec="other.txt", words="in blocks of 32")
    return effect_tables(SimpleNamespace(effects=list(effects), other_text=other))


def test_nothing_is_said_of_a_part_that_was_not_done():
    assert effect_tables(SimpleNamespace(effects=[], other_text=None)) == ""


def test_each_quantity_has_a_table_and_only_what_can_be_best_is_judged():
    words = page(
        effect(),
        effect(decay=2.0, change=estimate(0.8, 0.1), resolved=True, kept=False),
        effect("‖θ − θ₀‖", kept=None),
    )
    assert words.count("<table") == 2
    first, second = words.split("<table")[1:]
    assert first.count("may be") == 1
    assert "<th>best" in first.replace('<th scope="col">', "<th>")
    assert "best" not in second
    assert "AdamW towards its start" in first
    assert "other.txt" in words
    assert [part.split("<")[0] for part in words.split("Quantity: ")[1:]] == ["held-out loss", "‖θ − θ₀‖"]


def test_a_change_within_its_error_says_what_would_have_been_seen_rounded_up():
    words = page(effect(), effect(decay=2.0, change=estimate(0.01, 0.1), detectable=0.12301))
    assert "needs 0.13" in words
    assert "✓" not in words.split("<table")[1]
