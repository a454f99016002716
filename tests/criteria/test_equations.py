"""Linear equations over the rationals, against dense elimination."""

import random
from fractions import Fraction
from itertools import pairwise

import pytest

from villani.criteria.equations import Equations


def echelon(rows, count):
    """The reduced echelon form, newest unknown first, over fractions: dense Gauss–Jordan elimination."""
    rows, pivots = [list(map(Fraction, row)) for row in rows], {}
    for column in reversed(range(count)):
        row = next((r for r in rows if r[column] and not any(r is p for p in pivots.values())), None)
        if row is None:
            continue
        row[:] = [v / row[column] for v in row]
        for other in rows:
            if other is not row and other[column]:
                factor = other[column]
                other[:] = [a - factor * b for a, b in zip(other, row, strict=True)]
        pivots[column] = row
    return pivots


@pytest.mark.parametrize("seed", range(6))
def test_equations_are_solved_as_dense_elimination_solves_them(seed):
    rng, count = random.Random(seed), 12
    rows = [[rng.choice((0, 0, 0, 1, -1, 2, 3)) for _ in range(count)] for _ in range(7)]
    equations = Equations()
    unknowns = [equations.unknown() for _ in range(count)]
    for row in rows:
        form = 0
        for unknown, coefficient in zip(unknowns, row, strict=True):
            form = equations.combine(form, unknown, coefficient)
        equations.demand_equal(form, 0)
    pivots = echelon(rows, count)
    for place, unknown in enumerate(unknowns):
        expected = {place + 1: 1}
        if place in pivots:
            expected = {i + 1: -c for i, c in enumerate(pivots[place]) if c and i != place}
        assert equations.resolve(unknown) == expected


def test_long_chains_are_followed_once():
    """Each unknown equal to the one before, told from the newest on: rows are chains of all lengths."""
    equations, count = Equations(), 20_000
    unknowns = [equations.unknown() for _ in range(count)]
    for older, newer in reversed(list(pairwise(unknowns))):
        equations.demand_equal(newer, older)
    assert all(equations.resolve(u) == {1: 1} for u in reversed(unknowns))


def test_forms_are_rational_and_stored_once():
    equations = Equations()
    a, b = equations.unknown(), equations.unknown()
    third = equations.times(a, Fraction(1, 3))
    assert equations.forms[third] == {1: Fraction(1, 3)}
    assert equations.times(third, 3) == a, "the same form has the same number, and whole numbers are int"
    assert isinstance(equations.forms[a][1], int)
    total = equations.combine(a, b, -2)
    assert equations.combine(total, b, 2) == a
    assert equations.combine(a, a, -1) == 0
    equations.demand_equal(equations.times(b, 3), equations.times(a, 2))  # b = ⅔·a
    assert equations.resolve(total) == {1: Fraction(-1, 3)}
