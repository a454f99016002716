"""Bounds as text, rounded away from safety: an upper bound up, a lower bound down. No torch.

`report/numbers.py` rounds estimates to the nearest. What is rounded here is the shortest decimal that names the float,
which is what `records.json` has.
"""

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

UNAVAILABLE = "—"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_BEYOND = 300  # powers of ten that are written as such
_PLAIN = 1e15  # from which on places behind the point say nothing
_LONG = 1e6  # exponents whose own digits say nothing


def upper(value: float | None, digits: int = 6, places: int | None = None) -> str:
    """An upper bound: never less than `value`, to `digits` significant digits, or to `places` behind the point.

    From 10¹⁵ on it is `digits`, whatever was asked for. A dash where there is none, or none that is finite.
    """
    return _outwards(value, digits, places, ROUND_CEILING)


def lower(value: float | None, digits: int = 6, places: int | None = None) -> str:
    """A lower bound: never more than `value`; as `upper`."""
    return _outwards(value, digits, places, ROUND_FLOOR)


def upper_power(log10: float, digits: int = 6) -> str:
    """10^log10 as an upper bound: 0.12, 3010, 4.53·10⁶, 10^1,234.5 beyond floats, or 10^(7.17·10⁹)."""
    return _power(log10, digits, ROUND_CEILING)


def lower_power(log10: float, digits: int = 6) -> str:
    """10^log10 as a lower bound; as `upper_power`."""
    return _power(log10, digits, ROUND_FLOOR)


def plain(text: str, strip: bool = False) -> str:
    """A typographic minus, no negative zero, and (with `strip`) no trailing zeros behind the point."""
    if strip and "." in text:
        text = text.rstrip("0").rstrip(".")
    if not text.strip("-0.,"):
        text = text.lstrip("-")
    return text.replace("-", "−")


def ten_to(power: int) -> str:
    """10 with an exponent."""
    return "10" + str(power).translate(_SUPERSCRIPTS)


def decimal(value: float) -> Decimal:
    """The shortest decimal that names a float."""
    return Decimal(repr(float(value)))


def _outwards(value: float | None, digits: int, places: int | None, rounding: str, most: int = 7) -> str:
    if value is None or not math.isfinite(value):
        return UNAVAILABLE
    exact = decimal(value)
    if places is not None and abs(exact) < _PLAIN:
        return plain(f"{exact.quantize(Decimal(1).scaleb(-places), rounding):,.{places}f}")
    if not exact:
        return "0"
    power = exact.adjusted()
    place = power - digits + 1
    if power < most:  # all digits before the point are shown
        place = min(place, 0)
    rounded = exact.quantize(Decimal(1).scaleb(place), rounding)
    power = rounded.adjusted() if rounded else 0
    if -4 <= power < most:
        return plain(f"{rounded:f}", strip=True)
    return f"{plain(f'{rounded.scaleb(-power):f}', strip=True)}·{ten_to(power)}"


def _power(log10: float, digits: int, rounding: str) -> str:
    if not math.isfinite(log10):
        return UNAVAILABLE
    if abs(log10) >= _LONG:
        return f"10^({_outwards(log10, 3, None, rounding, 6)})"
    if abs(log10) >= _BEYOND:
        return "10^" + plain(f"{decimal(log10).quantize(Decimal('0.1'), rounding):,.1f}")
    return _outwards(float(f"{10.0**log10:.12g}"), digits, None, rounding, 6)  # a logarithm has no further digits
