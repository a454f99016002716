"""Criterion (i): is F infinitely differentiable? Judged operation by operation on the traced loss; THEORY.md §7."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from villani.criteria.intervals import Range, of_number
from villani.criteria.operations import RULES, Demand, Kind, Regularity
from villani.criteria.patterns import arguments, depends_on, is_floating, mean_square, original, pieces
from villani.criteria.ranges import contradiction, ranges
from villani.criteria.verdicts import Verdict
from villani.errors import InputError
from villani.objective.graph import LossGraph, place, trace_loss
from villani.objective.interpret import Analysis, interpret
from villani.objective.objective import Objective

aten = torch.ops.aten

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
_REFUTING = ("lipschitz", "discontinuous", "singular")
_GRADIENT_TOLERANCE = 1e-3  # relative; float32 rounding gives 1e-5


@dataclass(frozen=True)
class Objection:
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
    findings: tuple[Objection, ...] = ()
    normalisations: tuple[Normalisation, ...] = ()
    operations: int = 0


def audit_smoothness(objective: Objective) -> Smoothness:
    """Examine the traced loss: of a language model one block with and one without a mask, of a custom loss every group.

    The operations are examined for every θ, not at the current one. Floating-point is taken for real arithmetic.
    That autograd's gradient is the derivative of the traced function is checked at the current θ.
    """
    findings: list[Objection] = []
    normalisations: list[Normalisation] = []
    operations = 0
    for batch in pieces(objective):
        try:
            graph = trace_loss(objective, batch)
        except InputError as error:
            return Smoothness("unknown", str(error))
        known = ranges(graph, {})
        moved = depends_on(graph)
        nodes = [n for n in graph.nodes if n in moved and n.op == "call_function"]
        operations = max(operations, len(nodes))
        singular = _judge_singular(objective, graph, nodes, known)
        for node, objections in interpret(graph, _Objections(moved, known)):
            findings += objections + singular.get(node, [])
            normalisations += _normalisation(node, known) if node in moved else []
        findings += _check_ranges(objective, graph, known) + _check_gradient(objective, graph, batch)
    unique = tuple(dict.fromkeys(findings))
    verdict, reason = _conclude(unique)
    return Smoothness(verdict, reason, unique, tuple(dict.fromkeys(normalisations)), operations)


def _conclude(findings: Sequence[Objection]) -> tuple[Verdict, str]:
    against = [f for f in findings if f.kind in _REFUTING]
    if against:
        return "refuted", f"{against[0].operation} is {against[0].kind} ({against[0].place})"
    if findings:
        return "unknown", f"{findings[0].operation}: {findings[0].consequence} ({findings[0].place})"
    return "holds", "every operation that θ goes through is C^∞ on the values that can occur"


def _objection(node: torch.fx.Node, kind: Kind, consequence: str | None = None) -> Objection:
    return Objection(str(node.target), kind, place(node), consequence or CONSEQUENCES[kind])


class _Objections(Analysis[list[Objection], Regularity]):
    """What stands against each operation that a real number goes into which depends on θ; singular points apart.

    What depends on counts and conditions alone: the comparison that they come from has been told.
    """

    table = RULES

    def __init__(self, moved: set[torch.fx.Node], known: Mapping[torch.fx.Node, Range]) -> None:
        self._moved, self._known = moved, known

    def input(self, node: torch.fx.Node) -> list[Objection]:  # noqa: ARG002
        return []

    def depends(self, node: torch.fx.Node, arguments: Any, options: Any) -> bool:  # noqa: ARG002
        return node in self._moved and any(n in self._moved and is_floating(n) for n in node.all_input_nodes)

    def still(self, node: torch.fx.Node, arguments: Any, options: Any) -> list[Objection]:  # noqa: ARG002
        return []

    def apply(self, rule: Regularity, node: torch.fx.Node, arguments: Any, options: Any) -> list[Objection]:  # noqa: ARG002
        flaw = rule.flaw(node, self._known)
        return [_objection(node, *flaw)] if flaw else []

    def unknown(self, node: torch.fx.Node, arguments: Any, options: Any) -> list[Objection]:  # noqa: ARG002
        return [_objection(node, "unknown")]


def _judge_singular(
    objective: Objective, graph: LossGraph, nodes: Sequence[torch.fx.Node], known: dict[torch.fx.Node, Range]
) -> dict[torch.fx.Node, list[Objection]]:
    """Singular where θ = 0 or the current θ hits the singular point; undecided where intervals do not exclude it."""
    verdicts: dict[torch.fx.Node, list[Objection]] = {}
    doubtful: dict[torch.fx.Node, tuple[torch.fx.Node, Demand]] = {}
    for node in nodes:
        eps = _own_eps(node)
        if eps is not None and eps <= 0:
            verdicts[node] = [_objection(node, "singular")]
        regularity = RULES.rule(node.target)
        for demand in regularity.demands(node) if regularity else []:
            culprit: Any = node.args[demand.position]
            if not isinstance(culprit, torch.fx.Node):
                if not demand.met(of_number(culprit)):
                    verdicts[node] = [_objection(node, "singular")]
            elif not demand.met(known[culprit]):
                doubtful[node] = (culprit, demand)
    if doubtful:
        tensors = objective.parameters.values
        culprits = {culprit for culprit, _ in doubtful.values()}
        with objective.evaluating(), torch.no_grad():
            seen = [graph.values(point, culprits) for point in (tensors, _zeros(objective))]
        for node, (culprit, demand) in doubtful.items():
            hit = any(bool(demand.violated(values[culprit]).any()) for values in seen)
            verdicts[node] = [_objection(node, "singular" if hit else "undecided")]
    return verdicts


def _zeros(objective: Objective) -> list[torch.Tensor]:
    """θ = 0, in no memory."""
    space = objective.parameters
    zero = torch.zeros((), dtype=space.dtype, device=space.device)
    return [zero.expand(t.shape) for t in space.tensors]


def _own_eps(node: torch.fx.Node) -> float | None:
    """The ε of a normalisation that is one operation."""
    if node.target in (aten.layer_norm.default, aten.group_norm.default):
        return float(arguments(node)["eps"])
    if node.target is aten.rms_norm.default:
        eps = arguments(node)["eps"]
        return float(torch.finfo(node.meta["val"].dtype).eps) if eps is None else float(eps)
    return None


def _normalisation(node: torch.fx.Node, known: dict[torch.fx.Node, Range]) -> list[Normalisation]:
    eps = _own_eps(node)
    spelled = node.target in (aten.rsqrt.default, aten.sqrt.default, aten.pow.Tensor_Scalar)
    if spelled and (node.target is not aten.pow.Tensor_Scalar or node.args[1] in (0.5, -0.5)):
        square = mean_square(node.args[0])
        added = original(node.args[0])
        if square is not None:
            eps = square[2]
        elif isinstance(added, torch.fx.Node) and added.target is aten.add.Tensor:
            eps = next((float(a) for a in added.args if isinstance(a, int | float) and known[added].low == a), None)
    return [Normalisation(str(node.target), place(node), eps)] if eps else []


def _check_ranges(objective: Objective, graph: LossGraph, known: dict[torch.fx.Node, Range]) -> list[Objection]:
    """Hold the ranges that verdicts lean on against the values at the current θ."""
    with objective.evaluating(), torch.no_grad():
        against = contradiction(graph, objective.parameters.values, known)
    what = "its values lie outside the bounds that interval arithmetic gives, so that no verdict rests on them"
    return [Objection("interval arithmetic", "unknown", against, what)] if against else []


def _check_gradient(objective: Objective, graph: LossGraph, batch: Any) -> list[Objection]:
    """Compare autograd's gradient through the model with that of the traced function, tensor by tensor.

    They differ where a hook, a custom backward or a no_grad block alters derivatives without leaving an operation.
    Where weights are streamed all derivatives are those of the traced function.
    """
    if objective.streamed:
        return []
    tensors = objective.parameters.tensors
    with objective.evaluating():
        try:
            theirs = torch.autograd.grad(objective.forward(batch).loss, tensors, allow_unused=True)
            ours = torch.autograd.grad(graph.run(tensors), tensors, allow_unused=True)
        except RuntimeError as error:
            reason = next(iter(str(error).splitlines()), "")
            return [Objection("autograd", "unknown", "the whole loss", f"gradients cannot be compared: {reason}")]
    scale = max(float(g.norm()) for g in (*ours, torch.zeros(1)) if g is not None)
    for p, a, b in zip(objective.parameters.parameters, theirs, ours, strict=True):
        zero = torch.zeros_like(p.tensor)
        seen, true = (zero if a is None else a), (zero if b is None else b)
        gap = float((seen - true).norm())
        if not math.isfinite(gap):
            return [Objection("autograd", "unknown", p.name, "the gradient is not finite at this θ")]
        if gap > _GRADIENT_TOLERANCE * (float(true.norm()) + 1e-2 * scale):
            return [Objection("autograd", "gradient", p.name, CONSEQUENCES["gradient"])]
    return []
