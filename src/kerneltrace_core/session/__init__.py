"""Sessions: an object loaded, attached, streamed from and closed as one."""
