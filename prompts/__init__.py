"""Prompts as data: one folder an agent, a version a file, and the loader that renders them strictly."""
