"""Whole pieces of work, from a model and a text to a run directory."""
