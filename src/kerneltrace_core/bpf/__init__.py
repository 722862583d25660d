"""BPF objects, their programs and links as live Python objects."""
