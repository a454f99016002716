"""The rescaling symmetries of a loss: θ_i → θ_i·R^{e_i} that leave L as it is at every θ, for every R > 0.

`degrees` finds all of them that the graph shows. Unknowns that touch the same tensors in the same way are moved
together: one generator for all channels that a value matrix has, say, rather than one each.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from villani.criteria.degrees import Degrees
from villani.criteria.equations import Form
from villani.landscape.graph import LossGraph

_LARGEST = 1 << 20  # an exponent beyond it is no rescaling that anyone could make


@dataclass(frozen=True, eq=False)
class Generator:
    """One one-parameter group of rescalings that leaves L as it is: θ_i → θ_i·R^{e_i}.

    Attributes:
        exponents: index of a tensor in θ → integers e that broadcast to its shape; tensors left out have e = 0. None is
            larger than 2²⁰, so that they are exact in every precision that θ may have.
    """

    exponents: dict[int, torch.Tensor]


def generators(graph: LossGraph) -> list[Generator]:
    """A basis of the symmetries, in the order of the tensors in θ; unknowns of the same kind are moved together."""
    found = Degrees(graph)
    parts: dict[int, list[torch.Tensor]] = {index: [forms] for index, forms in found.tensors.items()}
    for index, (outputs, inputs) in found.maps.items():
        parts[index] = [outputs[:, None], inputs[None, :]]
    resolved: dict[int, Form] = {}
    touched: dict[int, dict[tuple[int, int], set[Fraction]]] = {}  # unknown → (tensor, part) → its coefficients
    for index, pieces in sorted(parts.items()):
        for place, forms in enumerate(pieces):
            for form in forms.unique().tolist():
                if form not in resolved:
                    resolved[form] = found.equations.resolve(form)
                for unknown, coefficient in resolved[form].items():
                    touched.setdefault(unknown, {}).setdefault((index, place), set()).add(coefficient)
    families: dict[Any, set[int]] = {}
    for unknown, places in touched.items():
        signature = frozenset((place, frozenset(coefficients)) for place, coefficients in places.items())
        families.setdefault(signature, set()).add(unknown)
    basis = []
    for family in families.values():
        used = {form for pieces in parts.values() for forms in pieces for form in forms.unique().tolist()}
        scale = _scale([resolved[form] for form in used], family)
        if scale is None:
            continue
        exponents: dict[int, torch.Tensor] = {}
        for index, pieces in sorted(parts.items()):
            values = [_values(forms, resolved, family, scale) for forms in pieces]
            total = values[0] if len(values) == 1 else _outer(*values)
            if total is not None:
                exponents[index] = total
        if exponents:
            basis.append(Generator(_without_common_factor(exponents)))
    return sorted(basis, key=lambda g: min(g.exponents))


def _scale(forms: list[Form], family: set[int]) -> int | None:
    """What makes the sums of a family's coefficients whole numbers; None where these are larger than `_LARGEST`."""
    sums = {_sum(form, family) for form in forms}
    least = math.lcm(*(c.denominator for c in sums))
    return least if all(abs(c * least) <= _LARGEST for c in sums) else None


def _sum(form: Form, family: set[int]) -> Fraction:
    return sum((c for u, c in form.items() if u in family), Fraction(0))


def _values(forms: torch.Tensor, resolved: dict[int, Form], family: set[int], scale: int) -> torch.Tensor | None:
    """Σ of the coefficients of a family's unknowns, scaled, or None where all are zero; as small as it broadcasts."""
    known, back = forms.unique(return_inverse=True)
    sums = [int(scale * _sum(resolved[form], family)) for form in known.tolist()]
    if not any(sums):
        return None
    values = torch.tensor(sums, dtype=torch.float64)[back]
    for dim in range(values.dim()):
        if (values == values.narrow(dim, 0, 1)).all():
            values = values.narrow(dim, 0, 1)
    return values


def _outer(outputs: torch.Tensor | None, inputs: torch.Tensor | None) -> torch.Tensor | None:
    """Entries of a matrix map: degree of the output minus degree of the input."""
    if outputs is None:
        return None if inputs is None else -inputs
    total = outputs if inputs is None else outputs - inputs
    return total if total.any() else None


def _without_common_factor(exponents: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
    common = math.gcd(*(int(v) for e in exponents.values() for v in e.unique().tolist()))
    return {index: e / common + 0.0 for index, e in exponents.items()}  # without −0
