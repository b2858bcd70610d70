"""Builders and importers: each turns one source into the data set directory of `FORMAT.md`."""
