"""`villani constants`."""
