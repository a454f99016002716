"""Second derivatives of the loss: products, probes, traces."""
