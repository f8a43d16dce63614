"""Training: one loop, and what runs through it."""
