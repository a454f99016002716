"""Models and texts: what others made, read as data."""
