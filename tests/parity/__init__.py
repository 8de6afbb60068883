"""Parity with official implementations: one module per golden file, each with `run(arrays)`."""
