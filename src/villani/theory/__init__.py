"""Pure mathematics: constants, rates, exact truths (THEORY.md). numpy and scipy only, no torch."""
