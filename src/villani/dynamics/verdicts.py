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
class Evidence:
    """What a run, and theory beside it, say of the gap.

    Attributes:
        ceilings: upper bounds on the gap found at equilibrium, whose limits hold all at once.
        gap: the exact gap, where it is known.
        status: of the gap; certified: to rounding. An estimated gap refutes nothing.
        ceiling: a certified upper bound on the gap, where the gap is estimated.
        obstacle: why the ceilings cannot be used, or "".
        fitted: the slowest rate that was fitted to a transient, if any.
        time: length of the run in time of the diffusion.
    """

    ceilings: tuple[Ceiling, ...]
    gap: float | None
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


def judge(claim: Claim, evidence: Evidence) -> tuple[Verdict, str]:
    """The verdict on one promise, and the sentence that says why."""
    promised = math.exp(claim.log_rate) if claim.log_rate > -700 else 0.0
    if claim.obstacle:
        return "not identifiable", f"{claim.obstacle}."
    if evidence.gap is not None:
        return _against_gap(claim, evidence, evidence.gap, promised)
    usable = () if evidence.obstacle else evidence.ceilings
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
    why = evidence.obstacle or "nothing bounds the gap"
    words = f"{why[0].upper()}{why[1:]}."
    if claim.log_rate < -math.log(evidence.time):
        times = _power(-claim.log_rate - math.log(evidence.time))
        words += f" Relaxation at the promised rate takes {times} times the run."
    if evidence.fitted is not None:
        words += (
            f" The slowest fitted rate is {_times(claim.log_rate, evidence.fitted)} the promised one, which neither "
            "supports nor refutes it."
        )
    return "not identifiable", words


def _against_gap(claim: Claim, evidence: Evidence, gap: float, promised: float) -> tuple[Verdict, str]:
    """The verdict where the gap was computed: only what is certified refutes, and never a theorem."""
    known = f"The {'exact' if evidence.status == 'certified' else 'estimated'} gap, {gap:.4g},"
    if claim.log_rate <= math.log(gap) + _ROUNDING:
        return "consistent", f"{known} is {_times(claim.log_rate, gap)} the promised rate."
    times = f"{known} is {promised / gap:.3g} times smaller"
    if claim.theorem:
        return "not identifiable", f"{times} ({evidence.status}): the hypothesis of this bound fails."
    if evidence.status == "certified":
        return "refuted", f"{times} (certified)."
    if evidence.ceiling is not None and claim.log_rate > math.log(evidence.ceiling):
        return "refuted", f"The gap is at most {upper(evidence.ceiling, 4)} (certified), and {gap:.4g} as estimated."
    return "not identifiable", f"{times}, but it is {evidence.status}, which refutes nothing."


def _times(log_rate: float, rate: float) -> str:
    return f"{_power(math.log(rate) - log_rate)} times"


def _power(log: float) -> str:
    exponent = log / math.log(10)
    if -3 <= exponent < 5:
        return f"{10**exponent:.3g}"
    return f"10^{exponent:.1f}"
