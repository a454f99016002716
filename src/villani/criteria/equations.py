"""Homogeneous linear equations over the rationals, solved as they come in.

Every equation is solved for its newest unknown, so that what is solved and how does not depend on the order in which
equations come: it is the one reduced echelon form. Rows are sparse, and are brought up to date when they are looked at,
with what they refer to, once for each change.
"""

from fractions import Fraction

Rational = int | Fraction  # whole numbers as int, which is many times faster
Form = dict[int, Rational]  # unknown → coefficient


class Equations:
    """Linear forms in unknowns, kept once each, and the homogeneous equations between them."""

    def __init__(self) -> None:
        self.forms: list[Form] = [{}]
        self._ids: dict[frozenset[tuple[int, Rational]], int] = {frozenset(): 0}
        self._unknowns = 0
        self._solved: dict[int, Form] = {}

    def unknown(self) -> int:
        """The form of a new unknown."""
        self._unknowns += 1
        return self.intern({self._unknowns: 1})

    def intern(self, form: Form) -> int:
        """The number of a form."""
        key = frozenset(form.items())
        number = self._ids.setdefault(key, len(self.forms))
        if number == len(self.forms):
            self.forms.append(form)
        return number

    def combine(self, a: int, b: int, scale: Rational = 1) -> int:
        """a + scale·b."""
        if b == 0 or (a == 0 and scale == 1):
            return a or b
        total = dict(self.forms[a])
        _add_to(total, self.forms[b], _whole(scale))
        return self.intern(total)

    def times(self, a: int, scale: Rational) -> int:
        """scale·a."""
        return self.combine(0, a, scale)

    def demand_equal(self, a: int, b: int) -> None:
        """a = b from now on."""
        if a != b:
            difference = dict(self.forms[a])
            _add_to(difference, self.forms[b], -1)
            rest = self._reduced(difference)
            if rest:
                pivot = max(rest)
                scale = -rest.pop(pivot)
                self._solved[pivot] = {u: _over(c, scale) for u, c in rest.items()}

    def resolve(self, a: int) -> Form:
        """The form in unknowns that are free so far."""
        return self._reduced(self.forms[a])

    def _reduced(self, form: Form) -> Form:
        found = dict(form)
        for unknown in form:
            if unknown in self._solved:
                _add_to(found, self._row(unknown), found.pop(unknown))
        return found

    def _row(self, unknown: int) -> Form:
        """What an unknown that is solved for is, in free unknowns; rows on the way there are brought up to date too."""
        waiting = [unknown]
        while waiting:
            row = self._solved[waiting[-1]]
            solved = [u for u in row if u in self._solved]
            behind = [u for u in solved if not self._solved.keys().isdisjoint(self._solved[u])]
            if behind:  # rows refer to older unknowns alone, so that this ends
                waiting += behind
                continue
            for u in solved:
                _add_to(row, self._solved[u], row.pop(u))
            waiting.pop()
        return self._solved[unknown]


def _add_to(form: Form, other: Form, scale: Rational) -> None:
    for unknown, coefficient in other.items():
        total = _whole(form.get(unknown, 0) + scale * coefficient)
        if total:
            form[unknown] = total
        else:
            form.pop(unknown, None)


def _over(a: Rational, b: Rational) -> Rational:
    return a * b if b in (1, -1) else _whole(Fraction(a) / b)


def _whole(value: Rational) -> Rational:
    return value if isinstance(value, int) or value.denominator != 1 else value.numerator
