"""`villani certify`."""
