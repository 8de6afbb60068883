"""Stacks of mixers: transformer, pyramid, U-shape, graph, two-tower."""
