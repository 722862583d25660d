"""The only door to C: `lib` calls libbpf, `_step` attributes, `_events` decodes events."""
