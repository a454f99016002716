"""A comparison in sentences and rows, for the page and the terminal alike."""

from collections.abc import Sequence

from villani.commands.audit.tables import CRITERIA
from villani.commands.compare.record import (
    AuditedRun,
    ComparisonRecord,
    DifferenceRecord,
    EigenvalueDifference,
    PairRecord,
    SpectrumPair,
)
from villani.outwards import UNAVAILABLE, lower, upper
from villani.report.elements import Row, Status
from villani.report.estimates import interval, uncertain
from villani.report.numbers import format_bounded, format_interval, format_number, format_uncertain, listed

NAMES = {
    "loss": "the loss", "gradient_norm_squared": "‖∇L‖²", "gradient_dot_parameters": "⟨∇L, mθ⟩",
    "hessian_trace": "tr ∇²L", "decayed_norm_squared": "‖mθ‖²", "psi": "Ψ",
}  # fmt: skip
_TOLD = ("hessian_trace", "loss", "gradient_norm_squared", "psi")  # in a headline, in this order
_MOST = 3  # runs that a headline tells of
_CHANGES = {"falls": "falls", "rises": "rises", "undecided": "cannot be told apart", "unchanged": "is the same"}


def headline(record: ComparisonRecord) -> str:
    """What changed, in one sentence a run."""
    reference = record.runs[0].name
    if record.compared == "audit":
        return _audits(record.audits)
    if record.compared == "spectrum":
        sentences = [_spectrum(reference, pair) for pair in record.spectra]
    else:
        sentences = [_pair(reference, pair) for pair in record.pairs]
    more = len(sentences) - _MOST
    rest = [f"{more} more {'run stands' if more == 1 else 'runs stand'} below."] if more > 0 else []
    return " ".join([*sentences[:_MOST], *rest])


def _pair(reference: str, pair: PairRecord) -> str:
    told = [next((d for d in pair.differences if d.quantity == name), None) for name in _TOLD]
    moved = [_moved(d) for d in told if d and d.change in ("falls", "rises")]
    other = {change: [name(d) for d in told if d and d.change == change] for change in ("undecided", "unchanged")}
    said = ["; ".join(moved)] if moved else []
    said += [f"{listed(other['undecided'])} cannot be told apart"] if other["undecided"] else []
    said += [f"the same weights give the same figures: {listed(other['unchanged'])}"] if other["unchanged"] else []
    return f"Between {reference} and {pair.run} {'; '.join(said)}."


def _moved(difference: DifferenceRecord) -> str:
    """`falls by 512 ± 11, [480, 544]`; the interval is of the size of the change."""
    low, high = difference.interval
    falls = difference.change == "falls"
    value, ends = (-difference.value, (-high, -low)) if falls else (difference.value, (low, high))
    reach = f", {format_interval(*ends)}" if low < high else ""
    return f"{name(difference)} {difference.change} by {format_uncertain(value, difference.sem)}{reach}"


def name(difference: DifferenceRecord) -> str:
    """A quantity; Ψ with its λ and s."""
    if difference.weight_decay is None or difference.temperature is None:
        return NAMES[difference.quantity]
    decays, temperatures = (
        [format_number(x) for x in pair] for pair in (difference.weight_decay, difference.temperature)
    )
    where = (" → ".join(dict.fromkeys(pair)) for pair in (decays, temperatures))
    return "Ψ (λ = {}, s = {})".format(*where)


def _spectrum(reference: str, pair: SpectrumPair) -> str:
    ends = [e for e in pair.eigenvalues if abs(e.rank) == 1] or pair.eigenvalues[:1]
    said = [f"{_rank(e)} {_turned(e)}" for e in ends]
    return f"Between {reference} and {pair.run} {'; '.join(said)}, if no eigenvalue was missed."


def _rank(eigenvalue: EigenvalueDifference) -> str:
    if abs(eigenvalue.rank) == 1:
        return f"the {'largest' if eigenvalue.rank == 1 else 'smallest'} eigenvalue"
    return f"eigenvalue {eigenvalue.rank}".replace("-", "−")


def _turned(eigenvalue: EigenvalueDifference) -> str:
    if eigenvalue.change == "undecided":
        return "cannot be told apart within the bounds"
    size, reach = abs(eigenvalue.difference), eigenvalue.reference_bound + eigenvalue.other_bound
    return f"{eigenvalue.change} by {format_bounded(size, reach)}"


def _audits(audits: Sequence[AuditedRun]) -> str:
    first = audits[0]
    criteria = {key: label.split(" ")[0] for key, label in CRITERIA.items()}
    changed = [
        f"{label}: {getattr(first, key)} for {first.run}, {getattr(other, key)} for {other.run}"
        for other in audits[1:]
        for key, label in criteria.items()
        if getattr(first, key) != getattr(other, key)
    ]
    verdicts = f"the verdicts differ in {'; '.join(changed)}" if changed else "all verdicts are the same"
    return f"Of {len(audits)} audits {verdicts}. {_thresholds(audits)}"


def _thresholds(audits: Sequence[AuditedRun]) -> str:
    fails = [f"for {a.run} for every s > {upper(a.refuted_above, 3)}" for a in audits if a.refuted_above is not None]
    none = [a.run for a in audits if a.refuted_above is None]
    said = [f"(iv) fails {listed(fails)}"] if fails else []
    said += [f"for {listed(none)} no s was shown from which (iv) fails"] if none else []
    text = "; ".join(said)
    return f"{text[:1].upper()}{text[1:]}."


def _column(run: str) -> str:
    """The heading of a run's column, which no other column has, whatever the folder is called."""
    return f"in {run}"


def difference_rows(pair: PairRecord, reference: str, confidence: float) -> list[Row]:
    """A row a difference."""
    return [
        {
            "statistic": name(d), _column(reference): uncertain(d.reference), _column(pair.run): uncertain(d.other),
            "difference ± standard error": uncertain(d), f"all hold at once, {100 * confidence:g} %": interval(d),
            "change": _CHANGES[d.change],
        }
        for d in pair.differences
    ]  # fmt: skip


def eigenvalue_rows(pair: SpectrumPair, reference: str) -> list[Row]:
    """A row a rank."""
    return [
        {
            "rank": f"{e.rank}".replace("-", "−"), _column(reference): format_bounded(e.reference, e.reference_bound),
            _column(pair.run): format_bounded(e.other, e.other_bound),
            "difference lies in": f"[{lower(e.interval[0], 4)}, {upper(e.interval[1], 4)}]",
            "change": _CHANGES[e.change],
        }
        for e in pair.eigenvalues
    ]  # fmt: skip


def audit_rows(audits: Sequence[AuditedRun]) -> list[Row]:
    """A row a criterion, a column a run."""
    cells: dict[str, list[str]] = {
        "λ": [format_number(a.weight_decay) for a in audits],
        "s": [format_number(a.temperature) for a in audits],
        **{label: [Status(getattr(a, key)) for a in audits] for key, label in CRITERIA.items()},
        "(iv) fails for every s above": [
            UNAVAILABLE if a.refuted_above is None else upper(a.refuted_above, 3) for a in audits
        ],
    }
    return [
        {"criterion": label, **{_column(a.run): cell for a, cell in zip(audits, row, strict=True)}}
        for label, row in cells.items()
    ]
