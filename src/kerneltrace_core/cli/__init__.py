"""The command ``kerneltrace``: ``python -m kerneltrace_core.cli COMMAND``."""
