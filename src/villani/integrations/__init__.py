"""Live figures inside the training loops of others: Hugging Face's Trainer and Lightning."""
