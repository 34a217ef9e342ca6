"""Fixtures of the pool's tests."""

from tests.parallel.fakes import pool_of

__all__ = ["pool_of"]
