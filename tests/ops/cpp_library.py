"""Tests that need the C++ kernel are skipped where it cannot be compiled."""

import pytest

from longctx_jax.ops.kernels.cpp_library import why_unavailable

needs_library = pytest.mark.skipif(
  bool(why_unavailable()), reason=why_unavailable() or 'it is there'
)
