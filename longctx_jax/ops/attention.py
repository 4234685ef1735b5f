"""Dense attention: the executable specification, slow and obvious.

Every faster path has this signature and equals this function, values and
gradients.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from longctx_jax.array_types import typed


class Place(NamedTuple):
  """Where tokens stand: enough to tell which of them may attend to which.

  `index` is the token's place in its row, whatever order the row is stored in;
  it is not the RoPE position, which may restart in every document.
  """

  segment_ids: Array  # [B, T] int, 0 = padding
  index: Array  # [T] int


def places(
  batch_size: int, T: int, segment_ids: Array | None, index: Array | None
) -> Place:
  """Fills in what is left out: one segment, stored in order."""
  if segment_ids is None:
    segment_ids = jnp.ones((batch_size, T), jnp.int32)
  if index is None:
    index = jnp.arange(T, dtype=jnp.int32)
  return Place(segment_ids, index)


def attention_mask(queries: Place, keys: Place) -> Bool[Array, 'B T S']:
  """True where query t may attend to key s.

  segment_ids    1 1 2 2 0
  query 0        1 . . . .
  query 1        1 1 . . .
  query 2        . . 1 . .
  query 3        . . 1 1 .
  query 4        . . . . .     padding attends to nothing
  """
  query_ids, key_ids = queries.segment_ids, keys.segment_ids
  same = query_ids[:, :, None] == key_ids[:, None, :]
  real = query_ids[:, :, None] > 0
  causal = queries.index[:, None] >= keys.index[None, :]
  return same & real & causal[None]


@typed
def dense_attention(
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B S K H'],
  v: Float[Array, 'B S K H'],
  *,
  segment_ids: Int[Array, 'B T'] | None = None,
  index: Int[Array, ' T'] | None = None,
  key_segment_ids: Int[Array, 'B S'] | None = None,
  key_index: Int[Array, ' S'] | None = None,
) -> Float[Array, 'B T N H']:
  """Causal softmax attention inside each segment; grouped heads allowed.

  Query head n reads key/value head n // (N / K). Scores are divided by
  sqrt(H). Softmax is float32. A padding query gives zeros, and no gradient.

  Args:
    q: queries.
    k: keys.
    v: values.
    segment_ids: of the queries; None is one segment.
    index: of the queries in their row; None is 0, 1, 2, ...
    key_segment_ids: of the keys; None is those of the queries, if S = T.
    key_index: of the keys; None as for the queries, if S = T.

  Raises:
    ValueError: N is not a multiple of K, or S is not T and it is not said
      where both stand.
  """
  B, T, N, H = q.shape
  S, K = k.shape[1:3]
  check_heads(N, K)
  queries, keys = query_and_key_places(
    (B, T, S), segment_ids, index, key_segment_ids, key_index
  )
  grouped = q.reshape(B, T, K, N // K, H)
  scores = jnp.einsum(
    'BTKGH,BSKH->BKGTS', grouped, k, preferred_element_type=jnp.float32
  )
  mask = attention_mask(queries, keys)[:, None, None]
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


def query_and_key_places(
  shape: tuple[int, int, int],
  segment_ids: Array | None,
  index: Array | None,
  key_segment_ids: Array | None,
  key_index: Array | None,
) -> tuple[Place, Place]:
  """The places of queries and keys from the arguments of an attention."""
  B, T, S = shape
  if S == T:
    if key_segment_ids is None:
      key_segment_ids = segment_ids
    key_index = index if key_index is None else key_index
  elif (
    (segment_ids is None) != (key_segment_ids is None)
    or index is None
    or key_index is None
  ):
    raise ValueError(
      f'{T} queries and {S} keys: say where both stand in their row, by index'
      ' and key_index, and segment_ids of both or of neither'
    )
  return (
    places(B, T, segment_ids, index),
    places(B, S, key_segment_ids, key_index),
  )


def check_heads(num_heads: int, num_kv_heads: int) -> None:
  """Raises ValueError unless every key/value head serves as many queries."""
  if num_heads % num_kv_heads:
    raise ValueError(
      f'num_heads={num_heads} is not a multiple of num_kv_heads={num_kv_heads}'
    )
