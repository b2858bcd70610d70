"""Offline evaluation: splits, metrics, baselines, and what the tags of the agents are worth."""
