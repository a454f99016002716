"""`villani compare`."""
