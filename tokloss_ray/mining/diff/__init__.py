"""Two models on the same words."""
