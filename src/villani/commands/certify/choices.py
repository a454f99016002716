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
_MIXTURE = (
    "--iid-documents", "a mixture of iterates of a pass; a new document", "one more scoring, K files of weights",
    "documents that are independent draws of one law, by your word",
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
    "held-out bound", "the last weights; held-out contexts", "the text that is held out",
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
    passes = record.prequential.points if record.prequential else []
    return [
        _row(_PASS, passed.certificate.value if passed else None),
        _row(_MIXTURE, min((p.mixture.certificate.value for p in passes if p.mixture), default=None)),
        _row(_PATH, noisy.path.value if noisy and noisy.path else None),
        _row(_LAW, noisy.chain.value if noisy and noisy.chain else None),
        _row(_CENTRE, record.prior_bound),
        _row(_HELD_OUT, point.held_out_bound if point else None),
        _row(_SAME, point.held_out_bound_of_as_many if point else None),
    ]


def advice(record: CertificateRecord) -> str:
    """Whether a held-out bound is the better one here, in words."""
    best = best_bound(record)
    if best is None:
        return ""
    point, bound = best
    held_out, as_many = point.held_out_bound, point.held_out_bound_of_as_many
    words = (
        f"Of the last weights, the held-out bound at the same δ is {upper(held_out, places=3)}"
        + (f" on {record.held_out_tokens:,} tokens" if record.held_out_tokens else "")
        + (f", and would be {upper(as_many, places=3)} on {record.tokens:,}" if as_many is not None else "")
        + f". What is certified, of {bound.predictor}, is {upper(bound.value, places=3)}: "
    )
    if min(held_out, as_many or held_out) < bound.value:
        return words + "a held-out bound is better. What a certificate has is that all of the text was trained on."
    return words + "the certificate is lower, and all of the text was trained on."


def _row(words: tuple[str, ...], value: float | None) -> Row:
    name, about, cost, need = words
    shown = upper(value, places=4) if value is not None else "not of this run"
    return dict(zip(_HEADINGS, (name, about, shown, cost, need), strict=True))
