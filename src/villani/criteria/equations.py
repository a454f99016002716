"""Homogeneous linear equations over the rationals, solved as they come in."""

from fractions import Fraction

Form = dict[int, Fraction]  # unknown → coefficient


class Equations:
    """Linear forms in unknowns, kept once each, and the homogeneous equations between them."""

    def __init__(self) -> None:
        self.forms: list[Form] = [{}]
        self._ids: dict[frozenset[tuple[int, Fraction]], int] = {frozenset(): 0}
        self._unknowns = 0
        self._solved: dict[int, Form] = {}

    def unknown(self) -> int:
        """The form of a new unknown."""
        self._unknowns += 1
        return self.intern({self._unknowns: Fraction(1)})

    def intern(self, form: Form) -> int:
        """The number of a form."""
        key = frozenset(form.items())
        if key not in self._ids:
            self._ids[key] = len(self.forms)
            self.forms.append(form)
        return self._ids[key]

    def combine(self, a: int, b: int, scale: Fraction = Fraction(1)) -> int:
        """a + scale·b."""
        total = dict(self.forms[a])
        _add_to(total, self.forms[b], scale)
        return self.intern(total)

    def times(self, a: int, scale: Fraction) -> int:
        """scale·a."""
        return self.combine(0, a, scale)

    def demand_equal(self, a: int, b: int) -> None:
        """a = b from now on."""
        if a != b:
            rest = self.resolve(self.combine(a, b, Fraction(-1)))
            if rest:
                pivot = max(rest)
                scale = rest.pop(pivot)
                self._solved[pivot] = {u: -c / scale for u, c in rest.items()}

    def resolve(self, a: int) -> Form:
        """The form in unknowns that are free so far."""
        found = dict(self.forms[a])
        while known := next((u for u in found if u in self._solved), 0):
            _add_to(found, self._solved[known], found.pop(known))
        return found


def _add_to(form: Form, other: Form, scale: Fraction) -> None:
    for unknown, coefficient in other.items():
        total = form.get(unknown, Fraction(0)) + scale * coefficient
        if total:
            form[unknown] = total
        else:
            form.pop(unknown, None)
