"""Smooth functions from text: a small grammar with exact first and second derivatives, evaluated on arrays.

Nothing is executed that the text says: Python's `ast` only reads it, every node is checked against the tables below,
and what remains is a tree of arithmetic on *jets*, (value, gradient, Hessian) triples that follow the chain rule.
Logarithms of sums of exponentials are recognised and computed without overflow.
"""

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, expit

from villani.errors import InputError

Array = NDArray[np.float64]
Curve = Callable[[Array], tuple[Array, Array, Array]]
_LONGEST = 2000  # characters of an expression; keeps the tree shallow enough to walk


@dataclass(frozen=True)
class Jet:
    """A function at n points of R^k: value (n,), gradient (k, n), Hessian (k, k, n)."""

    value: Array
    gradient: Array
    hessian: Array

    def __add__(self, other: "Jet") -> "Jet":
        return Jet(self.value + other.value, self.gradient + other.gradient, self.hessian + other.hessian)

    def __mul__(self, other: "Jet") -> "Jet":
        cross = _outer(self.gradient, other.gradient)
        return Jet(
            self.value * other.value,
            self.value * other.gradient + other.value * self.gradient,
            self.value * other.hessian + other.value * self.hessian + cross + cross.swapaxes(0, 1),
        )

    def through(self, curve: Curve) -> "Jet":
        """The composition f∘self, where `curve` gives f, f′ and f″."""
        value, slope, bend = curve(self.value)
        square = _outer(self.gradient, self.gradient)
        return Jet(value, slope * self.gradient, slope * self.hessian + bend * square)

    @property
    def laplacian(self) -> Array:
        """Trace of the Hessian, (n,)."""
        total: Array = np.einsum("iin->n", self.hessian)
        return total


Node = Callable[[Array], Jet]


@dataclass(frozen=True)
class Expression:
    """A parsed function of named variables.

    Attributes:
        text: as written.
        variables: names of the coordinates, in alphabetical order.
        kinked: whether it uses `abs`, which has no derivative at 0.
        constants: the named constants that it was read with.

    Call it with points (k, n) for the values (n,); `jet` also gives the derivatives.
    """

    text: str
    variables: tuple[str, ...]
    kinked: bool
    constants: tuple[tuple[str, float], ...]
    _node: Node = field(compare=False)

    def __call__(self, points: Array) -> Array:
        """Values at points (k, n)."""
        return self.jet(points).value

    def jet(self, points: Array) -> Jet:
        """Value, gradient and Hessian at points (k, n); overflow gives inf or nan, never a warning."""
        with np.errstate(all="ignore"):
            return self._node(np.asarray(points, dtype=float))


def parse(text: str, parameters: Mapping[str, float] | None = None) -> Expression:
    """Read a real function: numbers, names, + − * / **, brackets and the functions of `FUNCTIONS`.

    Args:
        text: such as "log(1 + exp(-a*w1*w2))". A name that is neither a function nor a parameter is a coordinate.
        parameters: values of named constants; `pi` is known.

    Raises:
        InputError: anything outside the grammar.
    """
    if len(text) > _LONGEST:
        raise InputError(f"expression of {len(text)} characters: expected at most {_LONGEST}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        reader = _Reader(text, {"pi": math.pi, **(parameters or {})})
        variables = tuple(sorted(reader.names(tree)))
        node = reader.build(tree, variables)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"expression {shortened(text)}: not readable as arithmetic; write it as in 'log(1+exp(-w))'"
        ) from None
    kinked = any(isinstance(part, ast.Name) and part.id == "abs" for part in ast.walk(tree))
    return Expression(text, variables or ("w",), kinked, tuple(sorted((parameters or {}).items())), node)


def shortened(text: str, most: int = 80) -> str:
    """The text in quotes, for a message of one line."""
    return repr(text if len(text) <= most else text[: most - 1] + "…")


class _Reader:
    """Turns checked `ast` nodes into functions on jets."""

    def __init__(self, text: str, constants: Mapping[str, float]) -> None:
        self.text, self.constants = text, constants

    def refuse(self, what: str) -> InputError:
        return InputError(f"expression {shortened(self.text)}: {what}")

    def names(self, tree: ast.AST) -> set[str]:
        """Coordinates: names that are neither functions nor parameters."""
        found = {part.id for part in ast.walk(tree) if isinstance(part, ast.Name)}
        called = {p.func.id for p in ast.walk(tree) if isinstance(p, ast.Call) and isinstance(p.func, ast.Name)}
        return found - set(self.constants) - set(FUNCTIONS) - called

    def build(self, tree: ast.expr, variables: tuple[str, ...]) -> Node:
        """The function of one subtree."""

        def below(child: ast.expr) -> Node:
            return self.build(child, variables)

        match tree:
            case ast.Constant(value=bool() | complex()):
                raise self.refuse(f"{tree.value!r} is not a real number")
            case ast.Constant(value=int() | float() as number):
                return _constant(float(number))
            case ast.Name(id=name):
                if name in self.constants:
                    return _constant(float(self.constants[name]))
                if name in FUNCTIONS:
                    raise self.refuse(f"{name} is a function: write {name}(…)")
                return _coordinate(variables.index(name))
            case ast.UnaryOp(op=ast.USub()):
                return _product(_constant(-1.0), below(tree.operand))
            case ast.UnaryOp(op=ast.UAdd()):
                return below(tree.operand)
            case ast.BinOp(op=ast.Add()):
                return _sum(below(tree.left), below(tree.right))
            case ast.BinOp(op=ast.Sub()):
                return _sum(below(tree.left), _product(_constant(-1.0), below(tree.right)))
            case ast.BinOp(op=ast.Mult()):
                return _product(below(tree.left), below(tree.right))
            case ast.BinOp(op=ast.Div()):
                return _product(below(tree.left), _composed(_power(-1.0), below(tree.right)))
            case ast.BinOp(op=ast.Pow()):
                return _composed(_power(self._number(tree.right)), below(tree.left))
            case ast.BinOp(op=ast.BitXor()):
                raise self.refuse("^ is not a power here: write **")
            case ast.Call(func=ast.Name(id="logsumexp"), args=terms, keywords=[]) if terms:
                return _log_sum_exp([below(term) for term in terms])
            case ast.Call(func=ast.Name(id="log"), args=[argument], keywords=[]):
                exponents = _exponents(argument)
                if exponents is not None:
                    return _log_sum_exp([below(exponent) for exponent in exponents])
                if (
                    isinstance(argument, ast.Call)
                    and isinstance(argument.func, ast.Name)
                    and argument.func.id == "cosh"
                ):
                    return _composed(FUNCTIONS["logcosh"], below(argument.args[0]))
                return _composed(FUNCTIONS["log"], below(argument))
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in FUNCTIONS:
                return _composed(FUNCTIONS[name], below(argument))
            case ast.Call(func=ast.Name(id=name)):
                if name in FUNCTIONS or name == "logsumexp":
                    raise self.refuse(f"{name} takes one argument" + ("" if name in FUNCTIONS else " or more"))
                raise self.refuse(f"unknown function {name}; known: {', '.join([*FUNCTIONS, 'logsumexp'])}")
            case _:
                raise self.refuse(
                    f"{type(tree).__name__} is not arithmetic; use + - * / ** and functions of one number"
                )

    def _number(self, tree: ast.expr) -> float:
        if self.names(tree):
            raise self.refuse("an exponent has to be a number: write exp(p*log(x)) for a power that varies")
        with np.errstate(all="ignore"):
            value = float(self.build(tree, ())(np.zeros((0, 1))).value[0])
        if not math.isfinite(value):
            raise self.refuse("an exponent is no finite number")
        return value


def _constant(value: float) -> Node:
    def node(points: Array) -> Jet:
        size, count = points.shape
        return Jet(np.full(count, value), np.zeros((size, count)), np.zeros((size, size, count)))

    return node


def _coordinate(index: int) -> Node:
    def node(points: Array) -> Jet:
        size, count = points.shape
        gradient = np.zeros((size, count))
        gradient[index] = 1.0
        return Jet(points[index], gradient, np.zeros((size, size, count)))

    return node


def _sum(left: Node, right: Node) -> Node:
    return lambda points: left(points) + right(points)


def _product(left: Node, right: Node) -> Node:
    return lambda points: left(points) * right(points)


def _composed(curve: Curve, inner: Node) -> Node:
    return lambda points: inner(points).through(curve)


def _outer(left: Array, right: Array) -> Array:
    product: Array = left[:, None] * right[None]
    return product


def _log_sum_exp(terms: list[Node]) -> Node:
    """ln Σ e^{z_i}: gradient Σ p_i ∇z_i, Hessian Σ p_i (∇²z_i + ∇z_i∇z_iᵀ) − ∇∇ᵀ, with p = softmax(z)."""

    def node(points: Array) -> Jet:
        jets = [term(points) for term in terms]
        exponents = np.array([jet.value for jet in jets])
        top = exponents.max(axis=0)
        shares = np.exp(exponents - top)
        total = shares.sum(axis=0)
        shares = shares / total
        gradient = sum((p * jet.gradient for p, jet in zip(shares, jets, strict=True)), np.zeros(points.shape))
        hessian = np.zeros((len(points), *points.shape))
        for p, jet in zip(shares, jets, strict=True):
            apart = jet.gradient - gradient  # covariance of the slopes, as a sum of squares: no cancellation
            hessian += p * (jet.hessian + _outer(apart, apart))
        return Jet(top + np.log(total), gradient, hessian)

    return node


def _exponents(tree: ast.expr) -> list[ast.expr] | None:
    """z_1 … z_n if the subtree is Σ exp(z_i), with positive numbers c read as exp(ln c); None otherwise."""
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add):
        left, right = _exponents(tree.left), _exponents(tree.right)
        return None if left is None or right is None else left + right
    match tree:
        case ast.Call(func=ast.Name(id="exp"), args=[argument], keywords=[]):
            return [argument]
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool) and number > 0:
            return [ast.Constant(math.log(number))]
    return None


def _power(exponent: float) -> Curve:
    def curve(x: Array) -> tuple[Array, Array, Array]:
        def term(factor: float, power: float) -> Array:
            return factor * x**power if factor else np.zeros_like(x)

        p = exponent
        return term(1.0, p), term(p, p - 1), term(p * (p - 1), p - 2)

    return curve


def _log_cosh(x: Array) -> tuple[Array, Array, Array]:
    size = np.abs(x)
    return size + np.log1p(np.exp(-2 * size)) - math.log(2), np.tanh(x), 1 / np.cosh(x) ** 2


def _sigmoid(x: Array) -> tuple[Array, Array, Array]:
    p, q = expit(x), expit(-x)
    return p, p * q, p * q * (q - p)


def _erf(x: Array) -> tuple[Array, Array, Array]:
    slope = 2 / math.sqrt(math.pi) * np.exp(-(x**2))
    return erf(x), slope, -2 * x * slope


FUNCTIONS: dict[str, Curve] = {
    "exp": lambda x: (np.exp(x), np.exp(x), np.exp(x)),
    "log": lambda x: (np.log(x), 1 / x, -1 / x**2),
    "sqrt": _power(0.5),
    "sin": lambda x: (np.sin(x), np.cos(x), -np.sin(x)),
    "cos": lambda x: (np.cos(x), -np.sin(x), -np.cos(x)),
    "tanh": lambda x: (np.tanh(x), 1 / np.cosh(x) ** 2, -2 * np.tanh(x) / np.cosh(x) ** 2),
    "cosh": lambda x: (np.cosh(x), np.sinh(x), np.cosh(x)),
    "sinh": lambda x: (np.sinh(x), np.cosh(x), np.sinh(x)),
    "atan": lambda x: (np.arctan(x), 1 / (1 + x**2), -2 * x / (1 + x**2) ** 2),
    "erf": _erf,
    "sigmoid": _sigmoid,
    "softplus": lambda x: (np.logaddexp(0.0, x), expit(x), expit(x) * expit(-x)),
    "logcosh": _log_cosh,
    "abs": lambda x: (np.abs(x), np.sign(x), np.zeros_like(x)),
}
