"""How much of the attention's work documents leave, counted before it is done.

The counts come from the rule by which the loops skip (`ops.tiles`) and the plan
by which the ring travels (`ops.ring_attention`), so they are those of the work
itself, at the cost of a few comparisons a tile.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from longctx_jax.array_types import typed
from longctx_jax.ops.attention import Place
from longctx_jax.ops.context_parallel import ContextParallel, check_rows
from longctx_jax.ops.ring_attention import needed_hops
from longctx_jax.ops.sequence_layout import stored_index
from longctx_jax.ops.tiles import (
  block_extents,
  needed_between_shards,
  needed_tiles,
)


class AttentionWork(NamedTuple):
  """Work of one layer's attention on a batch."""

  tiles: Float[Array, '']  # made in all, by one head
  tile_share: Float[Array, '']  # of the tiles that causality alone leaves
  hop_share: Float[Array, '']  # of the R - 1 hops of a full ring; 0 without one
  imbalance: Float[Array, '']  # tiles of the busiest device against the mean
  attended_pairs: Float[Array, '']  # (query, key) pairs that attend


@typed
def attention_work(
  segment_ids: Int[Array, 'B T'], parallel: ContextParallel, block_len: int
) -> AttentionWork:
  """Counts the work of a batch, stored in its layout.

  Every device of `data` and `fsdp` holds an equal share of the rows, in order.
  """
  B, T = segment_ids.shape
  check_rows(parallel, B)
  block_len = parallel.fit_block(block_len, T)
  tiles = _tiles_by_shard(segment_ids, parallel, block_len)
  # Without documents all rows are alike, and the work is known beforehand.
  causal = _tiles_by_shard(jnp.ones((1, T), jnp.int32), parallel, block_len)
  by_device = tiles.reshape(parallel.row_shards, -1, tiles.shape[1]).sum(axis=1)
  hop_share = jnp.float32(0)
  if parallel.kind == 'ring' and parallel.num_shards > 1:
    needed = needed_between_shards(*_shards(segment_ids, parallel), block_len)
    hops = needed_hops(needed.any(axis=(0, 3, 4)), parallel.layout)
    hop_share = (hops.up + hops.down) / jnp.float32(parallel.num_shards - 1)
  return AttentionWork(
    tiles=tiles.sum(),
    tile_share=tiles.sum() / (B * causal.sum()),
    hop_share=hop_share,
    imbalance=by_device.max() / jnp.maximum(by_device.mean(), 1e-8),
    attended_pairs=_attended_pairs(segment_ids),
  )


def _tiles_by_shard(segment_ids, parallel, block_len):
  """Tiles that each shard makes: float32 [B, R], [B, 1] if all make as many."""
  ids, index = _shards(segment_ids, parallel)
  T = segment_ids.shape[1]
  row = Place(segment_ids, index.reshape(T))
  if parallel.kind == 'ring':
    needed = needed_between_shards(ids, index, block_len)
  elif parallel.kind == 'allgather':  # own queries, all keys

    def own_queries(ids, index):
      return needed_tiles(
        block_extents(Place(ids, index), block_len),
        block_extents(row, block_len),
      )

    needed = jax.vmap(own_queries, out_axes=1)(ids, index)
  else:  # ulysses: all queries, of some heads
    extents = block_extents(row, block_len)
    needed = needed_tiles(extents, extents)[:, None]
  tiles_axes = tuple(range(2, needed.ndim))
  return needed.sum(axis=tiles_axes, dtype=jnp.float32)


def _shards(segment_ids, parallel):
  """Segment ids [R, B, T / R] and row indices [R, T / R] of each shard."""
  (B, T), R = segment_ids.shape, parallel.num_shards
  index = jnp.asarray(stored_index(parallel.layout, T, R)).reshape(R, T // R)
  return segment_ids.reshape(B, R, T // R).swapaxes(0, 1), index


def _attended_pairs(segment_ids):
  """Sum over segments of n (n + 1) / 2; the order of tokens does not matter."""
  T = segment_ids.shape[1]

  def tokens_by_segment(row):
    # Segment ids count from 1 within a row, so none is above T.
    return jnp.zeros(T + 1, jnp.float32).at[row].add(1.0)

  tokens = jax.vmap(tokens_by_segment)(segment_ids)[:, 1:]
  return jnp.sum(tokens * (tokens + 1) / 2)
