"""Every theoretical rate beside what a run saw, and whether the run can say anything about it. Never "confirmed".

A log-Sobolev or Poincaré constant C of the Gibbs law promises a gap of at least 1/(βC) (THEORY.md §1): every observable
of the diffusion ends up decaying no slower. A run can refute that by an upper bound on the gap that holds at
equilibrium. It cannot confirm it: what it did not see may be slower. A rate fitted to a transient bounds nothing for
sure, for a signed mixture of exponentials may look slower than the gap for a while.
"""

import math
from dataclasses import dataclass
from typing import Literal

from villani.dynamics.convergence import Ceiling
from villani.outwards import upper
from villani.statistics import Status
from villani.theory.constants import Constant

Verdict = Literal["refuted", "consistent", "not identifiable"]
_ROUNDING = 1e-6
MARGIN = 1.25  # a claim is refuted when it is this far above an upper limit: room for the O(η) bias of chains


@dataclass(frozen=True)
class Claim:
    """A promise that the gap is at least e^`log_rate`.

    Attributes:
        name: whose.
        log_rate: natural logarithm; constants leave the range of floats.
        status: of the constant that it comes from.
        obstacle: why this run cannot speak about it, or "".
        theorem: whether only its hypotheses can be wrong; such a promise is never refuted.
    """

    name: str
    log_rate: float
    status: Status
    obstacle: str = ""
    theorem: bool = False


@dataclass(frozen=True)
class Setting:
    """What judging needs to know of a run.

    Attributes:
        ceilings: upper bounds on the gap found at equilibrium, whose limits hold all at once.
        truth: the exact gap, where it is known.
        status: of the truth; certified: to rounding. An estimated truth refutes nothing.
        ceiling: a certified upper bound on the gap, where the truth is estimated.
        obstacle: why the ceilings cannot be used, or "".
        fitted: the slowest rate that was fitted to a transient, if any.
        time: length of the run in time of the diffusion.
    """

    ceilings: tuple[Ceiling, ...]
    truth: float | None
    obstacle: str
    fitted: float | None
    time: float
    status: Status = "certified"
    ceiling: float | None = None


def claims(constant: Constant, beta: float, *, prefix: str = "", obstacle: str = "") -> Claim:
    """The rate 1/(βC) that an upper bound on C_P or C_LS promises."""
    return Claim(
        f"{prefix}{constant.id} {constant.name}", -constant.log_value - math.log(beta), constant.status, obstacle,
        constant.id != "C8",
    )  # fmt: skip


def judge(claim: Claim, run: Setting) -> tuple[Verdict, str]:
    """The verdict on one promise, and the sentence that says why."""
    promised = math.exp(claim.log_rate) if claim.log_rate > -700 else 0.0
    if claim.obstacle:
        return "not identifiable", f"{claim.obstacle}."
    if run.truth is not None:
        return _against_truth(claim, run, run.truth, promised)
    usable = () if run.obstacle else run.ceilings
    if usable:
        least = min(usable, key=lambda ceiling: ceiling.limit)
        bound = (
            f"{upper(MARGIN * least.limit, 3)} (95 % for all bounds of the run at once, {MARGIN:g} times for O(η) bias)"
        )
        if claim.log_rate > math.log(MARGIN * least.limit):
            words = f"The {least.name} bounds the gap by {bound}, below what is promised"
            if claim.theorem:
                return "not identifiable", f"{words}: its hypothesis fails, or the chain was not at equilibrium."
            return "refuted", f"{words}."
        return (
            "consistent",
            f"The least bound on the gap, {bound} from the {least.name}, is above what is promised. "
            "Slower modes may have gone unseen.",
        )  # fmt: skip
    why = run.obstacle or "nothing bounds the gap"
    words = f"{why[0].upper()}{why[1:]}."
    if claim.log_rate < -math.log(run.time):
        words += f" Relaxation at the promised rate takes {_power(-claim.log_rate - math.log(run.time))} times the run."
    if run.fitted is not None:
        words += (
            f" The slowest fitted rate is {_times(claim.log_rate, run.fitted)} the promised one, which neither "
            "supports nor refutes it."
        )
    return "not identifiable", words


def _against_truth(claim: Claim, run: Setting, truth: float, promised: float) -> tuple[Verdict, str]:
    """The verdict where the gap was computed: only what is certified refutes, and never a theorem."""
    known = f"The {'exact' if run.status == 'certified' else 'estimated'} gap, {truth:.4g},"
    if claim.log_rate <= math.log(truth) + _ROUNDING:
        return "consistent", f"{known} is {_times(claim.log_rate, truth)} the promised rate."
    times = f"{known} is {promised / truth:.3g} times smaller"
    if claim.theorem:
        return "not identifiable", f"{times} ({run.status}): the hypothesis of this bound fails."
    if run.status == "certified":
        return "refuted", f"{times} (certified)."
    if run.ceiling is not None and claim.log_rate > math.log(run.ceiling):
        return "refuted", f"The gap is at most {upper(run.ceiling, 4)} (certified), and {truth:.4g} as estimated."
    return "not identifiable", f"{times}, but it is {run.status}, which refutes nothing."


def _times(log_rate: float, rate: float) -> str:
    return f"{_power(math.log(rate) - log_rate)} times"


def _power(log: float) -> str:
    exponent = log / math.log(10)
    if -3 <= exponent < 5:
        return f"{10**exponent:.3g}"
    return f"10^{exponent:.1f}"
