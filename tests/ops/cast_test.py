"""Casts of kernels: the same bits, gradients unrounded, and none ahead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longctx_jax.ops.cast import cast_kernel


def any_floats():
  """Every exponent with some mantissas, halfway ones too, and what is odd."""
  bits = np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint64)
  halfway = (bits[:10_000] & 0xFFFF0000) | 0x8000
  floats = np.concatenate([bits, halfway]).astype(np.uint32).view(np.float32)
  return np.append(floats, np.float32([0, -0.0, np.inf, -np.inf, 1e-40]))


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_a_cast_has_the_bits_of_astype(dtype):
  floats = any_floats()
  got = np.asarray(jax.jit(lambda x: cast_kernel(x, dtype))(floats))
  want = np.asarray(jnp.asarray(floats).astype(dtype))
  odd = np.isnan(want)
  np.testing.assert_array_equal(np.isnan(got), odd)
  unsigned = {2: np.uint16, 4: np.uint32}[want.itemsize]
  np.testing.assert_array_equal(
    got[~odd].view(unsigned), want[~odd].view(unsigned)
  )


def test_the_gradient_of_a_cast_is_not_rounded_again():
  kernel = jnp.float32([1.0, 2.0])
  _, vjp = jax.vjp(lambda k: cast_kernel(k, jnp.bfloat16), kernel)
  d_out = jnp.bfloat16([1 / 3, -7.0])
  (grad,) = vjp(d_out)
  assert grad.dtype == jnp.float32
  np.testing.assert_array_equal(grad, d_out.astype(jnp.float32))

  # Of a product in float32, nothing is rounded to bfloat16 on its way back.
  def loss(kernel):
    return jnp.sum(cast_kernel(kernel, jnp.float32) * jnp.float32(1 / 3))

  np.testing.assert_array_equal(jax.grad(loss)(kernel), np.float32(1 / 3))
