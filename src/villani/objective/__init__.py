"""F(θ) = L(θ) + (λ/2)‖m⊙θ‖²: parameters, batches, and the traced graph."""
