"""The page of `villani study paper`: what follows, in words and tables; `figures.py` has the pictures."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from villani.commands.paper.figures import NAMES
from villani.commands.paper.figures import pictures as pictures  # a page has them
from villani.commands.paper.record import PaperRecord, TrainingPoint, TrendRecord
from villani.commands.recommend.record import RuleRecord
from villani.outwards import upper
from villani.report.elements import Markup, badge, facts, note, section, table
from villani.report.figures import NEGATIVE, POSITIVE
from villani.report.numbers import format_interval, format_number, format_uncertain
from villani.report.terminal import print_page
from villani.statistics import resolved_sign
from villani.work.records import EstimateRecord

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


def show(record: PaperRecord, directory: Path, console: Console) -> None:
    """The claims with their verdicts, what was found about λ, and where the page is."""
    console.print(record.sentence, style="bold", markup=False, soft_wrap=True)
    for words in (record.choice_sentence, record.decay_sentence):
        if words:
            console.print(words, markup=False, soft_wrap=True)
    claims = Table("claim", "verdict", "evidence", "measured")
    for claim in record.claims:
        claims.add_row(escape(claim.claim), claim.verdict, claim.status, escape(claim.measured))
    console.print(claims)
    print_page(console, directory)


def findings(record: PaperRecord) -> dict[str, str]:
    """Title → paragraph."""
    found = {}
    if record.choice_sentence:
        found["E6: the grid against rules"] = record.choice_sentence
    if record.decay_sentence:
        found["What decay does"] = record.decay_sentence
    moved = [words for name, trend in record.trends.items() if (words := _moved(name, trend))]
    if moved:
        found["Pathologies"] = " ".join(moved)
    if record.certificate_sentence:
        found["E4: the best certificate"] = record.certificate_sentence
    return found


def tables(record: PaperRecord) -> str:
    """Sections of tables, as HTML; the claims come last."""
    parts = [
        _training_table(record), _choice_table(record), _landscape_table(record), _spectrum_table(record),
        _convergence_table(record), _certificate_table(record), _estimator_table(record), _pathology_table(record),
        _about(record), _claims_table(record),
    ]  # fmt: skip
    return "".join(parts)


def limits(_: PaperRecord) -> Iterable[str]:
    """What does not follow."""
    return _LIMITS


# Tables


def _claims_table(record: PaperRecord) -> str:
    rows = [[c.claim, c.measured, _verdict(c.verdict), badge(c.status), c.experiment] for c in record.claims]
    words = (
        "Claims of the abstract of arXiv 2605.06599, in our words. Its proofs were not available. No verdict is ever "
        "“confirmed”."
    )
    return section(
        "The preprint, claim by claim",
        note(words) + table(["claim", "what was measured", "verdict", "evidence", "from"], rows),
    )


def _verdict(verdict: str) -> Markup:
    colour = {"refuted": NEGATIVE, "consistent": POSITIVE}.get(verdict, "inherit")
    return Markup(f'<strong style="color:{colour}">{verdict}</strong>')


def _training_table(record: PaperRecord) -> str:
    rows = [
        [
            NAMES.get(p.optimizer, p.optimizer), format_number(p.weight_decay), _seeds(p), _cell(p.train_loss),
            _cell(p.held_out), _cell(p.gap), _interval(p.train_change), _interval(p.held_out_change),
            _interval(p.gap_change), "—" if p.steps is None else f"{p.steps:.0f}", _cell(p.norm_squared),
        ]
        for p in record.training
    ]  # fmt: skip
    head = [
        "optimiser", "λ", "seeds", "training", "held out", "gap", "Δ training", "Δ held out", "Δ gap", "steps", "‖θ‖²",
    ]  # fmt: skip
    words = (
        "Means over training seeds ± standard error, nats per token. Δ: 95 % intervals of the change from the first λ, "
        "seed by seed. Steps: to nine tenths of the way from the start to the grid's best held-out loss."
    )
    return section("E4 and E6: training", note(words) + table(head, rows))


def _seeds(point: TrainingPoint) -> str:
    return f"{point.seeds} ({point.diverged} diverged)" if point.diverged else str(point.seeds)


def _choice_table(record: PaperRecord) -> str:
    rows = []
    speed = {(p.optimizer, p.weight_decay): p for p in record.training}
    for of in record.choices:
        for rule in of.rules:
            there = None if rule.judged_at is None else speed.get((of.optimizer, rule.judged_at))
            rows.append(
                [
                    NAMES.get(of.optimizer, of.optimizer), rule.name,
                    "—" if rule.weight_decay is None else format_number(rule.weight_decay, 3),
                    "—" if rule.judged_at is None else format_number(rule.judged_at, 3),
                    "—" if rule.margin is None else f"{rule.margin.value:.4f}",
                    "—" if rule.margin is None else format_interval(rule.margin.low, rule.margin.high),
                    "—" if there is None or there.steps is None else f"{there.steps:.0f}",
                    "—" if there is None else _cell(there.gap),
                    "—" if rule.share is None else f"{rule.share:.0%}", _notes(rule),
                ]
            )  # fmt: skip
    if not rows:
        return ""
    kept = "; ".join(
        f"{NAMES.get(of.optimizer, of.optimizer)}: {', '.join(format_number(x, 3) for x in of.kept) or 'none'}"
        for of in record.choices
    )
    words = f"λ that cannot be told apart from the best, at 95 %: {kept}. Margins are nats above the grid's best."
    head = ["optimiser", "rule", "λ", "judged at", "margin", "interval", "steps", "gap", "share of training", "notes"]
    return section("E6: where rules land", note(words) + table(head, rows))


def _notes(rule: RuleRecord) -> str:
    return "; ".join([*([f"refuses: {rule.refused}"] if rule.refused else []), *rule.flags]) or "—"


def _landscape_table(record: PaperRecord) -> str:
    if not record.landscape:
        return ""
    rows = []
    for p in record.landscape:
        for psi in p.psi:
            along = [r for r in p.rays if r.psi[0].temperature == psi.temperature]
            up = sum(r.fit.quadratic.interval[0] > 0 for r in along)
            data = sum(r.data_fit.quadratic.interval[0] > 0 for r in along)
            above = p.refuted_above
            rows.append(
                [
                    format_number(p.weight_decay), str(p.seed), format_number(psi.temperature),
                    format_uncertain(psi.value, psi.sem), f"{up} of {len(along)}", f"{data} of {len(along)}",
                    "—" if above is None else format_number(above, 3),
                    "fails" if above is not None and psi.temperature > above else "not refuted here",
                ]
            )  # fmt: skip
    head = ["λ", "seed", "s", "Ψ at θ", "rays that grow", "of them by data", "s* at most", "(iv) at this s"]
    words = (
        "Models that SGD with L2 led to. s*: Ψ_s → −∞ along an orbit for every s above, at 95 % for one model at a "
        "time. A ray grows where the quadratic coefficient of Ψ is positive beyond its error."
    )
    return section("E1: Ψ over λ and s", note(words) + table(head, rows))


def _spectrum_table(record: PaperRecord) -> str:
    rows = [
        [
            format_number(p.weight_decay), str(p.seed), _bound(p.largest), _bound(p.objective_largest),
            _bound(p.smallest), _cell(p.trace), _cell(p.effective_rank), _cell(p.negative_share),
        ]
        for p in record.spectra
    ]  # fmt: skip
    if not rows:
        return ""
    changes = [
        [format_number(t.weight_decay), format_number(t.weight_decay), _interval(t.change), str(t.seeds)]
        for t in record.learned
        if t.change is not None
    ]
    head = ["λ", "seed", "λ₁(∇²L)", "λ₁(∇²F)", "least of ∇²L", "tr ∇²L", "effective rank", "share below 0"]
    words = (
        "± of eigenvalues: bounds from residuals, for these groups; of the share below 0: half of what the quadrature "
        "leaves open; of the rest: standard errors over probes."
    )
    learned = table(["λ", "the shift", "learned: change of λ₁(∇²L)", "seeds"], changes) if changes else ""
    return section("E2: spectra", note(words) + table(head, rows) + learned)


def _convergence_table(record: PaperRecord) -> str:
    rows = [
        [
            format_number(p.weight_decay), promise.name, f"10^{promise.log10:.2f}",
            _verdict(promise.verdict or "not identifiable"), promise.sentence,
        ]
        for p in record.convergence
        for promise in p.promises
    ]  # fmt: skip
    if not rows:
        return ""
    told = "".join(note(p.sentence) for p in record.convergence)
    return section("E3: what is promised", told + table(["λ", "promise", "rate at least", "verdict", "why"], rows))


def _certificate_table(record: PaperRecord) -> str:
    rows = [
        [
            format_number(p.weight_decay), upper(p.path.value, places=4), f"{p.path.empirical:.4f}",
            upper(p.path.excess, places=4), upper(p.path.complexity, places=1), _cell(p.held_out_loss),
            upper(p.held_out_bound, places=4), badge(p.path.status),
        ]
        for p in record.certificates
        if p.path
    ]  # fmt: skip
    head = ["λ", "certified", "empirical", "excess", "complexity", "held-out loss", "held-out bound", ""]
    return section("E4: certificates", table(head, rows)) if rows else ""


def _estimator_table(record: PaperRecord) -> str:
    of = record.estimators
    if of is None:
        return ""
    spent = record.cost.parts if record.cost and record.cost.parts else {}
    rows = []
    for p in of.points:
        seconds = spent.get(f"estimators/{p.way}")
        error = p.relative_error.value
        each = None if seconds is None else seconds / p.repeats
        rows.append(
            [
                p.way, f"{error:.2%}", f"{p.relative_sem:.2%}", f"{p.covered} of {p.repeats}", _cell(p.mean),
                "—" if each is None else f"{each:.2f}", "—" if each is None else f"{error**2 * each:.2g}",
            ]
        )  # fmt: skip
    words = (
        f"{of.probes} probes on each of {of.groups} groups, at {NAMES.get(of.optimizer, of.optimizer)}, λ = "
        f"{format_number(of.weight_decay)}, seed {of.seed}. Reference: {_cell(of.reference)} ({of.reference_way}). "
        "Seconds include loading, the gradient and, where there is one, tracing. Error² × seconds tells ways apart: "
        "less is better."
    )
    head = ["way", "error", "as reported", "intervals hold it", "mean", "seconds", "error² × seconds"]
    return section("E5: ways to tr ∇²L", note(words) + table(head, rows))


def _pathology_table(record: PaperRecord) -> str:
    rows = [
        [name, NAMES.get(t.optimizer, t.optimizer), format_number(t.weight_decay), _cell(t.value), _interval(t.change)]
        for name, trend in record.trends.items()
        for t in trend
    ]
    if not rows:
        return ""
    even = next((p.uniform for p in record.pathologies), 0.0)
    notes = "; ".join(sorted({p.note for p in record.pathologies} - {""}))
    words = (
        f"Means over training seeds ± standard error. Attention: mass on the first token, {even:.3f} if it were even. "
        "Activations: max |h| over median |h| of the residual stream. Superposition: mean squared cosine between rows "
        "of the embedding."
    )
    head = ["", "optimiser", "λ", "mean", "change from the first λ"]
    return section("Pathologies", note(f"{words} {notes}".strip()) + table(head, rows))


def _about(record: PaperRecord) -> str:
    parts = record.cost.parts if record.cost and record.cost.parts else {}
    spent = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in parts.items() if "/" not in name)
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
    return section("What went in", facts(about | ({"minutes": spent} if spent else {})))


def _cell(estimate: EstimateRecord | None) -> str:
    return "—" if estimate is None else format_uncertain(estimate.value, estimate.sem)


def _interval(estimate: EstimateRecord | None) -> str:
    return "—" if estimate is None else format_interval(*estimate.interval)


def _bound(estimate: EstimateRecord | None) -> str:
    if estimate is None:
        return "—"
    return format_uncertain(estimate.value, (estimate.interval[1] - estimate.interval[0]) / 2)


def _moved(name: str, trend: Sequence[TrendRecord]) -> str:
    """Whether λ moves a pathology, with the largest change that is beyond its error."""
    changes = [t for t in trend if t.change is not None]
    beyond = [
        t for t in changes if t.change and resolved_sign(t.change.value, t.change.sem, t.change.n - 1, len(changes))
    ]
    if not changes:
        return ""
    if not beyond:
        return f"{name.capitalize()}: no change with λ beyond the error over seeds ({len(changes)} comparisons)."
    most = max(beyond, key=lambda t: abs(t.change.value) if t.change else 0.0)
    assert most.change is not None
    return (
        f"{name.capitalize()}: changed beyond the error over seeds in {len(beyond)} of {len(changes)} comparisons, "
        f"most with {NAMES.get(most.optimizer, most.optimizer)} at λ = {format_number(most.weight_decay)}, by "
        f"{most.change.value:+.3g} {format_interval(*most.change.interval)} to {most.value.value:.3g}."
    )
