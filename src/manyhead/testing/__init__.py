"""Contract checks and hypothesis strategies, for our tests and for users' plug-ins."""
