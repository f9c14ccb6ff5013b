"""Training and extraction on the workers."""
