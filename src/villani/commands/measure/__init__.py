"""`villani measure`."""
