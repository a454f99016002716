"""How work is done once and kept: ledger, team of processes, budgets, progress, records."""
