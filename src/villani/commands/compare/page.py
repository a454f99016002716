"""The page of a comparison: what changed in one sentence, the differences, and how they were taken."""

from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console

from villani.commands.compare import words
from villani.commands.compare.record import ComparedRun, ComparisonRecord, DifferenceRecord, PairRecord
from villani.commands.compare.words import headline as headline  # a page has one
from villani.report import elements
from villani.report.colours import sign_colour
from villani.report.elements import Row, details, facts, note, section
from villani.report.estimates import uncertain
from villani.report.figures import error_bars, rows
from villani.report.numbers import format_count, listed
from villani.report.origin import decay_words, text_words
from villani.report.page import Pictures
from villani.report.terminal import print_findings, table

_SIMILAR = "“Cannot be told apart” is no proof that nothing changed: the interval says how large a change may still be."


def findings(record: ComparisonRecord) -> dict[str, str]:
    """Title → paragraph."""
    if record.compared == "audit":
        return {"What a verdict is": "Refuted comes with a witness; not refuted only says that nothing was found."}
    if record.compared == "spectrum":
        groups = [pair.run for pair in record.spectra if not pair.same_groups]
        other = f" {listed(groups)}: other groups of text than the first run's." if groups else ""
        return {
            "How the differences were taken": "Rank by rank. An eigenvalue lies within each bound, so the difference "
            "lies in the interval if no eigenvalue was missed, which is not proved. The interval is about the matrices "
            f"of the groups that were measured, and has no data noise in it.{other}",
            "What else differs": _unlike([(pair.run, pair.unlike) for pair in record.spectra]),
        }
    level = 100 * (1 - (1 - record.confidence) / max(record.comparisons, 1))
    reasons: dict[str, list[str]] = {}
    for pair in record.pairs:
        reasons.setdefault(pair.reason, []).append(pair.run)
    method = " ".join(
        reason if len(reasons) == 1 else f"{listed(names)}: {reason}" for reason, names in reasons.items()
    )
    return {
        "How the differences were taken": f"Each run minus {record.runs[0].name}. {method}",
        "How far to trust them": f"The intervals of {format_count(record.comparisons, 'sampled difference')} hold at "
        f"once with {100 * record.confidence:g} % confidence: each alone is at {level:.4g} % (Bonferroni). {_SIMILAR}"
        if record.comparisons
        else "No difference here is a sampled one: each is exact up to rounding, which is what an interval is of.",
        "What else differs": _unlike([(pair.run, pair.unlike) for pair in record.pairs]),
        "The same weights": _same(record),
    }


def _unlike(runs: list[tuple[str, list[str]]]) -> str:
    said = [f"{listed([name])} differs from the first run in {'; '.join(phrases)}" for name, phrases in runs if phrases]
    if not said:
        return ""
    return f"{'. '.join(said)}. The differences are of all of that together, not of the weights alone."


def _same(record: ComparisonRecord) -> str:
    first = record.runs[0]
    same = [run.name for run in record.runs[1:] if run.parameter_checksum == first.parameter_checksum]
    if not same:
        return ""
    return (
        f"{listed([first.name, *same])} have the same weights: what they differ by is sampling and rounding, and "
        "λ and s where Ψ was asked at others."
    )


def pictures(record: ComparisonRecord) -> Pictures:
    """Name → title, figure, caption: the differences of each pair of runs on one scale."""
    reference = record.runs[0].name
    return {
        f"pair{i}": (f"From {reference} to {pair.run}", _differences(pair), _CAPTION)
        for i, pair in enumerate(record.pairs)
    }


_CAPTION = (
    "Each difference in units of half its own interval: a bar that does not reach 0 is a change that was told apart; "
    "grey bars reach 0. The values are in the table below."
)


def _differences(pair: PairRecord) -> go.Figure | None:
    """One mark a row; exact differences, which have no interval, are left to the table."""
    shown = [d for d in pair.differences if d.sem and d.change != "unchanged"]
    if not shown:
        return None
    units = [_units(d) for d in shown]
    axis = {"title": "difference ÷ half its interval", "zeroline": True, "zerolinewidth": 2, "nticks": 6}
    marker = {"size": 10, "color": [sign_colour(d) for d in shown]}
    labels = [f"{words.name(d)}: <b>{uncertain(d)}</b>" for d in shown]
    ones = [1.0] * len(shown)
    height = 110 + 44 * len(shown)
    return rows(units, labels, [uncertain(d) for d in shown], marker, height, axis, error_x=error_bars(ones, ones))


def _units(difference: DifferenceRecord) -> float:
    low, high = difference.interval
    return difference.value / ((high - low) / 2)


def tables(record: ComparisonRecord) -> str:
    """Sections of tables, as HTML."""
    made = "".join(section(title, elements.table(rows)) for title, rows in _tables(record).items())
    runs = "".join(details(run.name, facts(_run(run))) for run in record.runs)
    return made + section("The runs", runs + note(f"Compared by {record.command}."))


def _tables(record: ComparisonRecord) -> dict[str, list[Row]]:
    """Title → rows: of each run beside the first, or of all verdicts together."""
    reference = record.runs[0].name
    made = {f"{reference} and {p.run}": words.difference_rows(p, reference, record.confidence) for p in record.pairs}
    made |= {f"{reference} and {s.run}": words.eigenvalue_rows(s, reference) for s in record.spectra}
    return made | ({"The verdicts": words.audit_rows(record.audits)} if record.audits else {})


def _run(run: ComparedRun) -> dict[str, str]:
    return {
        "folder": run.run, "command": run.command,
        "model": f"{run.model.spec} ({run.model.architecture}, {run.model.dtype}); {run.model.description}",
        "decay": decay_words(run.objective), "λ of F": f"{run.objective.weight_decay:g}",
        "text": text_words(run.text), "tokens": run.text.token_checksum, "tokenizer": run.text.tokenizer,
        "design": f"{run.groups} groups × {run.sequences} sequences × {run.block} tokens, seed {run.seed}",
        "parameters": run.parameter_checksum, "records.json": run.records_checksum,
    }  # fmt: skip


def limits(record: ComparisonRecord) -> list[str]:
    """What the page does not prove."""
    made = [
        "A difference between two runs says what changed, not why: with one run a side, chance in training is in no "
        "interval.",
        "The runs are taken at their word: "
        + (
            "that a folder's figures were measured as it says is checked against its own ledger, not measured again."
            if record.compared == "measurement"
            else "nothing is measured again."
        ),
    ]
    if record.compared == "measurement":
        made.append(
            "Intervals are Student's, and approximate with few groups; simulated, they cover 93 % or more of the time "
            "where the groups' figures are about normal."
        )
        made.append("Nothing at infinity: no difference of Ψ at two points bears on condition (iv).")
    return made


def show(record: ComparisonRecord, _: Path, console: Console) -> None:
    """The answer, how it was found, and the differences."""
    print_findings(console, headline(record), findings(record))
    for title, body in _tables(record).items():
        console.print(table(body, title=title))
