"""Pure mathematics: constants, rates, exact truths (THEORY.md). numpy and scipy only, no torch."""

from villani._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
