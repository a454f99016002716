"""The page of `villani study paper`: what follows, in words and tables; `figures.py` has the pictures."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from villani.commands.paper.figures import pictures as pictures  # a page has them
from villani.commands.paper.record import ClaimRecord, PaperRecord, TrendRecord
from villani.commands.recommend.page import rule_notes, rule_rows
from villani.commands.recommend.record import NAMES
from villani.outwards import UNAVAILABLE, upper
from villani.report import elements
from villani.report.colours import NEGATIVE, POSITIVE
from villani.report.elements import Markup, Row, Status, facts, note, sections
from villani.report.estimates import interval, uncertain
from villani.report.numbers import format_number, format_plain, format_uncertain
from villani.report.terminal import say, table
from villani.statistics import resolved_sign
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
    """How many claims came out how."""
    return record.sentence


def show(record: PaperRecord, _: Path, console: Console) -> None:
    """The claims with their verdicts, and what was found about λ."""
    say(console, record.sentence, "bold")
    for words in (record.choice_sentence, record.decay_sentence):
        if words:
            say(console, words)
    console.print(table(_claim_rows(record.claims), without=["from"]))


def findings(record: PaperRecord) -> dict[str, str]:
    """Title → paragraph."""
    moved = [_moved(name, trend) for name, trend in record.trends.items()]
    return {
        "E6: the grid against rules": record.choice_sentence,
        "What decay does": record.decay_sentence,
        "Pathologies": " ".join(words for words in moved if words),
        "E4: the best certificate": record.certificate_sentence,
    }


def tables(record: PaperRecord) -> str:
    """Sections of tables, as HTML; the claims come last."""
    claims: list[Row] = [{**row, "verdict": _verdict(row["verdict"])} for row in _claim_rows(record.claims)]
    training: list[Row] = [
        {
            "optimiser": _name(p.optimizer), "λ": format_number(p.weight_decay),
            "seeds": f"{p.seeds} ({p.diverged} diverged)" if p.diverged else str(p.seeds),
            "training": uncertain(p.train_loss), "held out": uncertain(p.held_out), "gap": uncertain(p.gap),
            "Δ training": interval(p.train_change), "Δ held out": interval(p.held_out_change),
            "Δ gap": interval(p.gap_change), "steps": format_plain(p.steps, ".0f"), "‖θ‖²": uncertain(p.norm_squared),
        }
        for p in record.training
    ]  # fmt: skip
    promises: list[Row] = [
        {
            "λ": format_number(p.weight_decay), "promise": promise.name, "rate at least": f"10^{promise.log10:.2f}",
            "verdict": _verdict(promise.verdict or "not identifiable"), "why": promise.sentence,
        }
        for p in record.convergence
        for promise in p.promises
    ]  # fmt: skip
    certificates: list[Row] = [
        {
            "λ": format_number(p.weight_decay), "certified": upper(p.path.value, places=4),
            "empirical": f"{p.path.empirical:.4f}", "excess": upper(p.path.excess, places=4),
            "complexity": upper(p.path.complexity, places=1), "held-out loss": uncertain(p.held_out_loss),
            "held-out bound": upper(p.held_out_bound, places=4), "": Status(p.path.status),
        }
        for p in record.certificates
        if p.path
    ]  # fmt: skip
    return sections(
        {
            "E4 and E6: training": _noted(_TRAINING_NOTE, training),
            "E6: where rules land": _noted(_choice_words(record), _choice_rows(record)),
            "E1: Ψ over λ and s": _noted(_LANDSCAPE_NOTE, _landscape_rows(record)),
            "E2: spectra": _spectra(record),
            "E3: what is promised": "".join(note(p.sentence) for p in record.convergence) + elements.table(promises),
            "E4: certificates": elements.table(certificates),
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
_LANDSCAPE_NOTE = (
    "Models that SGD with L2 led to. s*: Ψ_s → −∞ along an orbit for every s above, at 95 % for one model at a time. A "
    "ray grows where the quadratic coefficient of Ψ is positive beyond its error."
)
_SPECTRUM_NOTE = (
    "± of eigenvalues: bounds from residuals, for these groups; of the share below 0: half of what the quadrature "
    "leaves open; of the rest: standard errors over probes."
)


def _noted(words: str, rows: Sequence[Row]) -> str:
    return note(words) + elements.table(rows) if rows else ""


def _name(optimizer: str) -> str:
    return NAMES.get(optimizer, optimizer)


def _claim_rows(claims: Sequence[ClaimRecord]) -> list[Row]:
    return [
        {
            "claim": c.claim, "what was measured": c.measured, "verdict": c.verdict,
            "evidence": Status(c.status), "from": c.experiment,
        }
        for c in claims
    ]  # fmt: skip


def _verdict(verdict: str) -> Markup:
    colour = {"refuted": NEGATIVE, "consistent": POSITIVE}.get(verdict, "inherit")
    return Markup(f'<strong style="color:{colour}">{verdict}</strong>')


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
            rows.append({"optimiser": _name(of.optimizer), **row, **speed, "notes": rule_notes(rule)})
    return rows


def _choice_words(record: PaperRecord) -> str:
    near = "; ".join(
        f"{_name(of.optimizer)}: {', '.join(format_number(x, 3) for x in of.kept) or 'none'}" for of in record.choices
    )
    return f"λ that cannot be told apart from the best, at 95 %: {near}. Margins are nats above the grid's best."


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
    rows: list[Row] = [
        {
            "λ": format_number(p.weight_decay), "seed": str(p.seed), "λ₁(∇²L)": _bound(p.largest),
            "λ₁(∇²F)": _bound(p.objective_largest), "least of ∇²L": _bound(p.smallest), "tr ∇²L": uncertain(p.trace),
            "effective rank": uncertain(p.effective_rank), "share below 0": uncertain(p.negative_share),
        }
        for p in record.spectra
    ]  # fmt: skip
    changes: list[Row] = [
        {
            "λ": format_number(t.weight_decay), "the shift": format_number(t.weight_decay),
            "learned: change of λ₁(∇²L)": interval(t.change), "seeds": str(t.seeds),
        }
        for t in record.learned
        if t.change is not None
    ]  # fmt: skip
    return _noted(_SPECTRUM_NOTE, rows) + elements.table(changes) if rows else ""


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
    rows: list[Row] = [
        {
            "": name, "optimiser": _name(t.optimizer), "λ": format_number(t.weight_decay),
            "mean": uncertain(t.value), "change from the first λ": interval(t.change),
        }
        for name, trend in record.trends.items()
        for t in trend
    ]  # fmt: skip
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
        "training": f"{record.steps} steps, {record.seeds} seeds at {len(record.grid)} values of λ",
        "criteria": "; ".join(
            f"decay {c.decay}: smooth {c.smoothness.verdict}, growth {c.growth.verdict}, tails {c.tails.verdict}"
            for c in record.criteria
        ) or "not examined",
        "command": record.provenance.command + " (settings.toml lies in the run directory)",
    }  # fmt: skip
    return about | ({"minutes": spent} if spent else {})


def _bound(estimate: EstimateRecord | None) -> str:
    if estimate is None:
        return UNAVAILABLE
    return format_uncertain(estimate.value, (estimate.interval[1] - estimate.interval[0]) / 2)


def _moved(name: str, trend: Sequence[TrendRecord]) -> str:
    """Whether λ moves a pathology, with the largest change that is beyond its error."""
    changes = [(t.change, t) for t in trend if t.change]
    beyond = [pair for pair in changes if resolved_sign(pair[0].value, pair[0].sem, pair[0].n - 1, len(changes))]
    if not changes:
        return ""
    if not beyond:
        return f"{name.capitalize()}: no change with λ beyond the error over seeds ({len(changes)} comparisons)."
    change, most = max(beyond, key=lambda pair: abs(pair[0].value))
    return (
        f"{name.capitalize()}: changed beyond the error over seeds in {len(beyond)} of {len(changes)} comparisons, "
        f"most with {_name(most.optimizer)} at λ = {format_number(most.weight_decay)}, by {change.value:+.3g} "
        f"{interval(change)} to {most.value.value:.3g}."
    )
