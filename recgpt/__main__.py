"""`python -m recgpt`."""

from recgpt.cli import app

app()
