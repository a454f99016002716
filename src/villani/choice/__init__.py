"""Rules that name a λ, and what tells two of them apart."""
