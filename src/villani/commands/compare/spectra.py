"""Spectra and audits side by side."""

from collections.abc import Sequence

from villani.commands.audit.record import AuditRecord
from villani.commands.compare.record import AuditedRun, Change, EigenvalueDifference, SpectrumPair
from villani.commands.compare.unlike import unlike
from villani.commands.spectrum.record import EigenvalueRecord, SpectrumRecord
from villani.errors import InputError


def compare_spectra(names: Sequence[str], records: Sequence[SpectrumRecord]) -> list[SpectrumPair]:
    """The first spectrum against each other one, rank by rank.

    Raises:
        InputError: spectra of different matrices, or without a rank in common.
    """
    return [_pair(names[0], records[0], name, record) for name, record in zip(names[1:], records[1:], strict=True)]


def _pair(reference: str, first: SpectrumRecord, name: str, second: SpectrumRecord) -> SpectrumPair:
    for what in ("operator", "matrix"):
        one, other = getattr(first.design, what), getattr(second.design, what)
        if one != other:
            raise InputError(
                f"{name} has eigenvalues of another matrix than {reference} ({what} {other}, not {one}): compare "
                "spectra of one"
            )
    ranks = {eigenvalue.rank: eigenvalue for eigenvalue in second.eigenvalues}
    common = [(one, ranks[one.rank]) for one in first.eigenvalues if one.rank in ranks]
    if not common:
        raise InputError(f"{name} and {reference} have no rank of an eigenvalue in common: give both the same --top")
    return SpectrumPair(
        run=name, same_groups=first.text.token_checksum == second.text.token_checksum,
        unlike=[*unlike(first, second)], eigenvalues=[_difference(one, other) for one, other in common],
    )  # fmt: skip


def _difference(one: EigenvalueRecord, other: EigenvalueRecord) -> EigenvalueDifference:
    value, reach = other.value - one.value, one.bound + other.bound
    low, high = value - reach, value + reach
    change: Change = "rises" if low > 0 else "falls" if high < 0 else "undecided"
    return EigenvalueDifference(
        rank=one.rank, reference=one.value, reference_bound=one.bound, other=other.value, other_bound=other.bound,
        difference=value, interval=(low, high), change=change,
    )  # fmt: skip


def audited(name: str, record: AuditRecord) -> AuditedRun:
    """The verdicts of one audit."""
    verdicts = {
        criterion: getattr(record, criterion).verdict
        for criterion in ("smoothness", "growth", "tails", "differential_growth")
    }
    return AuditedRun(
        run=name, weight_decay=record.objective.weight_decay, temperature=record.temperature, villani=record.villani,
        refuted_above=record.differential_evidence.refuted_above, **verdicts,
    )  # fmt: skip
