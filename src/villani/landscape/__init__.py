"""Models, text and tokenizers: what a loss landscape is the landscape of."""
