"""`villani doctor`."""
