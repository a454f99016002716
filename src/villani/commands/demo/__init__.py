"""`villani demo`."""
