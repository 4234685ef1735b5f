"""Which tiles of the score matrix are needed at all.

A tile is one block of queries against one block of keys. It is needed unless
the extremes of its segment ids and indices rule out every pair in it. For rows
whose documents lie end to end this is exact: a needed tile has a pair that
attends. One rule for all paths: the loops on every platform walk these lists,
and the work counters count them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from longctx_jax.ops.attention import Place

_NONE = jnp.iinfo(jnp.int32).max


class Extent(NamedTuple):
  """Smallest and largest segment id and index of the real tokens of blocks.

  Each [B, blocks]. A block without a real token has an empty extent.
  """

  min_segment: Array
  max_segment: Array
  min_index: Array
  max_index: Array


def block_extents(place: Place, block_len: int) -> Extent:
  """The extent of each block of `block_len` tokens; the last may be short."""
  segment_ids = place.segment_ids.astype(jnp.int32)
  B, T = segment_ids.shape
  pad = -T % block_len
  segment_ids = jnp.pad(segment_ids, ((0, 0), (0, pad)))
  index = jnp.pad(place.index.astype(jnp.int32), (0, pad))
  segment_ids = segment_ids.reshape(B, -1, block_len)
  index = index.reshape(1, -1, block_len)
  real = segment_ids > 0
  return Extent(
    jnp.min(jnp.where(real, segment_ids, _NONE), axis=-1),
    jnp.max(segment_ids, axis=-1),
    jnp.min(jnp.where(real, index, _NONE), axis=-1),
    jnp.max(jnp.where(real, index, -1), axis=-1),
  )


def needed_tiles(
  queries: Extent, keys: Extent
) -> Bool[Array, 'B query_blocks key_blocks']:
  """False where no query of the block may attend to any key of the other."""
  overlap = (
    queries.max_segment[:, :, None] >= keys.min_segment[:, None, :]
  ) & (queries.min_segment[:, :, None] <= keys.max_segment[:, None, :])
  causal = queries.max_index[:, :, None] >= keys.min_index[:, None, :]
  return overlap & causal


class TileLists(NamedTuple):
  """For each query block, its needed key blocks first, and how many."""

  key_blocks: Int[Array, '*batch query_blocks key_blocks']
  counts: Int[Array, '*batch query_blocks']


def tile_lists(needed: Bool[Array, '*batch Q S']) -> TileLists:
  """Lists the needed key blocks of each query block, in their order."""
  return TileLists(
    jnp.argsort(~needed, axis=-1, stable=True).astype(jnp.int32),
    jnp.sum(needed, axis=-1, dtype=jnp.int32),
  )


def needed_between_shards(
  segment_ids: Int[Array, 'R B T'], index: Int[Array, 'R T'], block_len: int
) -> Bool[Array, 'B R R query_blocks key_blocks']:
  """`needed_tiles` of the queries of each shard and the keys of each."""

  def extents(segment_ids, index):
    return block_extents(Place(segment_ids, index), block_len)

  shards = jax.vmap(extents, out_axes=1)(segment_ids, index)
  each = jax.vmap(needed_tiles, in_axes=(None, 1), out_axes=1)
  return jax.vmap(each, in_axes=(1, None), out_axes=1)(shards, shards)
