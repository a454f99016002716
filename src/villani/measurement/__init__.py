"""The five statistics behind Ψ_s, and the plan of how to measure them."""
