"""What is going to be measured, checked before anything is loaded. No torch."""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field

from villani.curvature.ways import Way
from villani.errors import InputError, check_whole, is_number

SHARES = 6  # groups behind the traces of single tensors, where the way to the whole trace does not tell them


@dataclass(frozen=True)
class Design:
    """A measurement's numbers and its way to the trace.

    Attributes:
        groups: how many, at least 3 unless `finite`.
        probes: in each group; at least 1, or 2 when `finite`.
        seed: of everything random, ≥ 0.
        finite: whether the groups are the whole data set.
        way: to the trace.
        shares: groups that are also sampled by a way that tells tensors apart, where `way` does not; 0 for none.
        sketch: buckets of the gradient sketch; None for the default.

    Raises:
        InputError: a design that gives no interval, or a number out of range.
    """

    groups: int
    probes: int = 1
    seed: int = 0
    finite: bool = False
    _: KW_ONLY
    way: Way = field(default_factory=Way)
    shares: int = SHARES
    sketch: int | None = None

    def __post_init__(self) -> None:
        check_design(self.groups, self.probes, self.seed, self.finite)
        check_whole(0, shares=self.shares)
        if self.sketch is not None:
            check_whole(1, sketch=self.sketch)


def check_design(groups: int, probes: int, seed: int, finite: bool) -> None:
    """Refuse a design that gives no interval."""
    if not finite and groups < 3:
        raise InputError(f"groups={groups}: expected at least 3 (12 or more for good intervals), or finite=True")
    for name, value in (("probes", probes), ("seed", seed)):
        check_whole(-math.inf, **{name: value})
    least = 2 if finite else 1
    if probes < least:
        why = " with finite=True, where only probes tell the error" if finite else ""
        raise InputError(f"probes={probes}: expected at least {least}{why}")
    if seed < 0:
        raise InputError(f"seed={seed}: expected a non-negative integer")


def check_temperature(temperature: float) -> None:
    """Refuse an s that is not positive and finite."""
    if not is_number(temperature) or not 0 < temperature < float("inf"):
        raise InputError(f"temperature={temperature}: expected a finite number > 0")


def chosen_groups(groups: Sequence[int], supply: int) -> list[int]:
    """Groups that were asked for, each once and there.

    Raises:
        InputError: one that is not, or twice the same.
    """
    chosen = [*groups]
    for group in chosen:
        check_whole(0, group=group)
        if group >= supply:
            raise InputError(f"group={group}: the objective has {supply}, counted from 0")
    if len({*chosen}) < len(chosen):
        raise InputError("groups are asked for more than once: each is one draw of the data")
    return [int(group) for group in chosen]
