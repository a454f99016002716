"""`villani study paper`."""
