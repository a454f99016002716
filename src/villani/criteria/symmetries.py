"""The rescaling symmetries of a loss: θ_i → θ_i·R^{e_i} that leave L as it is at every θ, for every R > 0.

`degrees` finds all of them that the graph shows. Unknowns that touch the same tensors in the same way are moved
together: one generator for all channels that a value matrix has, say, rather than one each. The work is linear in the
layers where each symmetry moves a few tensors: a tensor is looked at for those that move it, and for no others.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch

from villani.criteria.degrees import Degrees
from villani.criteria.equations import Form, Rational
from villani.objective.graph import LossGraph

_LARGEST = 1 << 20  # an exponent beyond it is no rescaling that anyone could make
_Place = tuple[int, int]  # a tensor, and 0 or 1: a matrix map has forms of its outputs and of its inputs


@dataclass(frozen=True, eq=False)
class Generator:
    """One one-parameter group of rescalings that leaves L as it is: θ_i → θ_i·R^{e_i}.

    Attributes:
        exponents: index of a tensor in θ → integers e that broadcast to its shape; tensors left out have e = 0. None is
            larger than 2²⁰, so that they are exact in every precision that θ may have.
    """

    exponents: dict[int, torch.Tensor]


def generators(source: LossGraph | Degrees) -> list[Generator]:
    """A basis of the symmetries, in the order of the tensors in θ; unknowns of the same kind are moved together.

    Args:
        source: the graph of the loss, or its degrees; `Degrees.skipped` then says where others may hide.
    """
    found = source if isinstance(source, Degrees) else Degrees(source)
    parts: dict[int, list[torch.Tensor]] = {index: [forms] for index, forms in found.tensors.items()}
    for index, (outputs, inputs) in found.maps.items():
        parts[index] = [outputs.unsqueeze(-1), inputs.unsqueeze(-2)]
    resolved: dict[int, Form] = {}
    pieces = {}
    for index, tensors in sorted(parts.items()):
        for part, forms in enumerate(tensors):
            pieces[index, part] = piece = _Piece(forms)
            for form in piece.known:
                if form not in resolved:
                    resolved[form] = found.equations.resolve(form)
    family_of, count = _families(pieces, resolved)
    sums = {form: _sums(coefficients, family_of) for form, coefficients in resolved.items()}
    scales, beyond = _scales(sums, count)
    exponents: list[dict[int, torch.Tensor]] = [{} for _ in range(count)]
    for index, tensors in sorted(parts.items()):
        moving = {f: None for part in range(len(tensors)) for k in pieces[index, part].known for f in sums[k]}
        for family in moving:
            if family in beyond:
                continue
            values = [pieces[index, part].values(family, sums, scales[family]) for part in range(len(tensors))]
            total = values[0] if len(values) == 1 else _outer(*values)
            if total is not None:
                exponents[family][index] = total
    basis = [Generator(_without_common_factor(e)) for e in exponents if e]
    if beyond:
        touched = {index for (index, _), piece in pieces.items() if any(sums[k].keys() & beyond for k in piece.known)}
        found.skipped.beyond(f"has exponents beyond {_LARGEST}, which are left out", len(beyond), touched)
    return sorted(basis, key=lambda g: min(g.exponents))


class _Piece:
    """Forms of a tensor, or of one side of a matrix map: which occur, and where."""

    def __init__(self, forms: torch.Tensor) -> None:
        known, self._back = forms.unique(return_inverse=True)
        self.known: list[int] = known.tolist()

    def values(self, family: int, sums: Mapping[int, Mapping[int, Rational]], scale: int) -> torch.Tensor | None:
        """Σ of the coefficients of a family's unknowns, scaled, or None where all are zero; as small as broadcasts."""
        found = [int(scale * sums[form].get(family, 0)) for form in self.known]
        if not any(found):
            return None
        values = torch.tensor(found, dtype=torch.float64)[self._back]
        for dim in range(values.dim()):
            if (values == values.narrow(dim, 0, 1)).all():
                values = values.narrow(dim, 0, 1)
        return values


def _families(pieces: Mapping[_Place, _Piece], resolved: Mapping[int, Form]) -> tuple[dict[int, int], int]:
    """The family of every free unknown: those of one family have the same coefficients in the same places."""
    touched: dict[int, set[tuple[_Place, Rational]]] = {}  # unknown → its places, with its coefficients there
    for place, piece in pieces.items():
        for form in piece.known:
            for unknown, coefficient in resolved[form].items():
                touched.setdefault(unknown, set()).add((place, coefficient))
    numbers: dict[frozenset[tuple[_Place, Rational]], int] = {}
    family_of = {}
    for unknown, places in touched.items():
        family_of[unknown] = numbers.setdefault(frozenset(places), len(numbers))
    return family_of, len(numbers)


def _sums(form: Form, family_of: Mapping[int, int]) -> dict[int, Rational]:
    """Family → Σ of the coefficients of its unknowns; without those of sum 0."""
    totals: dict[int, Rational] = {}
    for unknown, coefficient in form.items():
        family = family_of[unknown]
        totals[family] = totals.get(family, 0) + coefficient
    return {family: total for family, total in totals.items() if total}


def _scales(sums: Mapping[int, Mapping[int, Rational]], count: int) -> tuple[list[int], set[int]]:
    """What makes every family's sums whole numbers, and the families whose sums are then larger than `_LARGEST`."""
    of_family: list[set[Rational]] = [set() for _ in range(count)]
    for totals in sums.values():
        for family, total in totals.items():
            of_family[family].add(total)
    scales = [math.lcm(*(total.denominator for total in totals)) for totals in of_family]
    largest = [max((abs(Fraction(total)) for total in totals), default=0) for totals in of_family]
    return scales, {family for family in range(count) if largest[family] * scales[family] > _LARGEST}


def _outer(outputs: torch.Tensor | None, inputs: torch.Tensor | None) -> torch.Tensor | None:
    """Entries of a matrix map: degree of the output minus degree of the input."""
    if outputs is None:
        return None if inputs is None else -inputs
    total = outputs if inputs is None else outputs - inputs
    return total if total.any() else None


def _without_common_factor(exponents: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
    common = math.gcd(*(int(v) for e in exponents.values() for v in e.unique().tolist()))
    return {index: e / common + 0.0 for index, e in exponents.items()}  # without −0
