"""The tables of a certificate, on its page and in the terminal: bounds with their terms, and what went in."""

from villani.commands.certify.record import BoundRecord, CertificatePoint, CertificateRecord, PassPoint
from villani.outwards import lower, upper
from villani.report.elements import Row, Status, facts, note, sections, table
from villani.report.estimates import uncertain
from villani.report.numbers import format_number


def tables(record: CertificateRecord) -> str:
    """Sections of tables, as HTML."""
    behind = "The passes behind them" if record.prequential else "The runs behind them"
    return sections({"Certificates": table(bound_rows(record)), behind: table(run_rows(record))}) + _given(record)


def bound_rows(record: CertificateRecord) -> list[Row]:
    """Every certificate with its terms."""
    if record.prequential:
        return [
            _of(p) | _terms(p.certificate) | {
                "below the start": lower(p.below_start, places=4), "gain": lower(p.gain.value, places=4),
                "": Status(p.certificate.status),
            }
            for p in record.prequential.points
        ]  # fmt: skip
    return [
        _of(point) | {"certificate": f"{name}: {bound.predictor}"} | _terms(bound) | {
            "Monte Carlo": upper(bound.monte_carlo, places=4), "complexity": upper(bound.complexity, places=1),
            "": Status(bound.status),
        }
        for point in record.points for name, bound in point.bounds.items()
    ]  # fmt: skip


def run_rows(record: CertificateRecord) -> list[Row]:
    """The training behind the certificates."""
    if record.prequential:
        return [
            _of(p) | {"loss before training on it": f"{p.loss:.4f}"} | _held_out(p, "last weights, held-out loss")
            | {"‖θ − centre‖": format_number(p.moved, 3), "clipped": f"{p.clipped:.0%}"}
            for p in record.prequential.points
        ]  # fmt: skip
    return [
        _of(p) | {"chains": str(p.chains), "training loss": f"{p.training_loss:.4f}"} | _held_out(p, "held-out loss")
        | {
            "path cost": f"{p.path_cost:,.1f}", "clip's c4": upper(p.clip_complexity, places=1),
            "noise": format_number(p.noise, 3), "‖w‖": format_number(p.moved, 3), "clipped": f"{p.clipped:.0%}",
        }
        for p in record.points
    ]  # fmt: skip


def _of(point: CertificatePoint | PassPoint) -> dict[str, str]:
    rate = {"η": format_number(point.learning_rate)} if isinstance(point, PassPoint) else {}
    return {"λ": format_number(point.weight_decay)} | rate


def _terms(bound: BoundRecord) -> dict[str, str]:
    return {
        "nats per token": upper(bound.value, places=4), "bits": upper(bound.bits, places=4),
        "empirical": f"{bound.empirical:.4f}", "excess": upper(bound.excess, places=4),
        "α": format_number(bound.alpha), "bound": bound.bound,
    }  # fmt: skip


def _held_out(point: CertificatePoint | PassPoint, loss: str) -> dict[str, str]:
    return {loss: uncertain(point.held_out_loss), "held-out bound": upper(point.held_out_bound, places=4)}


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
