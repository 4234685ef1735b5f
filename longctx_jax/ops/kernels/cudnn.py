"""Whole rows through cuDNN's flash attention, where its mask says what ours do.

By JAX's public function, cuDNN's mask knows the future but no documents. How
many documents a row holds is known at run time alone, so every device asks its
own rows, in every step: with one segment and then padding in each, cuDNN
attends to them; else the XLA loops of `blockwise_attention` do.

JAX differentiates through the choice, with cuDNN's gradient on the one side and
ours on the other. Residuals of a type are shared between the two, so all that
is kept more than for the XLA loops alone is cuDNN's output and its statistics:
N * (2 H + 4) bytes a token, of one layer at a time where layers are remade.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from longctx_jax.array_types import typed
from longctx_jax.ops.blockwise_attention import blockwise_attention
from longctx_jax.ops.context_parallel import WholeRowKernel


@typed
def attend(
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B T K H'],
  v: Float[Array, 'B T K H'],
  *,
  segment_ids: Int[Array, 'B T'],
  block_len: int = 512,
  implementation: str = 'cudnn',
) -> Float[Array, 'B T N H']:
  """`dense_attention` of whole rows in their order.

  Args:
    q: queries.
    k: keys.
    v: values.
    segment_ids: as there.
    block_len: of the XLA loops.
    implementation: 'xla' runs the same choice where there is no cuDNN.
  """

  def by_causal_flag(q, k, v):
    out = jax.nn.dot_product_attention(
      q, k, v, is_causal=True, implementation=implementation
    )
    # Padding at the end is in no real token's past; as queries it must give
    # nothing and pass no gradient on. A product, because its gradient keeps
    # [B, T]; that of jnp.where would keep masks of [B, T, N, H].
    return jnp.einsum('BTNH,BT->BTNH', out, (segment_ids > 0).astype(out.dtype))

  by_tiles = functools.partial(
    blockwise_attention, segment_ids=segment_ids, block_len=block_len
  )
  return jax.lax.cond(
    hold_one_segment(segment_ids), by_causal_flag, by_tiles, q, k, v
  )


@typed
def hold_one_segment(segment_ids: Int[Array, 'B T']) -> Bool[Array, '']:
  """Whether each row is one segment, and then padding if anything.

  1 1 1 1    3 3 0 0    0 0 0 0     they do
  1 1 2 2    1 0 0 1    0 0 1 1     they don't
  """
  before, after = segment_ids[:, :-1], segment_ids[:, 1:]
  return jnp.all((after == before) | (after == 0))


def is_installed() -> bool:
  """Whether JAX finds a cuDNN for its devices: it tells when it traces."""
  x = jax.ShapeDtypeStruct((1, 8, 1, 64), jnp.bfloat16)
  by_cudnn = functools.partial(
    jax.nn.dot_product_attention, implementation='cudnn'
  )
  try:
    jax.eval_shape(by_cudnn, x, x, x)
  except RuntimeError:
    return False
  return True


CUDNN = WholeRowKernel(attend)
