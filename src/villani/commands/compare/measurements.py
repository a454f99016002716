"""Measurements side by side: what their ledgers hold of each group, how two are related, and their differences.

A run folder is data that somebody else may have made. Its records say what was measured, its ledger what each group
gave; the two must agree, or nothing is compared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from villani.commands.compare.record import Change, DifferenceRecord, PairRecord
from villani.commands.compare.unlike import unlike
from villani.commands.measure.record import MeasurementRecord
from villani.errors import InputError
from villani.measurement.differences import Point, Relation, difference, psi_weights, same_groups
from villani.measurement.rows import group_sums
from villani.statistics import Array, Estimate, GroupSums, JointEstimate, finite_statistics, sampled_statistics
from villani.work.finished import Finished
from villani.work.records import CONFIDENCE
from villani.work.team import Rows

STATISTICS = ("loss", "gradient_norm_squared", "gradient_dot_parameters", "hessian_trace")  # as in a JointEstimate
_MASKED = {"gradient_dot_parameters", "decayed_norm_squared", "psi"}  # quantities that depend on what decays
_PLACES = ("measure/", "trained/")  # of groups in a ledger, by villani measure and by villani demo
_AGREE = 1e-6  # standard errors by which a record and its ledger may differ, for another machine's rounding


@dataclass(frozen=True, eq=False)
class MeasuredRun:
    """A run of `villani measure`, or of the demo at the point that it trained to.

    Attributes:
        name: of the run.
        record: its measurement.
        point: what can be subtracted.
        missing: why its groups are not known one by one; empty where they are.
    """

    name: str
    record: MeasurementRecord
    point: Point
    missing: str = ""

    @property
    def first(self) -> int:
        """Index of its first group; those before it are a pilot's."""
        return self.record.plan.pilot_groups if self.record.plan else 0

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """λ and s that Ψ was asked at."""
        return [(psi.weight_decay, psi.temperature) for psi in self.record.psi]

    def estimate(self, weights: Array, offset: float = 0.0) -> Estimate:
        """A linear function of the four statistics."""
        return self.point.joint.linear(weights, offset)

    def psi_offset(self, weight_decay: float, temperature: float) -> float:
        """λ²‖mθ‖²/s − λ·d_m, the exact parts of Ψ."""
        record = self.record
        norm = weight_decay**2 * record.decayed_norm_squared / temperature
        return norm - weight_decay * record.objective.decayed_parameters


def measured_run(folder: Path, name: str, record: MeasurementRecord) -> MeasuredRun:
    """A run, with what its ledger says of each group where it has one.

    Raises:
        InputError: a record without error bars, or one that its ledger contradicts.
    """
    estimates = [getattr(record, quantity) for quantity in STATISTICS]
    values, covariance = np.array([e.value for e in estimates]), np.array(record.covariance)
    if covariance.any() and record.degrees_of_freedom <= 0:
        raise InputError(f"{folder}: measured on one group, so that no error is known; measure more --groups")
    if (np.diag(covariance) < 0).any() or not np.array_equal(covariance, covariance.T):
        raise InputError(f"{folder}: its covariance is none; run its command again")
    joint = JointEstimate(values, covariance, record.loss.n, record.degrees_of_freedom, np.zeros((4, 0)))
    try:
        own, sums = _from_ledger(folder, record)
    except InputError as error:
        return MeasuredRun(name, record, Point.of(joint), str(error))
    _check_agreement(folder, joint, own)
    return MeasuredRun(name, record, Point.of(own, sums, finite=record.objective.finite))


def _from_ledger(folder: Path, record: MeasurementRecord) -> tuple[JointEstimate, GroupSums]:
    """The four statistics and what they are made of.

    Raises:
        InputError: no ledger, or not the rows of this record.
    """
    start, finite = record.plan.pilot_groups if record.plan else 0, record.objective.finite
    keys = range(start, start + record.design.groups)
    if len(keys) < (1 if finite else 3):
        raise InputError(f"{folder}: {len(keys)} groups; run its command again")
    with Finished(folder) as ledger:
        for place in _PLACES:
            rows = [*_rows(ledger, f"{place}group/", keys, len(record.tensors))]
            if len(rows) == len(keys):
                sums = group_sums([t.decayed for t in record.tensors], rows, sketched=record.design.sketch is not None)
                if not finite:
                    return sampled_statistics(sums), sums
                whole = ledger.get(f"{place}gradient")
                norm = _checked(whole["norm_squared"], (1,)) if whole else None
                if norm is not None and sums.hessian_trace.shape[1] >= 2:
                    return finite_statistics(sums, float(norm[0])), sums
    raise InputError(f"{folder / 'ledger.sqlite'}: not all of its groups are there; run its command again")


def _rows(ledger: Finished, place: str, keys: Sequence[int], tensors: int) -> Iterator[Rows]:
    """Rows of groups, as far as they are there, of shapes that go together."""
    like: Rows | None = None
    for key in keys:
        row = ledger.get(f"{place}{key}")
        if row is None:
            return
        like = like or row
        own = {name: _checked(row[name], (1,)) for name in ("tokens", "loss")}
        own["dots"] = _checked(row["dots"], (tensors,))
        own["gradient"] = _checked(row["gradient"], like["gradient"].shape)
        own["traces"] = _checked(row["traces"], (*like["traces"].shape[:1], tensors))
        if own["tokens"][0] <= 0 or own["gradient"].ndim != 1 or not own["gradient"].size or not own["traces"].size:
            raise InputError(f"{ledger.directory / 'ledger.sqlite'}: rows without tokens; run its command again")
        yield own


def _checked(array: Array, shape: tuple[int, ...]) -> Array:
    if array.dtype != np.float64 or array.shape != shape or not np.isfinite(array).all():
        raise InputError(f"rows of {array.dtype} {array.shape}, expected float64 {shape}; run its command again")
    return array


def _check_agreement(folder: Path, recorded: JointEstimate, own: JointEstimate) -> None:
    """Refuse a record that its ledger contradicts, up to rounding."""
    scales = np.sqrt(np.diag(own.covariance))
    allowed = _AGREE * scales + 1e-9 * np.abs(own.values)
    for quantity, said, made, most in zip(STATISTICS, recorded.values, own.values, allowed, strict=True):
        if not abs(said - made) <= most:
            raise InputError(
                f"{folder}: records.json says {quantity} = {said:.6g}, and its ledger {made:.6g}: one of them was "
                "changed; run its command again"
            )
    if not (np.abs(recorded.covariance - own.covariance) <= _AGREE * np.outer(scales, scales)).all():
        raise InputError(
            f"{folder}: records.json and its ledger give other standard errors: one of them was changed; run its "
            "command again"
        )


def relation(first: MeasuredRun, second: MeasuredRun) -> tuple[Relation, str]:
    """How the draws of two runs are related, and why."""
    one, other = first.record, second.record
    design = all(getattr(one.design, name) == getattr(other.design, name) for name in ("groups", "sequences", "block"))
    same = one.text.token_checksum == other.text.token_checksum and first.first == second.first and design
    same = same and one.design.seed == other.design.seed and one.objective.finite == other.objective.finite
    if same and same_groups(first.point, second.point):
        what = "The groups are the whole data set, with the same probes" if one.objective.finite else "Both runs"
        measured = "" if one.objective.finite else f" measured the same {one.design.groups} groups of text"
        return "paired", (
            f"{what}{measured}: their differences are taken group by group, so that what the two share cancels (joint "
            "delete-one-group jackknife)."
        )
    if one.design.seed != other.design.seed:
        return "independent", (
            f"The runs drew their groups from different seeds, {one.design.seed} and {other.design.seed}: nothing "
            "random is shared, and variances add."
        )
    why = "the groups are not the same"
    if same:
        missing = first.missing or second.missing
        why = f"the groups are the same, but are not known one by one ({missing})" if missing else (
            "the groups are the same, but not the draws on them"
        )  # fmt: skip
    return "dependent", (
        f"Both runs have the seed {one.design.seed}, and {why}: some of what is random may be shared. Standard errors "
        "add, which is enough whatever is shared. Measure both on the same text with the same design for paired "
        "differences, or with different --seed for independent ones."
    )


# of a quantity, whether nothing differs that it depends on, and other fields of its record
_Difference = tuple[Estimate, bool, dict[str, Any]]


def compare_measurements(runs: Sequence[MeasuredRun]) -> tuple[list[PairRecord], int]:
    """The first run against each other one, and how many intervals hold together."""
    reference = runs[0]
    with np.errstate(all="ignore"):  # what overflows is refused by the record
        made = [(run, relation(reference, run), [*_differences(reference, run)]) for run in runs[1:]]
        count = sum(bool(own.sem) and not same for *_, differences in made for own, same, _ in differences)
        level = 1 - (1 - CONFIDENCE) / max(count, 1)
        pairs = [
            PairRecord(
                run=run.name, method=method, reason=reason,
                unlike=[*unlike(reference.record, run.record), *_designs(reference, run)],
                differences=[_recorded(*one, level) for one in differences],
            )
            for run, (method, reason), differences in made
        ]  # fmt: skip
    return pairs, count


def _differences(first: MeasuredRun, second: MeasuredRun) -> Iterator[_Difference]:
    one, other = first.record, second.record
    method = relation(first, second)[0]
    same = one.provenance.parameter_checksum == other.provenance.parameter_checksum
    same = same and one.text.token_checksum == other.text.token_checksum
    masked = [t.decayed for t in one.tensors] == [t.decayed for t in other.tensors]

    def of(
        quantity: str, weights: tuple[Array, Array], offsets: tuple[float, float] = (0.0, 0.0), equal: bool = True,
        **pair: tuple[float, float],
    ) -> _Difference:  # fmt: skip
        own = difference(first.point, second.point, weights, method, offsets[1] - offsets[0])
        reference, changed = first.estimate(weights[0], offsets[0]), second.estimate(weights[1], offsets[1])
        fields = {"quantity": quantity, "reference": reference, "other": changed, **pair}
        return own, same and equal and (masked or quantity not in _MASKED), fields

    for quantity, unit in zip(STATISTICS, np.eye(4), strict=True):
        yield of(quantity, (unit, unit))
    nothing = np.zeros(4)
    yield of("decayed_norm_squared", (nothing, nothing), (one.decayed_norm_squared, other.decayed_norm_squared))
    for before, after in _psi_pairs(first, second):
        yield of(
            "psi", (psi_weights(*before), psi_weights(*after)),
            (first.psi_offset(*before), second.psi_offset(*after)), before == after,
            weight_decay=(before[0], after[0]), temperature=(before[1], after[1]),
        )  # fmt: skip


def _psi_pairs(first: MeasuredRun, second: MeasuredRun) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """(λ, s) of both: the first that each was asked at, then all that both were asked at."""
    if not (first.pairs and second.pairs):
        return []
    common = [(pair, pair) for pair in first.pairs if pair in second.pairs]
    return [*dict.fromkeys([(first.pairs[0], second.pairs[0]), *common])]


def _recorded(own: Estimate, same: bool, fields: dict[str, Any], level: float) -> DifferenceRecord:
    low, high = own.interval(level)
    change: Change = "unchanged" if same or low == high == 0 else "undecided"
    if not same and not low <= 0 <= high:
        change = "rises" if low > 0 else "falls"
    freedom = own.degrees_of_freedom if own.sem else None
    return DifferenceRecord.of(own, interval=(low, high), degrees_of_freedom=freedom, change=change, **fields)


def _designs(first: MeasuredRun, second: MeasuredRun) -> Iterator[str]:
    """What differs between two designs, beside what every command has."""
    one, other = first.record.design, second.record.design
    for name, words in (("trace", "way to the trace"), ("probes", "probes in a group"), ("products", "products")):
        if getattr(one, name) != getattr(other, name):
            yield f"{words}: {getattr(one, name)} and {getattr(other, name)}"
    checksums = {run.record.text.token_checksum for run in (first, second) if run.record.objective.finite}
    if first.record.objective.finite and second.record.objective.finite and len(checksums) > 1:
        yield "data set: not the same blocks, and what they differ by is in no interval"
