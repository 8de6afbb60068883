"""The ways to compute attention under a pattern, one per file."""
