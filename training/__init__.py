"""Training: data built from what households really bought next."""
