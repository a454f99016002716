"""`villani recommend`."""
