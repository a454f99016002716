"""`villani converge`."""
