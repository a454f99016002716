"""Words and signs that pages use, in a sentence each; a page explains those that occur on it."""

import re
from collections.abc import Iterator

WORDS = {
    "F": "the objective that is trained: the loss plus decay, F(θ) = L(θ) + (λ/2)‖mθ‖²",
    "L": "the loss: mean nats per predicted token",
    "θ": "all parameters of the model as one vector",
    "λ": "weight decay: the coefficient of (λ/2)‖mθ‖² in the objective",
    "s": "temperature: how much noise a Langevin process has; its law at rest is exp(−2F/s)",
    "Ψ": "‖∇F‖²/s − ΔF at a point: the quantity that condition (iv) says must grow without end as θ goes to infinity",
    "d_m": "how many parameters decay",
    "mθ": "the parameters that decay; the others are replaced by 0",
    "tr ∇²L": "the sum of the eigenvalues of the loss's second derivatives: its curvature, all directions together",
    "‖∇L‖²": "the squared length of the loss's gradient",
    "Villani function": "a function with four properties, (i) to (iv), from which the preprint derives its guarantees",
    "(i)": "F is smooth",
    "(ii)": "F grows at least quadratically",
    "(iii)": "exp(−2F/s) has Gaussian tails",
    "(iv)": "Ψ goes to infinity with θ, for every temperature s > 0",
    "orbit": "a curve to infinity along which weights are rescaled against each other and the loss stays the same",
    "ray": "a straight line θ + r·u from the measured weights",
    "s*": "the temperature above which Ψ falls without end along an orbit, so that condition (iv) fails",
    "witness": "a file with what is needed to evaluate a refutation again, on another machine",
    "log-Sobolev": "a constant that bounds how fast the Langevin process forgets where it began; larger is slower",
    "Poincaré": "the inverse of the spectral gap; larger is slower",
    "spectral gap": "the slowest rate at which the Langevin process forgets where it began",
    "effective rank": "(Σ|λ|)²/Σλ² of the eigenvalues: about how many directions carry the curvature",
    "Gauss–Newton": "the part of the curvature that comes from the outputs' first derivatives; never negative",
    "residual": "‖Hu − λu‖ of an eigenvector: an eigenvalue lies within it",
    "R̂": "how much chains disagree with each other; 1 is none",
    "effective samples": "how many independent draws the correlated ones of a chain are worth",
    "nats": "a unit of loss: natural logarithms; one nat is 1.44 bits",
    "δ": "the probability with which a bound may fail",
    "held-out": "on text that training never saw",
    "certified": "a theorem whose inputs are proved",
    "statistical": "a theorem with a confidence bound on measured inputs",
    "estimated": "a theorem with measured inputs plugged in",
    "as-claimed": "the preprint's formula, taken at its word",
    "refuted": "contradicted, by a witness or by a bound from the other side",
    "not refuted": "nothing was found against it, which proves nothing",
    "holds": "proved",
}


def words_of(text: str) -> Iterator[tuple[str, str]]:
    """The words that stand in a text, with what they mean."""
    for word, meaning in WORDS.items():
        if re.search(rf"(?<![\w'’]){re.escape(word)}(?![\w*])", text):
            yield word, meaning
