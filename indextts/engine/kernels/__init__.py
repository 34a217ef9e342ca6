"""Fused kernels in Triton, each beside the torch code that it equals; imported only where :mod:`indextts.engine.fusion` wants them."""
