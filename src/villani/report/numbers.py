"""Numbers for people: rounded by their own error. Machines read the raw ones in `records.json`.

The page does the same rounding in JavaScript (`numbers.js`); `tests/report` holds the two together.
"""

import math
import re
from collections.abc import Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal

from villani.outwards import UNAVAILABLE, decimal, lower, lower_power, plain, ten_to, upper, upper_power

BEYOND = 300  # powers of ten that no float holds
_POWER = re.compile(r"(?<![\w^.])10\^([−-]?)(\d[\d,]*\.\d+|\d{1,3}(?:,\d{3})+)(?![\d^])")  # in sentences of records
_SCIENTIFIC = re.compile(r"(?<![\w.])(\d(?:\.\d+)?)e([+-]\d{2,3})(?![\w.])")
_MOST_DIGITS = 12  # an error this far below the value is shown beside it, not by rounding the value to it


def format_number(value: float | None, digits: int = 6) -> str:
    """`value` to `digits` significant digits, as 0.001, 2195328 or 3.1·10⁷; a dash if it is not finite, or None."""
    if value is None or not math.isfinite(value):
        return UNAVAILABLE
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = int(exponent)
    if -4 <= power < 7:
        return plain(f"{value:.{max(digits - 1 - power, 0)}f}", strip=True)
    return f"{plain(mantissa, strip=True)}·{ten_to(power)}"


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
    (centre, error), power = _scaled([_rounded(value, place), _rounded(sem, place)], place)
    return f"({centre} ± {error})·{ten_to(power)}" if power else f"{centre} ± {error}"


def format_bounded(value: float, bound: float) -> str:
    """`value ± bound` where what is meant lies within `bound` of `value`: it lies within what is printed, too."""
    if bound == 0 or not (math.isfinite(value) and math.isfinite(bound)):
        return format_uncertain(value, bound)
    place = _last_place(bound)
    if value != 0:
        place = max(place, decimal(value).adjusted() - _MOST_DIGITS)
    centre = _rounded(value, place)
    error = decimal(bound).scaleb(-place) + abs(decimal(value).scaleb(-place) - centre)
    (middle, half), power = _scaled([centre, error.to_integral_value(ROUND_CEILING)], place)
    return f"({middle} ± {half})·{ten_to(power)}" if power else f"{middle} ± {half}"


def format_interval(low: float, high: float) -> str:
    """`[low, high]` with one power of ten, rounded outwards at the second digit of the half-width.

    A point has no sampling error.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return UNAVAILABLE
    if low == high:
        return "no sampling error"
    place = int(f"{(high - low) / 2:.1e}".split("e")[1]) - 1
    if math.floor(math.log10(max(abs(low), abs(high)))) - place > _MOST_DIGITS:
        return f"[{lower(low)}, {upper(high)}]"
    (left, right), power = _scaled([_rounded(low, place, ROUND_FLOOR), _rounded(high, place, ROUND_CEILING)], place)
    return f"[{left}, {right}]·{ten_to(power)}" if power else f"[{left}, {right}]"


def format_plain(value: float | None, specification: str) -> str:
    """`value` as Python's format specification has it; a dash if there is none."""
    return UNAVAILABLE if value is None else f"{value:{specification}}"


def format_power(log10: float, outwards: int = 0) -> str:
    """10^`log10` beyond floats as 8·10⁸⁵²⁸; `outwards` is 1 for an upper bound, −1 for a lower one, else 0."""
    if not math.isfinite(log10):
        return UNAVAILABLE
    if abs(log10) >= 1e6:
        return lower_power(log10, 3) if outwards < 0 else upper_power(log10, 3)
    exponent = math.floor(log10)
    size = float(f"{10.0 ** (log10 - exponent):.9g}")  # a logarithm of that length has no further digits
    mantissa = round(size) if not outwards else math.ceil(size) if outwards > 0 else math.floor(size)
    if mantissa == 10:
        mantissa, exponent = 1, exponent + 1
    return ten_to(exponent) if mantissa == 1 else f"{mantissa}·{ten_to(exponent)}"


def readable(text: str) -> str:
    """Powers of ten as sentences of records have them, for people: 10^8,528.9 is 8·10⁸⁵²⁸, and 7.3e+04 is 7.3·10⁴.

    Of broken exponents, what is large is rounded up and what is small down, as bounds on constants and on rates are.
    """
    text = _POWER.sub(_person, text)
    return _SCIENTIFIC.sub(lambda number: f"{number[1]}·{ten_to(int(number[2]))}", text)


def _person(power: re.Match[str]) -> str:
    size = float(power[2].replace(",", ""))
    return format_power(-size, -1) if power[1] else format_power(size, 1)


def format_count(count: int, thing: str) -> str:
    """`1 group`, `2,048 groups`; of things whose plural has an s."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _last_place(error: float) -> int:
    """Power of ten of the last digit worth showing next to `error`."""
    mantissa, exponent = f"{error:.1e}".split("e")
    return int(exponent) - (mantissa < "2")


def _scaled(units: Sequence[Decimal], place: int) -> tuple[list[str], int]:
    """Whole numbers of units of 10^`place`, divided by a common power of ten (0 if they read well as they are)."""
    top = max(place + len(str(abs(int(number)))) - 1 for number in units)
    power = 0 if (-3 <= top < 5 and place <= 0) or 0 <= top < 3 else top
    digits = max(power - place, 0)
    return [plain(f"{number.scaleb(place - power):.{digits}f}") for number in units], power


def _rounded(value: float, place: int, way: str = ROUND_HALF_EVEN) -> Decimal:
    """`value` in units of 10^`place`, to a whole number."""
    return decimal(value).scaleb(-place).to_integral_value(way)
