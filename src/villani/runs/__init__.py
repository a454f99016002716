"""Records of what was measured, and the ledger that lets a killed run resume."""
