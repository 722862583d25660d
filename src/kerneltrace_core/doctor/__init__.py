"""Say at 3 a.m. what of kerneltrace works here, what does not, and the exact fix.

``python -m kerneltrace_core.doctor [--json]``. Exit status: 0 all works, 1 something is
missing, 2 could not tell. It asks the kernel with the privileges of the shell it runs in,
loads minimal programs only, attaches none, and leaves nothing behind.
"""
