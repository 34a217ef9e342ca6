"""How the networks are run: generation, caching, precision, timing."""
