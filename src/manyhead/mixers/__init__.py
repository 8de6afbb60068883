"""Token mixers: grid tokens in, grid tokens of the same shape out, one mechanism per file."""
