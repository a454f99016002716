"""What moves θ: training, and later Langevin dynamics."""
