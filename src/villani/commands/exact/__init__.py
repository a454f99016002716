"""`villani exact`."""
