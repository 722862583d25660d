"""Outputs: each takes finished KernelStats to one place, and imports its target only when used."""
