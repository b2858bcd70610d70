"""The command line: `recgpt data`, `recgpt serve`, `recgpt recommend`, `recgpt schema`."""
