"""`villani audit`."""
