"""Inputs that nobody thought of, at every boundary: ``python -m tests.fuzz --count 10000``; a short slice runs with the tests."""
