"""Gibbs laws on a line and products of lines: to 8 digits and more, certified where intervals close."""

import numpy as np

from villani.statistics import Status
from villani.theory.line import Law, gaps, law, log_sobolev, panels, slowest, spectrum, support
from villani.theory.potential import Potential
from villani.theory.quadrature import poincare_floor
from villani.theory.resolution import Proof, tail
from villani.theory.truth import (
    DEEPEST,
    FINEST,
    ORDERS,
    UNSEEN,
    WIDENINGS,
    Truth,
    Verified,
    beyond_words,
    lowest_of,
    on_line,
    refuse_wells,
    settled,
    told_gaps,
    whole_moments,
)

DEPTHS = (60.0, 80.0)  # nats of U that the boxes of the two solutions reach
_SAMPLES = 300  # of U″ far out
_MOST = 300  # panels of the coarser mesh, which holds the edges of the finer one


def solve_line(case: Potential, tolerance: float, sobolev: bool, asked: bool) -> Truth:
    """As `exact.solve`, of a core of one coordinate; `asked`: digits were."""
    line, box, verified = _verified_line(case, tolerance)
    edges = line.mesh.edges
    ends = support(on_line(case), DEPTHS[0]) if verified.why else box  # what lies beyond a verified box is bounded
    coarse = law(on_line(case), panels(on_line(case), ends, ORDERS[0], (*case.breaks, *edges), most=_MOST))
    known, others = gaps(line), gaps(coarse)
    difference = settled(float(known[0]), float(others[0]), tolerance)
    error, status, why = verified.judge(difference, tolerance, asked)
    known = told_gaps(known, others, verified.beyond)
    mean = line.expect(line.mesh.points)
    moments = whole_moments(
        case, case.local(line.mesh.points[None]), line.expect, line.expect((line.mesh.points - mean) ** 2),
        _jumps(case, line),
    )  # fmt: skip
    copies, rest = case.parts
    gaussian = case.beta * case.weight_decay
    constant, sobolev_status, note = _line_log_sobolev(case, line) if sobolev else (None, None, "not asked for")
    if rest and constant is not None:
        constant = max(constant, 1 / gaussian)
    lowest = lowest_of(known, gaussian if rest else None)
    normaliser = copies * line.log_normaliser + (rest / 2 * np.log(2 * np.pi / gaussian) if rest else 0.0)
    poincare = 1 / lowest[0]
    floor = poincare * (1 - error)
    if status != "certified":
        corners = np.array([edges[0]]), np.array([edges[-1]])
        floor = max(poincare_floor(case, np.ones(1), corners), 1 / gaussian if rest else 0.0)
    return Truth(
        lowest, poincare, error, constant, sobolev_status, note, float(normaliser), moments, status, why, floor,
        tuple(edges.tolist()),
    )  # fmt: skip


def _verified_line(case: Potential, tolerance: float) -> tuple[Law, tuple[float, float], Verified]:
    """The law on a mesh that intervals have looked through, widened until its tails are shown not to count."""
    energy = on_line(case)
    box, before = support(energy, DEPTHS[1]), np.inf
    for _ in range(WIDENINGS):
        proof = Proof(case, max(tolerance / 5, FINEST))
        line = law(energy, panels(energy, box, ORDERS[1], case.breaks, watch=proof))
        gap, edge = slowest(line)
        tails = [tail(case, end, side, (box[1] - box[0]) / 8) for end, side in zip(box, (-1, 1), strict=True)]
        left_out = [2 * beyond.mass * square for beyond, square in zip(tails, edge, strict=True)]
        wide = [8 * t.hardy * gap > 1 or not share <= tolerance / 8 for t, share in zip(tails, left_out, strict=True)]
        if not any(wide) or not np.isfinite(proof.worst):
            why = "" if np.isfinite(proof.worst) else UNSEEN
            beyond = min(1 / (8 * max(t.hardy, 1e-300)) for t in tails)
            return line, box, Verified(proof.error + 4 * sum(left_out), why, beyond)
        step = 0.5 * (box[1] - box[0])
        wider = [
            end if not more else max((beyond.trouble + side * step / 40) * side, (end + side * step) * side) * side
            for end, side, more, beyond in zip(box, (-1, 1), wide, tails, strict=True)
        ]
        heights = energy(np.array(wider)) - energy(line.mesh.points).min()
        excess = max(8 * beyond.hardy * gap for beyond in tails)
        stalled = np.isfinite(excess) and excess > max(1.0, 0.95 * before)  # a tail too heavy, however far out
        if stalled or not (heights <= DEEPEST).all():
            break
        box, before = (wider[0], wider[1]), excess
    refuse_wells(case, tails, gap)
    return line, box, Verified(np.inf, beyond_words(tails, wide))


def _line_log_sobolev(case: Potential, line: Law) -> tuple[float | None, Status | None, str]:
    """C_LS of a line: the supremum over local shapes, or its limit at infinity where U″ settles (or grows) there."""
    limit = _limit_at_infinity(case, max(1e3, 1e3 * float(np.abs(line.mesh.points).max())))
    if limit == np.inf:
        return None, None, "U″ tends to no positive number at infinity, where tests can be carried: it may be infinite"
    least = float(case.loss.jet(line.mesh.points[None]).hessian[0, 0].min()) + case.weight_decay
    if limit is not None and case.beta * least * limit >= 1 - 1e-12 and not case.breaks:
        return limit, "estimated", "1/inf U″: an upper bound (C2), reached by tests carried to infinity"
    local, converged = log_sobolev(line, spectrum(line))
    way = "variational, converged from below" if converged else "variational, not converged: it may be larger"
    if limit is None:
        return local, "estimated", f"{way}; U″ oscillates at infinity, where none was tried"
    if limit > local:
        return limit, "estimated", "the limit of tests carried to infinity, 1/inf U″(±∞), above all local ones"
    return local, "estimated", way


def _limit_at_infinity(case: Potential, far: float) -> float | None:
    """1/inf U″(±∞); inf where that is not positive, None where U″ neither settles nor grows steadily."""
    away = far * 4 ** np.sort(np.modf(np.arange(_SAMPLES) * (5**0.5 - 1) / 2)[0])  # no period fits so many, unevenly
    bends = [case.loss.jet(side * away[None]).hessian[0, 0] + case.weight_decay for side in (-1, 1)]
    settled = all(np.all(np.diff(b) >= -1e-6 * np.abs(b[1:])) and np.isfinite(b).all() for b in bends)
    fading = all(np.all(np.diff(np.abs(b)) <= 0) for b in bends)
    least = min(float(b.min()) for b in bends)
    if not (settled or fading):
        return None
    return 1 / (case.beta * least) if settled and least > 0 else np.inf


def _jumps(case: Potential, line: Law) -> float:
    """E of the atoms of ΔF: the jump of F′ at each kink times the density there."""
    total = 0.0
    for at in case.breaks:
        sides = np.array([[np.nextafter(at, -np.inf), np.nextafter(at, np.inf)]])
        slopes = case.loss.jet(sides).gradient[0]
        density = np.exp(-case.energy(np.array([[at]]))[0] - line.log_normaliser)
        total += float((slopes[1] - slopes[0]) * density)
    return total
