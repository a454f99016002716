"""The page of `villani study paper`: what follows, in words and tables; `figures.py` has the pictures."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from villani.commands.converge.record import RateRecord
from villani.commands.paper.effect_tables import effect_tables
from villani.commands.paper.figures import pictures as pictures  # a page has them
from villani.commands.paper.record import ClaimRecord, PaperRecord, TrendRecord
from villani.commands.paper.sentences import least_sentence, schedule_sentence
from villani.commands.recommend.page import rule_notes, rule_rows
from villani.commands.recommend.record import NAMES, OptimizerRecord, RuleRecord
from villani.outwards import UNAVAILABLE, upper
from villani.report import elements
from villani.report.elements import Row, Status, facts, note, sections
from villani.report.estimates import Columns, interval, rows_of, uncertain
from villani.report.numbers import format_number, format_plain, format_uncertain
from villani.report.terminal import say, table
from villani.statistics import resolvable, resolved_sign
from villani.work.records import EstimateRecord
from villani.work.work import PAGE

_LIMITS = (
    "The claims are those of the abstract. The proofs were not available to us: if the theorems carry further "
    "hypotheses, such as bounded weights or small s, a verdict is about the statement without them.",
    "“Consistent” confirms nothing. Finitely many points cannot show what happens as θ → ∞, and a run cannot show that "
    "nothing moves more slowly than what it saw.",
    "Seeds of a study that starts from a checkpoint share that start, and speak of that start only.",
    "Intervals over training seeds are t-intervals of few seeds, one at a time. Many are shown: some exclude 0 by "
    "chance.",
    "λ is torch's weight_decay. For SGD it is the λ of F; AdamW's belongs to no F, so that E1 to E3 leave it out.",
    "E1 and E2 are about the models that this study trained, at their size and for their number of steps.",
)


def headline(record: PaperRecord) -> str:
    """Where the loss is least in tuning, where that was asked, or how many claims came out how."""
    return least_sentence(record.effects) if record.tuning_sentence else record.sentence


def show(record: PaperRecord, _: Path, console: Console) -> None:
    """The claims with their verdicts, and what was found about λ."""
    say(console, headline(record), "bold")
    tuned = [record.tuning_sentence, record.sentence] if record.tuning_sentence else []
    for words in (*tuned, _choice_words(record), _decay_words(record), record.grid_note):
        if words:
            say(console, words)
    if record.cut:
        say(console, f"What was cut: {'; '.join(record.cut)}.")
    if record.choices:
        console.print(table(_choice_rows(record), without=["notes", "steps", "gap"]))
    console.print(table(rows_of(record.claims, _CLAIMS), without=["from"]))


def findings(record: PaperRecord) -> dict[str, str]:
    """Title → paragraph."""
    moved = [_moved(name, trend) for name, trend in record.trends.items()]
    return {
        "What decay changes": record.tuning_sentence,
        "The preprint's claims": record.sentence if record.tuning_sentence else "",
        "E6: the grid against rules": _choice_words(record),
        "E6: schedules": schedule_sentence(record.schedules),
        "What decay does": _decay_words(record),
        "Pathologies": " ".join(words for words in moved if words),
        "E4: the best certificate": record.certificate_sentence,
        "What was cut": "; ".join(record.cut) + "." if record.cut else "",
        "A grid chosen later": record.grid_note,
    }


def _decay_words(record: PaperRecord) -> str:
    """Of E4; where E7 tells what decay changes, with errors over text besides, that stands for it."""
    return "" if record.tuning_sentence else record.decay_sentence


def tables(record: PaperRecord) -> str:
    """Sections of tables, as HTML; the claims come last."""
    claims = rows_of(record.claims, {**_CLAIMS, "verdict": _verdict})
    promises = [
        {"λ": format_number(p.weight_decay), **row}
        for p in record.convergence
        for row in rows_of(p.promises, _PROMISES)
    ]
    certified = [p for p in record.certificates if p.path]
    return sections(
        {
            "E7: what decay changed": effect_tables(record),
            "E4 and E6: training": _noted(_TRAINING_NOTE, rows_of(record.training, _TRAINING)),
            "E6: where rules land": _noted(_CHOICE_NOTE, _choice_rows(record)),
            "E6: schedules of weight decay": _noted(_SCHEDULES_NOTE, rows_of(record.schedules, _SCHEDULES)),
            "E1: Ψ over λ and s": _noted(_LANDSCAPE_NOTE, _landscape_rows(record)),
            "E2: spectra": _spectra(record),
            "E3: what is promised": "".join(note(p.sentence) for p in record.convergence) + elements.table(promises),
            "E4: certificates": elements.table(rows_of(certified, _CERTIFICATES)),
            "E5: ways to tr ∇²L": _estimators(record),
            "Pathologies": _pathologies(record),
            "What went in": facts(_about(record)),
            "The preprint, claim by claim": _noted(_CLAIMS_NOTE, claims),
        }
    )


def limits(_: PaperRecord) -> Iterable[str]:
    """What does not follow."""
    return _LIMITS


_CLAIMS_NOTE = (
    "Claims of the abstract of arXiv 2605.06599, in our words. Its proofs were not available. No verdict is ever "
    "“confirmed”."
)
_TRAINING_NOTE = (
    "Means over training seeds ± standard error, nats per token. Δ: 95 % intervals of the change from the first λ, "
    "seed by seed. Steps: to nine tenths of the way from the start to the grid's best held-out loss."
)
_CHOICE_NOTE = (
    "✓: lands where no λ can be told from the grid's best, at 95 %; ✗: elsewhere; –: names no λ that can be used. "
    "Margins are nats above the grid's best, at the λ of the grid nearest to what a rule names."
)
_SCHEDULES_NOTE = (
    "AdamW at the λ that the grid chose, on training seeds that come after the grid's. Δ: 95 % intervals of the change "
    "from that λ held constant, seed by seed, at the end and at each run's best step. The radial gap takes nothing "
    "from the grid, but blocks of the same text that are neither trained on nor judged by."
)
_LANDSCAPE_NOTE = (
    "Models that SGD with L2 led to. s*: Ψ_s → −∞ along an orbit for every s above, at 95 % for one model at a time. A "
    "ray grows where the quadratic coefficient of Ψ is positive beyond its error."
)
_SPECTRUM_NOTE = (
    "± of eigenvalues: bounds from residuals, for these groups; of the share below 0: half of what the quadrature "
    "leaves open; of the trace: a standard error over probes. Effective rank: an interval, with all that is left open."
)


def _noted(words: str, rows: Sequence[Row]) -> str:
    return note(words) + elements.table(rows) if rows else ""


def _name(optimizer: str) -> str:
    return NAMES.get(optimizer, optimizer)


def _verdict(judged: ClaimRecord | RateRecord) -> Status:
    return Status(judged.verdict or "not identifiable")


def _bound(estimate: EstimateRecord | None) -> str:
    if estimate is None:
        return UNAVAILABLE
    return format_uncertain(estimate.value, (estimate.interval[1] - estimate.interval[0]) / 2)


_CLAIMS: Columns = {
    "claim": "claim", "what was measured": "measured", "verdict": "verdict", "evidence": "status", "from": "experiment",
}  # fmt: skip
_TRAINING: Columns = {
    "optimiser": lambda p: _name(p.optimizer), "λ": "weight_decay",
    "seeds": lambda p: f"{p.seeds} ({p.diverged} diverged)" if p.diverged else str(p.seeds), "training": "train_loss",
    "held out": "held_out", "gap": "gap", "Δ training": "train_change.interval",
    "Δ held out": "held_out_change.interval", "Δ gap": "gap_change.interval",
    "steps": lambda p: format_plain(p.steps, ".0f"), "‖θ‖²": "norm_squared",
}  # fmt: skip
_SCHEDULES: Columns = {
    "schedule": "schedule",
    "λ₀": lambda p: UNAVAILABLE if p.schedule == "radial-gap" else format_number(p.weight_decay),
    "last λ": lambda p: ", ".join(format_number(x, 3) for x in p.last),
    "seeds": lambda p: f"{len(p.seeds)} ({p.diverged} diverged)" if p.diverged else str(len(p.seeds)),
    "training": "train_loss", "held out": "held_out", "Δ held out": "change.interval",
    "Δ at the best step": "best_change.interval",
}  # fmt: skip
_PROMISES: Columns = {
    "promise": "name", "rate at least": lambda p: f"10^{p.log10:.2f}", "verdict": _verdict, "why": "sentence",
}  # fmt: skip
_CERTIFICATES: Columns = {
    "λ": "weight_decay", "certified": lambda p: upper(p.path.value, places=4),
    "empirical": lambda p: f"{p.path.empirical:.4f}", "excess": lambda p: upper(p.path.excess, places=4),
    "complexity": lambda p: upper(p.path.complexity, places=1), "held-out loss": "held_out_loss",
    "held-out bound": lambda p: upper(p.held_out_bound, places=4), "": "path.status",
}  # fmt: skip
_SPECTRA: Columns = {
    "λ": "weight_decay", "seed": lambda p: str(p.seed), "λ₁(∇²L)": lambda p: _bound(p.largest),
    "λ₁(∇²F)": lambda p: _bound(p.objective_largest), "least of ∇²L": lambda p: _bound(p.smallest), "tr ∇²L": "trace",
    "effective rank": "effective_rank.interval", "share below 0": "negative_share",
}  # fmt: skip
_LEARNED: Columns = {
    "λ": "weight_decay", "the shift": "weight_decay", "learned: change of λ₁(∇²L)": "change.interval",
    "seeds": lambda t: str(t.seeds),
}  # fmt: skip
_TREND: Columns = {
    "optimiser": lambda t: _name(t.optimizer), "λ": "weight_decay", "mean": "value",
    "change from the first λ": "change.interval",
}  # fmt: skip


def _choice_rows(record: PaperRecord) -> list[Row]:
    trained = {(p.optimizer, p.weight_decay): p for p in record.training}
    rows: list[Row] = []
    for of in record.choices:
        for rule, row in zip(of.rules, rule_rows(of), strict=True):
            point = None if rule.judged_at is None else trained.get((of.optimizer, rule.judged_at))
            speed = {
                "steps": format_plain(point.steps if point else None, ".0f"),
                "gap": uncertain(point.gap if point else None),
            }
            rows.append(
                {"optimiser": _name(of.optimizer), "": _mark(of, rule), **row, **speed, "notes": rule_notes(rule)}
            )
    return rows


def _mark(of: OptimizerRecord, rule: RuleRecord) -> str:
    """Whether a rule lands among the λ that cannot be told from the best."""
    if rule.judged_at is None:
        return "–"
    return "✓" if rule.judged_at in of.kept else "✗"


def _choice_words(record: PaperRecord) -> str:
    """Per optimiser, the λ that may be the best, and how many of the rules that name one land there."""
    words = []
    for of in record.choices:
        near = ", ".join(format_number(x, 3) for x in of.kept) or "none"
        named = [rule for rule in of.rules if rule.judged_at is not None]
        land = sum(rule.judged_at in of.kept for rule in named)
        words.append(
            f"{_name(of.optimizer)}: λ that cannot be told from the best: {near}; {land} of the {len(named)} rules "
            f"that name a λ land there, {len(of.rules) - len(named)} more name none that can be used."
        )
    return " ".join(words)


def _landscape_rows(record: PaperRecord) -> list[Row]:
    rows: list[Row] = []
    for p in record.landscape:
        for psi in p.psi:
            along = [r for r in p.rays if r.psi[0].temperature == psi.temperature]
            up = sum(r.fit.quadratic.interval[0] > 0 for r in along)
            data = sum(r.data_fit.quadratic.interval[0] > 0 for r in along)
            fails = p.refuted_above is not None and psi.temperature > p.refuted_above
            rows.append(
                {
                    "λ": format_number(p.weight_decay), "seed": str(p.seed), "s": format_number(psi.temperature),
                    "Ψ at θ": uncertain(psi), "rays that grow": f"{up} of {len(along)}",
                    "of them by data": f"{data} of {len(along)}", "s* at most": format_number(p.refuted_above, 3),
                    "(iv) at this s": "fails" if fails else "not refuted here",
                }
            )  # fmt: skip
    return rows


def _spectra(record: PaperRecord) -> str:
    changed = rows_of((t for t in record.learned if t.change is not None), _LEARNED)
    rows = rows_of(record.spectra, _SPECTRA)
    return _noted(_SPECTRUM_NOTE, rows) + elements.table(changed) if rows else ""


def _estimators(record: PaperRecord) -> str:
    of = record.estimators
    if of is None:
        return ""
    rows: list[Row] = []
    for p in of.points:
        seconds = _seconds(record).get(f"estimators/{p.way}")
        error, each = p.relative_error.value, None if seconds is None else seconds / p.repeats
        rows.append(
            {
                "way": p.way, "error": f"{error:.2%}", "as reported": f"{p.relative_sem:.2%}",
                "intervals hold it": f"{p.covered} of {p.repeats}", "mean": uncertain(p.mean),
                "seconds": format_plain(each, ".2f"),
                "error² × seconds": format_plain(None if each is None else error**2 * each, ".2g"),
            }
        )  # fmt: skip
    words = (
        f"{of.probes} probes on each of {of.groups} groups, at {_name(of.optimizer)}, λ = "
        f"{format_number(of.weight_decay)}, seed {of.seed}. Reference: {uncertain(of.reference)} ({of.reference_way}). "
        "Seconds include loading, the gradient and, where there is one, tracing. Error² × seconds tells ways apart: "
        "less is better."
    )
    return note(words) + elements.table(rows)


def _seconds(record: PaperRecord) -> dict[str, float]:
    """Of each part of the study."""
    return (record.cost and record.cost.parts) or {}


def _pathologies(record: PaperRecord) -> str:
    rows = [{"": name, **row} for name, trend in record.trends.items() for row in rows_of(trend, _TREND)]
    even = next((p.uniform for p in record.pathologies), 0.0)
    notes = "; ".join(sorted({p.note for p in record.pathologies} - {""}))
    words = (
        f"Means over training seeds ± standard error. Attention: mass on the first token, {even:.3f} if it were even. "
        "Activations: max |h| over median |h| of the residual stream. Superposition: mean squared cosine between rows "
        "of the embedding."
    )
    return _noted(f"{words} {notes}".strip(), rows)


def _about(record: PaperRecord) -> dict[str, str]:
    spent = ", ".join(
        f"{name} {seconds / 60:.1f}" for name, seconds in _seconds(record).items() if "/" not in name and name != PAGE
    )
    about = {
        "model": f"{record.model.description}; {record.parameters:,} parameters",
        "trained on": f"{record.text.spec}; {record.text.words}",
        "held out": f"{record.held_out.spec}; {record.held_out.words}",
        "training": f"{record.steps} steps, {record.seeds} seeds at {_grid_words(record)} values of λ",
        "criteria": "; ".join(
            f"decay {c.decay}: smooth {c.smoothness.verdict}, growth {c.growth.verdict}, tails {c.tails.verdict}"
            for c in record.criteria
        ) or "not examined",
        "command": record.provenance.command + " (settings.toml lies in the run directory)",
    }  # fmt: skip
    return about | ({"minutes": spent} if spent else {})


def _grid_words(record: PaperRecord) -> str:
    """How many λ were trained at; of each optimiser, where they differ."""
    counts = Counter(point.optimizer for point in record.training)
    if len({*counts.values()}) < 2:
        return str(len(record.grid))
    return ", ".join(f"{count} ({_name(optimizer)})" for optimizer, count in counts.items())


def _moved(name: str, trend: Sequence[TrendRecord]) -> str:
    """Whether λ moves a pathology, with the largest change that is beyond its error."""
    changes = [(t.change, t) for t in trend if t.change]
    beyond = [pair for pair in changes if resolved_sign(pair[0].value, pair[0].sem, pair[0].n - 1, len(changes))]
    if not changes:
        return ""
    if not beyond:
        change, most = max(changes, key=lambda pair: abs(pair[0].value))
        needed = resolvable(change.sem, change.n - 1, len(changes))
        return (
            f"{name.capitalize()}: {change.n} seeds show no change with λ beyond their error in {len(changes)} "
            f"comparisons at once. The largest, with {_name(most.optimizer)} at λ = "
            f"{format_number(most.weight_decay)}, is {change.value:+.3g} to {most.value.value:.3g}, and would have had "
            f"to be {upper(needed, 2)}."
        )
    change, most = max(beyond, key=lambda pair: abs(pair[0].value))
    return (
        f"{name.capitalize()}: changed beyond the error over seeds in {len(beyond)} of {len(changes)} comparisons, "
        f"most with {_name(most.optimizer)} at λ = {format_number(most.weight_decay)}, by {change.value:+.3g} "
        f"{interval(change)} to {most.value.value:.3g}."
    )
