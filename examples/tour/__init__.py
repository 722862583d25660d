"""What `make demo` is made of: the application as a child, its traffic, and three pictures."""
