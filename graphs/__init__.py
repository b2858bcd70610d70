"""The graphs: one file each, which reads as a table of contents."""
