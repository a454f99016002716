"""`villani spectrum`."""
