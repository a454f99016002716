"""The page of `villani certify`: certificates beside what they compete with, their terms, and what they are about."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from villani.commands.certify.choices import advice, certificate_choices
from villani.commands.certify.figures import pictures
from villani.commands.certify.record import CertificateRecord, PassPoint
from villani.commands.certify.results import best_bound
from villani.outwards import lower, upper
from villani.report import elements
from villani.report.elements import Row, Status, facts, note, sections
from villani.report.estimates import Columns, rows_of
from villani.report.numbers import format_number
from villani.report.terminal import say, table

__all__ = ["findings", "headline", "limits", "pictures", "show", "tables"]
_LIMITS = (
    "The risk that is bounded is the mean of E[loss of a token | everything before it] on the contexts of the "
    "certified text. It is not a statement about new documents, nor about the law that the text came from.",
    "A path certificate is about the weights that one run ended at, with probability over the text, the batches and "
    "the noise together. A c4 certificate is about weights drawn afresh, by a run with new noise, not a run seen.",
    "Every setting has to have been fixed before the certified tokens were looked at, or chosen from a grid that was, "
    "whose size δ is divided by (--candidates). Any other search is not paid for.",
    "Tokens may have any law. If their tokenizer was made from the certified text, as the builtin one was from the "
    "builtin text, the bound is under the joint law of text and tokenizer, and not of a text cut by given rules.",
    "Every bound on tokens needs causality: a model that sees what it is to predict makes it void. That was tried out, "
    "by changing tokens and looking at the logits before them, not proved.",
    "Losses are of smoothed predictions (1 − α)p + α/V, which is what makes them bounded.",
    "Held-out bounds use text that training never saw. They hold at the same δ, and they are usually better.",
    "Sums are taken in floating point; their rounding is not part of the certificate.",
)
_PASS_LIMITS = (
    "What is certified is the average over the pass of the conditional risk of each iterate on the blocks that came "
    "next. It is not about the last weights: for these, use the held-out bound.",
    "It needs the text's order as it is, settings fixed before the text, and blocks that are scored before they are "
    "trained on. A second epoch has no such certificate.",
    "The frozen start's certificate, the gain and the held-out bounds are statements at δ each, beside the iterates'.",
)
_MIXTURE_LIMITS = (
    "The mixture's certificate, at δ of its own, is about a new document of the law that the certified ones are "
    "independent draws of. That they are is your word: what follows one another (chapters, threads, versions of a "
    "page, a week's news), copies of each other, or a choice by what is in them, is not. Neighbours in the text that "
    "resemble each other are refused, other dependence is not seen.",
    "A new document's risk is the mean loss of its tokens, cut into blocks as these were, every document counting "
    "alike whatever its length. It says nothing about documents of another source or of a later time.",
)


def headline(record: CertificateRecord) -> str:
    """The best certificate, and what it beats."""
    best = best_bound(record)
    if best is None:
        return record.sentence
    point, bound = best
    where = f"λ = {format_number(point.weight_decay)}"
    where += f", η = {format_number(point.learning_rate)}" if isinstance(point, PassPoint) else ""
    against = "below guessing" if bound.value < record.log_vocabulary else "no better than guessing"
    return (
        f"On this text the risk is at most {upper(bound.value, places=3)} nats per token at {where}, with probability "
        f"{1 - record.delta:g} ({bound.status}): {against}, which costs {record.log_vocabulary:.3f}."
    )


def findings(record: CertificateRecord) -> dict[str, str]:
    """Title → paragraph."""
    point, bound = best_bound(record) or (None, None)
    refused = [f"λ = {p.weight_decay:g}: {reason}" for p in record.points for reason in p.refusals]
    gain = ""
    if isinstance(point, PassPoint):
        gain = (
            f"{point.gain.about}; α = {point.gain.alpha:g}. It holds with probability {1 - record.delta:g} on its own."
        )
    made = {
        "In full": record.sentence if point else "",
        "The prior": f"{record.prior}. {record.moving:,} coordinates move (tensors: {record.train}).",
        "What the gain is about": gain,
        "What the predictor is": f"{bound.predictor}; predictions smoothed with α = {bound.alpha:g}." if bound else "",
        "What the bound is about": f"{bound.about}." if bound else "",
        "What has to hold": f"{bound.hypotheses}." if bound else "",
        "Not given": "; ".join(refused) + "." if refused else "",
    }
    return {title: f"{text[:1].upper()}{text[1:]}" if text[:1].isascii() else text for title, text in made.items()}


def tables(record: CertificateRecord) -> str:
    """Sections of tables, as HTML."""
    behind = "The passes behind them" if record.prequential else "The runs behind them"
    choices = elements.prose(elements.table(certificate_choices(record))) + note(advice(record))
    return sections(
        {
            "Certificates": elements.table(_bound_rows(record)), behind: elements.table(_run_rows(record)),
            "Mixtures on new documents": elements.table(_mixture_rows(record)),
            "Which certificate for whom": choices,
        }
    ) + _given(record)  # fmt: skip


def _bound_rows(record: CertificateRecord) -> list[Row]:
    """Every certificate with its terms."""
    rows: list[Row] = []
    for point in record.prequential.points if record.prequential else record.points:
        for name, bound in point.bounds.items():
            what, rest = {"certificate": f"{name}: {bound.predictor}"}, {
                "Monte Carlo": upper(bound.monte_carlo, places=4), "complexity": upper(bound.complexity, places=1),
            }  # fmt: skip
            if isinstance(point, PassPoint):
                gain, below = lower(point.gain.value, places=4), lower(point.below_start, places=4)
                what, rest = {"η": format_number(point.learning_rate)}, {"below the start": below, "gain": gain}
            terms = {
                "nats per token": upper(bound.value, places=4), "bits": upper(bound.bits, places=4),
                "empirical": f"{bound.empirical:.4f}", "excess": upper(bound.excess, places=4),
                "α": format_number(bound.alpha), "bound": bound.bound,
            }  # fmt: skip
            rows.append({"λ": format_number(point.weight_decay), **what, **terms, **rest, "": Status(bound.status)})
    return rows


def _mixture_rows(record: CertificateRecord) -> list[Row]:
    """Every mixture with its terms; none without independent documents."""
    points = record.prequential.points if record.prequential else []
    return rows_of([point for point in points if point.mixture], _MIXTURES)


def _run_rows(record: CertificateRecord) -> list[Row]:
    """The training behind the certificates."""
    if record.prequential:
        return rows_of(record.prequential.points, _PASSES)
    drifts = any(point.drift for point in record.points)
    return rows_of(record.points, {**_RUNS, **_DRIFT} if drifts else _RUNS)


_RUNS: Columns = {
    "λ": "weight_decay", "chains": "chains", "training loss": lambda p: f"{p.training_loss:.4f}",
    "held-out loss": "held_out_loss", "held-out bound": lambda p: upper(p.held_out_bound, places=4),
    "path cost": lambda p: f"{p.path_cost:,.1f}", "clip's c4": lambda p: upper(p.clip_complexity, places=1),
    "noise": lambda p: format_number(p.noise, 3), "‖w‖": lambda p: format_number(p.moved, 3),
    "clipped": lambda p: f"{p.clipped:.0%}",
}  # fmt: skip
_DRIFT: Columns = {"path cost, were h = 0": lambda p: f"{p.drift.still_cost:,.1f}"}
_PASSES: Columns = {
    "λ": "weight_decay", "η": "learning_rate", "loss before training on it": lambda p: f"{p.loss:.4f}",
    "last weights, held-out loss": "held_out_loss", "held-out bound": _RUNS["held-out bound"],
    "‖θ − centre‖": _RUNS["‖w‖"], "clipped": _RUNS["clipped"],
}  # fmt: skip


_PAGE_ALONE = (
    "empirical", "excess", "frozen start", "mean of the iterates'", "neighbours, rank correlation", "copies",
    "iterates",
)  # fmt: skip
_MIXTURES: Columns = {
    "λ": "weight_decay", "η": "learning_rate",
    "a new document, nats per token": lambda p: upper(p.mixture.certificate.value, places=4),
    "empirical": lambda p: f"{p.mixture.certificate.empirical:.4f}",
    "excess": lambda p: upper(p.mixture.certificate.excess, places=4),
    "documents": lambda p: f"{p.mixture.documents:,}", "iterates": lambda p: f"{len(p.mixture.shares)}",
    "frozen start": lambda p: upper(p.mixture.start_bound, places=4),
    "held-out documents, loss": "mixture.held_out_loss",
    "mean of the iterates'": lambda p: f"{p.mixture.held_out_iterates:.4f}",
    "held-out bound": lambda p: upper(p.mixture.held_out_bound, places=4),
    "neighbours, rank correlation": "mixture.neighbours", "copies": lambda p: f"{p.mixture.repeated}",
    "folder": lambda p: p.mixture.folder,
}  # fmt: skip


def _given(record: CertificateRecord) -> str:
    spent = {name: format_number(value) for name, value in record.spending.items() if value}
    about = {
        "certified": f"{record.text.spec}: {record.tokens:,} tokens; {record.text.words}",
        "held out": f"{record.held_out.spec}; {record.held_out.words}",
        "prior's centre, loss": f"{record.prior_loss:.4f} on the certified tokens",
        "command": record.provenance.command,
    }
    among = (
        f"for a choice among {record.candidates:,} settings" if record.candidates > 1 else "for these settings alone"
    )
    one = "one λ, one η and one α" if record.prequential else "one λ and one α"
    words = f"δ = {record.delta:g} in all, {among}; at {one}:"
    return sections({"How δ is spent": note(words) + facts(spent), "What went in": facts(about)})


def limits(record: CertificateRecord) -> Iterable[str]:
    """What does not follow."""
    if record.prequential is None:
        return _LIMITS
    mixtures = _MIXTURE_LIMITS if any(point.mixture for point in record.prequential.points) else ()
    return (*_PASS_LIMITS, *mixtures, *(_LIMITS[k] for k in (0, 2, 3, 4, 5, 7)))


def show(record: CertificateRecord, _: Path, console: Console) -> None:
    """The sentence, every certificate with its terms, the training behind it, and what was refused."""
    say(console, record.sentence, "bold")
    console.print(table(_bound_rows(record), without=("bits", "Monte Carlo", "α", "bound")))
    console.print(table(_run_rows(record), without=("chains", "noise", "‖w‖", "‖θ − centre‖")))
    if mixtures := _mixture_rows(record):
        console.print(table(mixtures, without=_PAGE_ALONE))
    for point in record.points:
        for reason in point.refusals:
            say(console, f"λ = {point.weight_decay:g}, not given: {reason}")
