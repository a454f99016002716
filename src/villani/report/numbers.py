"""Numbers for people: rounded by their own error. Machines read the raw ones in `records.json`.

The page does the same rounding in JavaScript (`template.html`); `tests/report` holds the two together.
"""

import math
from collections.abc import Sequence
from decimal import Decimal

UNAVAILABLE = "—"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MOST_DIGITS = 12  # an error this far below the value is shown beside it, not by rounding the value to it


def format_number(value: float, digits: int = 6) -> str:
    """`value` to `digits` significant digits, as 0.001, 2195328 or 3.1·10⁷; a dash if it is not finite."""
    if not math.isfinite(value):
        return UNAVAILABLE
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = int(exponent)
    if -4 <= power < 7:
        return _plain(f"{value:.{max(digits - 1 - power, 0)}f}", strip=True)
    return f"{_plain(mantissa, strip=True)}·{_ten_to(power)}"


def format_uncertain(value: float, sem: float) -> str:
    """`value ± sem`, both cut at the first digit of `sem` (the second, if the first is 1): (−3.1 ± 0.2)·10⁵.

    A `sem` of 0 means that the number is not sampled: about 6 significant digits, and no ±.
    """
    if not (math.isfinite(value) and math.isfinite(sem)):
        return UNAVAILABLE
    if sem == 0:
        return format_number(value)
    place = _last_place(sem)
    if value != 0 and math.floor(math.log10(abs(value))) - place > _MOST_DIGITS:
        return f"{format_number(value)} ± {format_number(sem, 2)}"
    (centre, error), power = _scaled([value, sem], place)
    return f"({centre} ± {error})·{_ten_to(power)}" if power else f"{centre} ± {error}"


def format_interval(low: float, high: float) -> str:
    """`[low, high]` with one power of ten, cut at the second digit of the half-width; a point has no sampling error."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return UNAVAILABLE
    if low == high:
        return "no sampling error"
    place = int(f"{(high - low) / 2:.1e}".split("e")[1]) - 1
    if math.floor(math.log10(max(abs(low), abs(high)))) - place > _MOST_DIGITS:
        return f"[{format_number(low)}, {format_number(high)}]"
    (left, right), power = _scaled([low, high], place)
    return f"[{left}, {right}]·{_ten_to(power)}" if power else f"[{left}, {right}]"


def format_count(count: int, thing: str) -> str:
    """`1 group`, `2,048 groups`; of things whose plural has an s."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def _last_place(error: float) -> int:
    """Power of ten of the last digit worth showing next to `error`."""
    mantissa, exponent = f"{error:.1e}".split("e")
    return int(exponent) - (mantissa < "2")


def _scaled(values: Sequence[float], place: int) -> tuple[list[str], int]:
    """The values with their last digit at 10^`place`, divided by a common power of ten (0 if they read well as is)."""
    top = max(_magnitude(value, place) for value in values)
    power = 0 if (-3 <= top < 5 and place <= 0) or 0 <= top < 3 else top
    digits = max(power - place, 0)
    return [_plain(f"{_rounded(value, place).scaleb(place - power):.{digits}f}") for value in values], power


def _magnitude(value: float, place: int) -> int:
    """Power of ten of the first digit of `value` after rounding at 10^`place`."""
    return place + len(str(abs(int(_rounded(value, place))))) - 1


def _rounded(value: float, place: int) -> Decimal:
    """`value` in units of 10^`place`, to the nearest whole number."""
    return Decimal(round(Decimal(repr(float(value))).scaleb(-place)))


def _plain(text: str, strip: bool = False) -> str:
    """A typographic minus, no negative zero, and (with `strip`) no trailing zeros behind the point."""
    if strip and "." in text:
        text = text.rstrip("0").rstrip(".")
    if not text.strip("-0."):
        text = text.lstrip("-")
    return text.replace("-", "−")


def _ten_to(power: int) -> str:
    return "10" + str(power).translate(_SUPERSCRIPTS)
