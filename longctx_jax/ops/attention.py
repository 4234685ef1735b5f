"""Dense attention: the executable specification, slow and obvious.

Every faster path (`blockwise_attention`, and whatever runs on a mesh) has this
signature and equals this function, values and gradients.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from longctx_jax.array_types import typed


@typed
def attention_mask(segment_ids: Int[Array, 'B T']) -> Bool[Array, 'B T T']:
  """True where query t may attend to key s.

  segment_ids    1 1 2 2 0
  query 0        1 . . . .
  query 1        1 1 . . .
  query 2        . . 1 . .
  query 3        . . 1 1 .
  query 4        . . . . .     padding attends to nothing
  """
  T = segment_ids.shape[1]
  same = segment_ids[:, :, None] == segment_ids[:, None, :]
  real = segment_ids[:, :, None] > 0
  causal = jnp.arange(T)[:, None] >= jnp.arange(T)[None, :]
  return same & real & causal[None]


@typed
def dense_attention(
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B T K H'],
  v: Float[Array, 'B T K H'],
  *,
  segment_ids: Int[Array, 'B T'],
) -> Float[Array, 'B T N H']:
  """Causal softmax attention inside each segment; grouped heads allowed.

  Query head n reads key/value head n // (N / K). Scores are divided by
  sqrt(H). Softmax is float32. A padding query gives zeros, and no gradient.

  Raises:
    ValueError: if N is not a multiple of K.
  """
  B, T, N, H = q.shape
  K = k.shape[2]
  check_heads(N, K)
  grouped = q.reshape(B, T, K, N // K, H)
  scores = jnp.einsum(
    'BTKGH,BSKH->BKGTS', grouped, k, preferred_element_type=jnp.float32
  )
  mask = attention_mask(segment_ids)[:, None, None]
  scores = jnp.where(mask, scores * H**-0.5, -jnp.inf)
  # A row with nothing to attend to has maximum -inf; 0 keeps exp() finite.
  largest = jnp.max(scores, axis=-1, keepdims=True, initial=-1e30)
  weights = jnp.where(mask, jnp.exp(scores - largest), 0.0)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  weights = weights / jnp.where(total == 0, 1.0, total)
  out = jnp.einsum(
    'BKGTS,BSKH->BTKGH', weights, v, preferred_element_type=jnp.float32
  )
  return out.reshape(B, T, N, H).astype(q.dtype)


def check_heads(num_heads: int, num_kv_heads: int) -> None:
  """Raises ValueError unless every key/value head serves as many queries."""
  if num_heads % num_kv_heads:
    raise ValueError(
      f'num_heads={num_heads} is not a multiple of num_kv_heads={num_kv_heads}'
    )
