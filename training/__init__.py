"""Training: data built from what households really bought next, and the tuning of the agents on it."""
