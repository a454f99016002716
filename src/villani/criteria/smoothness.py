"""Criterion (i): is F infinitely differentiable? Judged operation by operation on the traced loss; THEORY.md §7."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from villani.criteria.intervals import Range, of_number
from villani.criteria.operations import COMPARISONS, CUTS, DISCONTINUOUS, KINKED, ONCE, SINGULAR, SMOOTH, Demand
from villani.criteria.patterns import arguments, depends_on, is_floating, limits, mean_square, original, pieces
from villani.criteria.ranges import contradiction, ranges
from villani.criteria.verdicts import Verdict
from villani.errors import InputError
from villani.objective.graph import LossGraph, place, trace_loss
from villani.objective.objective import Objective

aten = torch.ops.aten
Kind = Literal["lipschitz", "discontinuous", "singular", "undecided", "unknown", "gradient"]

CONSEQUENCES: dict[Kind, str] = {
    "lipschitz": "∇L exists almost everywhere; the Laplacian has a singular part on the kinks, which autograd and "
    "Hutchinson do not see: Ψ is its absolutely continuous part only. Still valid: C3, C4, PAC-Bayes c1, c2 (gradient "
    "form), c3, c4, thermodynamic integration",
    "discontinuous": "L jumps or is flat between jumps, so that ∇L is not its derivative. Still valid: C3, PAC-Bayes "
    "c3 (Metropolis-corrected), c4, (b), (e), thermodynamic integration",
    "singular": "L or a derivative of it is undefined or unbounded where the argument vanishes, and nothing global "
    "that needs derivatives holds",
    "undecided": "a singular point of the operation is not shown to be out of reach",
    "unknown": "nothing is known here about the smoothness of this operation",
    "gradient": "autograd's derivative is not that of the loss: it is no ∇F, and no figure built on it speaks of F",
}
_ONCE = "∇L is Lipschitz but not differentiable: ∇²L exists almost everywhere and jumps, and nothing beyond it exists"
_REFUTING = ("lipschitz", "discontinuous", "singular")
_CAST = aten._to_copy.default
_GRADIENT_TOLERANCE = 1e-3  # relative; float32 rounding gives 1e-5
_SOFTPLUS = 15.0  # from this threshold on, softplus jumps by less than float32 tells apart


@dataclass(frozen=True)
class Finding:
    """An operation that keeps F from being certified as C^∞.

    Attributes:
        operation: its name in the graph.
        kind: lipschitz, discontinuous or singular (F is not C^∞); undecided or unknown (it may or may not be);
            gradient (autograd does not return the derivative).
        place: module path, file and line, source line.
        consequence: what follows for the figures, THEORY.md §7.
    """

    operation: str
    kind: Kind
    place: str
    consequence: str


@dataclass(frozen=True)
class Normalisation:
    """A division by a root mean square, smooth as long as ε > 0.

    Attributes:
        operation: its name in the graph; the inverse root where it is spelled out.
        place: module path, file and line, source line.
        eps: ε > 0.
    """

    operation: str
    place: str
    eps: float

    @property
    def jacobian_bound(self) -> float:
        """ε^−½: how large the Jacobian of the normalisation can get, gain apart."""
        return float(self.eps**-0.5)

    @property
    def laplacian_bound(self) -> float:
        """1/ε: the order that second derivatives can reach, gain apart."""
        return 1 / self.eps


@dataclass(frozen=True)
class Smoothness:
    """Whether F ∈ C^∞.

    Attributes:
        verdict: `holds` where every operation that θ goes through is C^∞ on the values that can occur; `refuted` where
            one is not; `unknown` where one is not understood, or nothing could be traced.
        reason: the verdict in a sentence.
        findings: what stands against it, in the order of the graph.
        normalisations: with their ε: smooth, but only as smooth as ε allows.
        operations: θ-dependent operations that were examined.

    `refuted` speaks of operations: that two kinks cancel in F, as in relu(x) − relu(−x), is not looked for.
    """

    verdict: Verdict
    reason: str
    findings: tuple[Finding, ...] = ()
    normalisations: tuple[Normalisation, ...] = ()
    operations: int = 0


def audit_smoothness(objective: Objective) -> Smoothness:
    """Examine the traced loss: of a language model one block with and one without a mask, of a custom loss every group.

    The operations are examined for every θ, not at the current one. Floating-point is taken for real arithmetic.
    That autograd's gradient is the derivative of the traced function is checked at the current θ.
    """
    findings: list[Finding] = []
    normalisations: list[Normalisation] = []
    operations = 0
    for batch in pieces(objective):
        try:
            graph = trace_loss(objective, batch)
        except InputError as error:
            return Smoothness("unknown", str(error))
        found = ranges(graph, {})
        moved = depends_on(graph)
        nodes = [n for n in graph.nodes if n in moved and n.op == "call_function"]
        operations = max(operations, len(nodes))
        singular = _judge_singular(objective, graph, nodes, found)
        for node in nodes:
            findings += _judge(node, moved, found) + singular.get(node, [])
            normalisations += _normalisation(node, found)
        findings += _check_ranges(objective, graph, found) + _check_gradient(objective, graph, batch)
    unique = tuple(dict.fromkeys(findings))
    verdict, reason = _conclude(unique)
    return Smoothness(verdict, reason, unique, tuple(dict.fromkeys(normalisations)), operations)


def _conclude(findings: Sequence[Finding]) -> tuple[Verdict, str]:
    against = [f for f in findings if f.kind in _REFUTING]
    if against:
        return "refuted", f"{against[0].operation} is {against[0].kind} ({against[0].place})"
    if findings:
        return "unknown", f"{findings[0].operation}: {findings[0].consequence} ({findings[0].place})"
    return "holds", "every operation that θ goes through is C^∞ on the values that can occur"


def _finding(node: torch.fx.Node, kind: Kind, consequence: str | None = None) -> list[Finding]:
    return [Finding(str(node.target), kind, place(node), consequence or CONSEQUENCES[kind])]


def _judge(node: torch.fx.Node, moved: set[torch.fx.Node], found: dict[torch.fx.Node, Range]) -> list[Finding]:
    """What stands against one operation, singular points apart; an empty list if nothing."""
    target = node.target
    if not any(n in moved and is_floating(n) for n in node.all_input_nodes):
        return []  # counts and conditions: the comparison that they come from has been told
    if target in CUTS:
        return _finding(node, "gradient")
    if target in COMPARISONS or target in DISCONTINUOUS or (target is _CAST and not is_floating(node)):
        return _finding(node, "discontinuous")
    given = arguments(node) if target in (aten.softplus.default, aten.linalg_vector_norm.default, *ONCE) else {}
    if target is aten.softplus.default and not _is_softplus(given["beta"], given["threshold"]):
        return _finding(node, "discontinuous" if given["beta"] else "singular")
    if target in SMOOTH or target is _CAST or target in SINGULAR:
        norm = target is aten.linalg_vector_norm.default and given["ord"] != 2
        return _finding(node, "lipschitz") if norm else []
    if target in ONCE:
        kink = target is aten.elu.default and given["alpha"] * given["input_scale"] != 1
        kink |= target is aten.smooth_l1_loss.default and given["beta"] == 0
        return _finding(node, "lipschitz", None if kink else _ONCE)
    if target in KINKED:
        if KINKED[target] and not _kink_within(node, found):
            return []
        chosen = any(u.target is operator.getitem and u.args[1] == 1 for u in node.users)
        return _finding(node, "discontinuous" if chosen else "lipschitz")  # what is largest jumps, how large does not
    return _finding(node, "unknown")


def _is_softplus(beta: float, threshold: float) -> bool:
    """Whether where torch returns x itself is where log(1 + e^{βx})/β is x up to rounding."""
    return bool(beta != 0 and threshold >= _SOFTPLUS)


def _kink_within(node: torch.fx.Node, found: dict[torch.fx.Node, Range]) -> bool:
    a = found[node.args[0]]  # type: ignore[index]
    points = (0.0,) if node.target in (aten.abs.default, aten.leaky_relu.default) else limits(node)
    bounds = [found[p] if isinstance(p, torch.fx.Node) else of_number(p) for p in points if p is not None]
    return any(a.low < bound.high and bound.low < a.high for bound in bounds)


def _judge_singular(
    objective: Objective, graph: LossGraph, nodes: Sequence[torch.fx.Node], found: dict[torch.fx.Node, Range]
) -> dict[torch.fx.Node, list[Finding]]:
    """Singular where θ = 0 or the current θ hits the singular point; undecided where intervals do not exclude it."""
    verdicts: dict[torch.fx.Node, list[Finding]] = {}
    doubtful: dict[torch.fx.Node, tuple[torch.fx.Node, Demand]] = {}
    for node in nodes:
        eps = _own_eps(node)
        if eps is not None and eps <= 0:
            verdicts[node] = _finding(node, "singular")
        for demand in SINGULAR[node.target](node) if node.target in SINGULAR else []:
            culprit: Any = node.args[demand.position]
            if not isinstance(culprit, torch.fx.Node):
                if not demand.met(of_number(culprit)):
                    verdicts[node] = _finding(node, "singular")
            elif not demand.met(found[culprit]):
                doubtful[node] = (culprit, demand)
    if doubtful:
        tensors = [t.detach() for t in objective.parameters.tensors]
        culprits = {culprit for culprit, _ in doubtful.values()}
        with objective.evaluating(), torch.no_grad():
            seen = [graph.values(point, culprits) for point in (tensors, [torch.zeros_like(t) for t in tensors])]
        for node, (culprit, demand) in doubtful.items():
            hit = any(bool(demand.violated(values[culprit]).any()) for values in seen)
            verdicts[node] = _finding(node, "singular" if hit else "undecided")
    return verdicts


def _own_eps(node: torch.fx.Node) -> float | None:
    """The ε of a normalisation that is one operation."""
    if node.target in (aten.layer_norm.default, aten.group_norm.default):
        return float(arguments(node)["eps"])
    if node.target is aten.rms_norm.default:
        eps = arguments(node)["eps"]
        return float(torch.finfo(node.meta["val"].dtype).eps) if eps is None else float(eps)
    return None


def _normalisation(node: torch.fx.Node, found: dict[torch.fx.Node, Range]) -> list[Normalisation]:
    eps = _own_eps(node)
    spelled = node.target in (aten.rsqrt.default, aten.sqrt.default, aten.pow.Tensor_Scalar)
    if spelled and (node.target is not aten.pow.Tensor_Scalar or node.args[1] in (0.5, -0.5)):
        square = mean_square(node.args[0])
        added = original(node.args[0])
        if square is not None:
            eps = square[2]
        elif isinstance(added, torch.fx.Node) and added.target is aten.add.Tensor:
            eps = next((float(a) for a in added.args if isinstance(a, int | float) and found[added].low == a), None)
    return [Normalisation(str(node.target), place(node), eps)] if eps else []


def _check_ranges(objective: Objective, graph: LossGraph, found: dict[torch.fx.Node, Range]) -> list[Finding]:
    """Hold the ranges that verdicts lean on against the values at the current θ."""
    with objective.evaluating(), torch.no_grad():
        against = contradiction(graph, [t.detach() for t in objective.parameters.tensors], found)
    what = "its values lie outside the bounds that interval arithmetic gives, so that no verdict rests on them"
    return [Finding("interval arithmetic", "unknown", against, what)] if against else []


def _check_gradient(objective: Objective, graph: LossGraph, batch: Any) -> list[Finding]:
    """Compare autograd's gradient through the model with that of the traced function, tensor by tensor.

    They differ where a hook, a custom backward or a no_grad block alters derivatives without leaving an operation.
    """
    tensors = objective.parameters.tensors
    with objective.evaluating():
        try:
            theirs = torch.autograd.grad(objective.forward(batch).loss, tensors, allow_unused=True)
            ours = torch.autograd.grad(graph.run(tensors), tensors, allow_unused=True)
        except RuntimeError as error:
            reason = next(iter(str(error).splitlines()), "")
            return [Finding("autograd", "unknown", "the whole loss", f"gradients cannot be compared: {reason}")]
    scale = max(float(g.norm()) for g in (*ours, torch.zeros(1)) if g is not None)
    for p, a, b in zip(objective.parameters.parameters, theirs, ours, strict=True):
        zero = torch.zeros_like(p.tensor)
        seen, true = (zero if a is None else a), (zero if b is None else b)
        gap = float((seen - true).norm())
        if not math.isfinite(gap):
            return [Finding("autograd", "unknown", p.name, "the gradient is not finite at this θ")]
        if gap > _GRADIENT_TOLERANCE * (float(true.norm()) + 1e-2 * scale):
            return [Finding("autograd", "gradient", p.name, CONSEQUENCES["gradient"])]
    return []
