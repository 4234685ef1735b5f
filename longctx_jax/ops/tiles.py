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
import numpy as np
from jaxtyping import Array, Bool, Int

from longctx_jax.ops.attention import Place

_NONE = jnp.iinfo(jnp.int32).max
_TILES_AT_A_TIME = 1_048_576  # ours: 1 MB of answers, and few turns of the loop


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


def shard_extents(
  segment_ids: Int[Array, 'R B T'], index: Int[Array, 'R T'], block_len: int
) -> Extent:
  """`block_extents` of each shard, stacked: [B, R, blocks]."""

  def extents(segment_ids, index):
    return block_extents(Place(segment_ids, index), block_len)

  return jax.vmap(extents, out_axes=1)(segment_ids, index)


def count_tiles(
  queries: Extent, keys: Extent
) -> Int[Array, 'B query_shards key_shards']:
  """How many tiles are needed of each shard's queries and each one's keys.

  Both [B, shards, blocks], and shards may differ. What is needed is added up
  for some query blocks at a time, so that memory does not grow with the number
  of tiles: a row of 512K tokens has 17 million in blocks of 128.
  """
  B, query_shards, query_blocks = queries.max_segment.shape
  key_shards = keys.max_segment.shape[1]
  by_block = jax.tree.map(lambda x: x.reshape(B, -1).T, queries)
  keys = jax.tree.map(lambda x: x.reshape(B, -1), keys)

  def count(query):
    block = jax.tree.map(lambda x: x[:, None], query)
    needed = needed_tiles(block, keys).reshape(B, key_shards, -1)
    return jnp.sum(needed, axis=-1, dtype=jnp.int32)

  at_a_time = max(_TILES_AT_A_TIME // max(keys.max_segment.size, 1), 1)
  counts = jax.lax.map(count, by_block, batch_size=at_a_time)
  counts = counts.reshape(query_shards, query_blocks, B, key_shards)
  return counts.sum(axis=1).swapaxes(0, 1)


def count_causal_tiles(
  query_index: np.ndarray, key_index: np.ndarray, block_len: int
) -> int:
  """Tiles that causality alone leaves, of indices [shards, tokens of each].

  `count_tiles` of one row of one document, known without looking at a batch: a
  tile is needed unless its first key comes after its last query.
  """
  last_query, first_key = (
    extreme.reduceat(index, np.arange(0, index.shape[1], block_len), axis=1)
    for extreme, index in (
      (np.maximum, query_index),
      (np.minimum, key_index),
    )
  )
  first_key = np.sort(first_key, axis=None)
  return int(np.searchsorted(first_key, last_query, side='right').sum())
