"""Kernels in the dtype of products, made where they are used."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from longctx_jax.array_types import typed


@typed
def cast_kernel(kernel: Float[Array, '...'], dtype) -> Float[Array, '...']:
  """`kernel.astype(dtype)`; its gradient is in the kernel's own dtype.

  In a scan over layers XLA's TPU compiler would cast those of all layers ahead
  of the loop, as nothing in there wants them in float32 (its pass
  bfloat16-propagation): 1.7 GB a chip for Llama-3-8B on eight. It does not look
  behind a reduce-precision, after which the cast has nothing left to round.
  """
  return _cast(kernel, jnp.dtype(dtype))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _cast(kernel, dtype):
  if kernel.dtype == jnp.float32 and dtype == jnp.bfloat16:
    kernel = jax.lax.reduce_precision(kernel, exponent_bits=8, mantissa_bits=7)
  return kernel.astype(dtype)


@_cast.defjvp
def _cast_jvp(dtype, primals, tangents):
  # Not through the rounding: its gradient would be rounded too.
  return _cast(*primals, dtype), tangents[0].astype(dtype)
