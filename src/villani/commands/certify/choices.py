"""Which certificate for whom: what each is about, what it costs and needs, and its figure in this run."""

from villani.commands.certify.record import CertificatePoint, CertificateRecord, PassPoint
from villani.commands.certify.results import best_bound
from villani.outwards import upper
from villani.report.elements import Row

_HEADINGS = ("certificate", "about", "nats per token", "what it costs", "what it needs")
_PASS = (
    "--kind prequential", "the iterates of one epoch, each on what came next; observed contexts",
    "nothing but chance", "the text's order, one pass, settings fixed before; any optimiser",
)  # fmt: skip
_PATH = (
    "--kind path", "the very weights that a noisy run ended at; observed contexts",
    "Σ η²‖g − h‖²/(2τ²) nats of complexity, and what the noise costs in loss", "noise in every step",
)  # fmt: skip
_LAW = (
    "c4", "weights drawn afresh by such a run; observed contexts", "complexity, and Monte Carlo over many runs",
    "noise, a clip, a start in the prior, λ > 0",
)  # fmt: skip
_CENTRE = (
    "of weights that never saw the text", "the prior's centre, or the frozen start; observed contexts",
    "nothing but chance", "your word, or a text that came before",
)  # fmt: skip
_HELD_OUT = (
    "held-out bound", "the last weights; held-out contexts", "the text that is held out, {tokens:,} tokens here",
    "text that training never saw",
)  # fmt: skip
_SAME = (
    "held-out bound of as many tokens as are certified", "the same, were their losses like those that there are",
    "as much text again", "the same",
)  # fmt: skip


def certificate_choices(record: CertificateRecord) -> list[Row]:
    """Every kind, with its figure at the best λ and η of this run and the record's δ, where there is one."""
    best = best_bound(record)
    point = best[0] if best else record.points[0] if record.points else None
    noisy = point if isinstance(point, CertificatePoint) else None
    passed = point if isinstance(point, PassPoint) else None
    return [
        _row(_PASS, passed and passed.certificate.value),
        _row(_PATH, noisy and noisy.path and noisy.path.value),
        _row(_LAW, noisy and noisy.chain and noisy.chain.value),
        _row(_CENTRE, record.prior_bound),
        _row(_HELD_OUT, point and point.held_out_bound, tokens=record.held_out_tokens),
        _row(_SAME, point and point.held_out_bound_of_as_many),
    ]


def advice(record: CertificateRecord) -> str:
    """Whether a held-out bound is the better one here, in words."""
    best = best_bound(record)
    if best is None:
        return ""
    point, bound = best
    of = "as many tokens held out" if point.held_out_bound_of_as_many is not None else "the text held out here"
    other = point.held_out_bound if point.held_out_bound_of_as_many is None else point.held_out_bound_of_as_many
    words = (
        f"For the last weights, with {of}, a held-out bound of {upper(other, places=3)} at the same δ stands against "
        f"{upper(bound.value, places=3)}: "
    )
    if other < bound.value:
        return words + "the held-out bound is better. A certificate's use is that all of the text was trained on."
    return words + "the certificate is lower, and all of the text was trained on."


def _row(words: tuple[str, ...], value: float | None, **more: int | None) -> Row:
    name, about, cost, need = words
    shown = upper(value, places=4) if value is not None else "not of this run"
    held = more.get("tokens")
    cost = cost.format(tokens=held) if held else cost.split(", {")[0]
    return dict(zip(_HEADINGS, (name, about, shown, cost, need), strict=True))
