"""Smooth functions from text: a small grammar with exact first and second derivatives, evaluated on arrays.

Nothing is executed that the text says: Python's `ast` only reads it, every node is checked against the tables below,
and what remains is a tree of arithmetic. Here it is evaluated on *jets*, (value, gradient, Hessian) triples that follow
the chain rule; `enclosures.py` evaluates the same tree on intervals.
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
_LONGEST = 2000  # characters of an expression
_DEEPEST = 300  # operations inside one another; what walks a tree calls itself once for each


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


@dataclass(frozen=True)
class Number:
    """A constant."""

    value: float


@dataclass(frozen=True)
class Coordinate:
    """A variable, by its place in `Expression.variables`."""

    index: int


@dataclass(frozen=True)
class Sum:
    """left + right."""

    left: "Tree"
    right: "Tree"


@dataclass(frozen=True)
class Product:
    """left · right."""

    left: "Tree"
    right: "Tree"


@dataclass(frozen=True)
class Power:
    """inner ** exponent."""

    exponent: float
    inner: "Tree"


@dataclass(frozen=True)
class Applied:
    """A function of `FUNCTIONS`, by its name, of inner."""

    function: str
    inner: "Tree"


@dataclass(frozen=True)
class LogSumExp:
    """ln Σ exp(terms)."""

    terms: tuple["Tree", ...]


Tree = Number | Coordinate | Sum | Product | Power | Applied | LogSumExp

_SIGNS: dict[type[ast.unaryop], Callable[[Tree], Tree]] = {
    ast.USub: lambda inner: Product(Number(-1.0), inner),
    ast.UAdd: lambda inner: inner,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Tree, Tree], Tree]] = {
    ast.Add: Sum,
    ast.Sub: lambda left, right: Sum(left, Product(Number(-1.0), right)),
    ast.Mult: Product,
    ast.Div: lambda left, right: Product(left, Power(-1.0, right)),
}


@dataclass(frozen=True)
class Expression:
    """A parsed function of named variables.

    Attributes:
        text: as written.
        variables: names of the coordinates, in alphabetical order.
        kinked: whether it uses `abs`, which has no derivative at 0.
        constants: the named constants that it was read with.
        tree: what the text says.

    Call it with points (k, n) for the values (n,); `jet` also gives the derivatives.
    """

    text: str
    variables: tuple[str, ...]
    kinked: bool
    constants: tuple[tuple[str, float], ...]
    tree: Tree = field(compare=False)  # follows from text and constants

    def __call__(self, points: Array) -> Array:
        """Values at points (k, n)."""
        return self.jet(points).value

    def jet(self, points: Array) -> Jet:
        """Value, gradient and Hessian at points (k, n); overflow gives inf or nan, never a warning."""
        with np.errstate(all="ignore"):
            return _jet(self.tree, np.asarray(points, dtype=float))


def parse(text: str, parameters: Mapping[str, float] | None = None) -> Expression:
    """Read a real function: numbers, names, + − * / **, brackets and the functions of `FUNCTIONS`.

    Args:
        text: such as "log(1 + exp(-a*w1*w2))". A name that is neither a function nor a parameter is a coordinate.
        parameters: values of named constants; `pi` is known.

    Raises:
        InputError: anything outside the grammar.
    """
    for name, value in (parameters or {}).items():
        if not math.isfinite(value):
            raise InputError(f"{name}={value:g}: expected a finite number")
    if len(text) > _LONGEST:
        raise InputError(f"expression of {len(text)} characters: expected at most {_LONGEST}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        reader = _Reader(text, {"pi": math.pi, **(parameters or {})}, tree)
        built = reader.build(tree)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"expression {shortened(text)}: not readable as arithmetic; write it as in 'log(1+exp(-w))'"
        ) from None
    kinked = any(isinstance(part, ast.Name) and part.id == "abs" for part in ast.walk(tree))
    return Expression(text, reader.variables or ("w",), kinked, tuple(sorted((parameters or {}).items())), built)


def shortened(text: str, most: int = 80) -> str:
    """The text in quotes, for a message of one line."""
    return repr(text if len(text) <= most else text[: most - 1] + "…")


class _Reader:
    """Turns checked `ast` nodes into a `Tree`."""

    def __init__(self, text: str, constants: Mapping[str, float], tree: ast.expr) -> None:
        self.text, self.constants = text, constants
        if _depth(tree) > _DEEPEST:
            raise self.refuse(f"more than {_DEEPEST} operations inside one another; split long sums with brackets")
        self.variables = tuple(sorted(self.names(tree)))

    def refuse(self, what: str) -> InputError:
        return InputError(f"expression {shortened(self.text)}: {what}")

    def names(self, tree: ast.AST) -> set[str]:
        """Coordinates: names that are neither functions nor parameters."""
        found = {part.id for part in ast.walk(tree) if isinstance(part, ast.Name)}
        called = {p.func.id for p in ast.walk(tree) if isinstance(p, ast.Call) and isinstance(p.func, ast.Name)}
        return found - set(self.constants) - set(FUNCTIONS) - called

    def build(self, tree: ast.expr) -> Tree:
        """What one subtree says."""
        match tree:
            case ast.Constant(value=value):
                return Number(self._constant(value))
            case ast.Name(id=name):
                return self._name(name)
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _SIGNS:
                return _SIGNS[type(op)](self.build(operand))
            case ast.BinOp(left=left, op=ast.Pow(), right=right):
                return Power(self._exponent(right), self.build(left))
            case ast.BinOp(op=ast.BitXor()):
                raise self.refuse("^ is not a power here: write **")
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                return _ARITHMETIC[type(op)](self.build(left), self.build(right))
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=named):
                return self._call(name, arguments, bool(named))
        raise self._no_arithmetic(type(tree).__name__)

    def _no_arithmetic(self, node: str) -> InputError:
        return self.refuse(f"{node} is not arithmetic; use + - * / ** and functions of one number")

    def _constant(self, value: object) -> float:
        if isinstance(value, bool | complex):
            raise self.refuse(f"{value!r} is not a real number")
        if not isinstance(value, int | float):
            raise self._no_arithmetic("Constant")
        if not math.isfinite(value):
            raise self.refuse("a number in it is not finite")
        return float(value)

    def _name(self, name: str) -> Tree:
        if name in self.constants:
            return Number(float(self.constants[name]))
        if name in FUNCTIONS:
            raise self.refuse(f"{name} is a function: write {name}(…)")
        return Coordinate(self.variables.index(name))

    def _call(self, name: str, arguments: list[ast.expr], named: bool) -> Tree:
        """A function of its arguments; logarithms of Σ exp and of cosh become functions that do not overflow."""
        if name == "logsumexp" and arguments and not named:
            return LogSumExp(tuple(map(self.build, arguments)))
        if name == "logsumexp":
            raise self.refuse("logsumexp takes one argument or more")
        if name not in FUNCTIONS:
            raise self.refuse(f"unknown function {name}; known: {', '.join([*FUNCTIONS, 'logsumexp'])}")
        if len(arguments) != 1 or named:
            raise self.refuse(f"{name} takes one argument")
        if name == "log" and (exponents := _exponents(arguments[0])) is not None:
            return LogSumExp(tuple(map(self.build, exponents)))
        inner = self.build(arguments[0])
        match name, inner:
            case "log", Applied("cosh", angle):
                return Applied("logcosh", angle)
        return Applied(name, inner)

    def _exponent(self, tree: ast.expr) -> float:
        if self.names(tree):
            raise self.refuse("an exponent has to be a number: write exp(p*log(x)) for a power that varies")
        with np.errstate(all="ignore"):
            value = float(_jet(self.build(tree), np.zeros((0, 1))).value[0])
        if not math.isfinite(value):
            raise self.refuse("an exponent is no finite number")
        return value


def _jet(tree: Tree, points: Array) -> Jet:
    size, count = points.shape
    match tree:
        case Number(value):
            return Jet(np.full(count, value), np.zeros((size, count)), np.zeros((size, size, count)))
        case Coordinate(index):
            gradient = np.zeros((size, count))
            gradient[index] = 1.0
            return Jet(points[index], gradient, np.zeros((size, size, count)))
        case Sum(left, right):
            return _jet(left, points) + _jet(right, points)
        case Product(left, right):
            return _jet(left, points) * _jet(right, points)
        case Power(exponent, inner):
            return _jet(inner, points).through(power(exponent))
        case Applied(function, inner):
            return _jet(inner, points).through(FUNCTIONS[function])
        case LogSumExp(terms):
            return _log_sum_exp([_jet(term, points) for term in terms])


def _outer(left: Array, right: Array) -> Array:
    product: Array = left[:, None] * right[None]
    return product


def _log_sum_exp(jets: list[Jet]) -> Jet:
    """ln Σ e^{z_i}: gradient Σ p_i ∇z_i, Hessian Σ p_i (∇²z_i + ∇z_i∇z_iᵀ) − ∇∇ᵀ, with p = softmax(z)."""
    exponents = np.array([jet.value for jet in jets])
    top = exponents.max(axis=0)
    shares = np.exp(exponents - top)
    total = shares.sum(axis=0)
    shares = shares / total
    gradient = sum((p * jet.gradient for p, jet in zip(shares, jets, strict=True)), np.zeros_like(jets[0].gradient))
    hessian = np.zeros_like(jets[0].hessian)
    for p, jet in zip(shares, jets, strict=True):
        apart = jet.gradient - gradient  # covariance of the slopes, as a sum of squares: no cancellation
        hessian += p * (jet.hessian + _outer(apart, apart))
    return Jet(top + np.log(total), gradient, hessian)


def _depth(tree: ast.expr) -> int:
    """Operations inside one another, counted without calling itself."""
    depth, level = 0, [tree]
    while level:
        depth += 1
        level = [child for part in level for child in ast.iter_child_nodes(part) if isinstance(child, ast.expr)]
    return depth


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


def power(exponent: float) -> Curve:
    """x ↦ x**exponent and its derivatives."""

    def curve(x: Array) -> tuple[Array, Array, Array]:
        def term(factor: float, power: float) -> Array:
            return factor * x**power if factor else np.zeros_like(x)

        p = exponent
        return term(1.0, p), term(p, p - 1), term(p * (p - 1), p - 2)

    return curve


def _log_cosh(x: Array) -> tuple[Array, Array, Array]:
    size = np.abs(x)
    far = size + np.log1p(np.exp(-2 * size)) - math.log(2)
    near = np.log1p(2 * np.sinh(np.minimum(size, 1) / 2) ** 2)  # keeps its digits at 0
    return np.where(size < 1, near, far), np.tanh(x), 1 / np.cosh(x) ** 2


def _sigmoid(x: Array) -> tuple[Array, Array, Array]:
    p, q = expit(x), expit(-x)
    return p, p * q, -p * q * np.tanh(x / 2)  # q − p without cancellation


def _erf(x: Array) -> tuple[Array, Array, Array]:
    slope = 2 / math.sqrt(math.pi) * np.exp(-(x**2))
    return erf(x), slope, -2 * x * slope


FUNCTIONS: dict[str, Curve] = {
    "exp": lambda x: (np.exp(x), np.exp(x), np.exp(x)),
    "log": lambda x: (np.log(x), 1 / x, -1 / x**2),
    "sqrt": power(0.5),
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
