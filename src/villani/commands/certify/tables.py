"""The tables of the page of a certificate: bounds with their terms, the training behind them, and what went in."""

from villani.commands.certify.record import CertificateRecord, PrequentialRecord
from villani.outwards import lower, upper
from villani.report.elements import badge, facts, note, section, table
from villani.report.numbers import format_number, format_uncertain


def tables(record: CertificateRecord) -> str:
    """Sections of tables, as HTML."""
    return (_passes(record.prequential) if record.prequential else _runs(record)) + _given(record)


def _runs(record: CertificateRecord) -> str:
    header = [
        "λ", "certificate", "nats per token", "bits", "empirical", "Monte Carlo", "excess", "complexity", "α", "bound",
        "",
    ]  # fmt: skip
    rows = [
        [
            format_number(point.weight_decay), bound.predictor, upper(bound.value, places=4),
            upper(bound.bits, places=4), f"{bound.empirical:.4f}", upper(bound.monte_carlo, places=4),
            upper(bound.excess, places=4), upper(bound.complexity, places=1),
            format_number(bound.alpha), bound.bound, badge(bound.status),
        ]
        for point in record.points for bound in (point.path, point.chain) if bound is not None
    ]  # fmt: skip
    runs = [
        [
            format_number(p.weight_decay), str(p.chains), f"{p.training_loss:.4f}",
            format_uncertain(p.held_out_loss.value, p.held_out_loss.sem), upper(p.held_out_bound, places=4),
            f"{p.path_cost:,.1f}", "—" if p.clip_complexity is None else upper(p.clip_complexity, places=1),
            format_number(p.noise, 3), format_number(p.moved, 3), f"{p.clipped:.0%}",
        ]
        for p in record.points
    ]  # fmt: skip
    columns = [
        "λ", "chains", "training loss", "held-out loss", "held-out bound", "path cost", "clip's c4", "noise", "‖w‖",
        "clipped",
    ]  # fmt: skip
    return section("Certificates", table(header, rows)) + section("The runs behind them", table(columns, runs))


def _passes(record: PrequentialRecord) -> str:
    header = ["λ", "η", "nats per token", "bits", "empirical", "excess", "α", "bound", "below the start", "gain", ""]
    rows = [
        [
            format_number(p.weight_decay), format_number(p.learning_rate), upper(p.certificate.value, places=4),
            upper(p.certificate.bits, places=4), f"{p.certificate.empirical:.4f}",
            upper(p.certificate.excess, places=4), format_number(p.certificate.alpha), p.certificate.bound,
            lower(p.below_start, places=4), lower(p.gain.value, places=4), badge(p.certificate.status),
        ]
        for p in record.points
    ]  # fmt: skip
    columns = [
        "λ", "η", "loss before training on it", "last weights, held-out loss", "held-out bound", "‖θ − centre‖",
        "clipped",
    ]  # fmt: skip
    runs = [
        [
            format_number(p.weight_decay), format_number(p.learning_rate), f"{p.loss:.4f}",
            format_uncertain(p.held_out_loss.value, p.held_out_loss.sem), upper(p.held_out_bound, places=4),
            format_number(p.moved, 3), f"{p.clipped:.0%}",
        ]
        for p in record.points
    ]  # fmt: skip
    return section("Certificates", table(header, rows)) + section("The passes behind them", table(columns, runs))


def _given(record: CertificateRecord) -> str:
    spent = {name: format_number(value) for name, value in record.spending.items() if value}
    about = {
        "certified": f"{record.text.spec}: {record.tokens:,} tokens; {record.text.words}",
        "held out": f"{record.held_out.spec}; {record.held_out.words}",
        "prior's centre, loss": f"{record.prior_loss:.4f} on the certified tokens",
        "command": record.provenance.command,
    }
    words = (
        f"for a choice among {record.candidates:,} settings" if record.candidates > 1 else "for these settings alone"
    )
    one = "one λ, one η and one α" if record.prequential else "one λ and one α"
    note_of = note(f"δ = {record.delta:g} in all, {words}; at {one}:")
    return section("How δ is spent", note_of + facts(spent)) + section("What went in", facts(about))
