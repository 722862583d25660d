"""The only door to C: `lib` calls libbpf, `_step` is the C half of attribution."""
