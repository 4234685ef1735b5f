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
from longctx_jax.ops.context_parallel import ContextParallel, check_rows
from longctx_jax.ops.ring_attention import needed_hops
from longctx_jax.ops.sequence_layout import stored_index
from longctx_jax.ops.tiles import (
  count_causal_tiles,
  count_tiles,
  shard_extents,
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
  index = stored_index(parallel.layout, T, parallel.num_shards)
  # The parts of a row in which queries, and keys, are cut into blocks.
  indices = [index.reshape(parts, -1) for parts in _parts(parallel)]
  queries, keys = (
    shard_extents(
      segment_ids.reshape(B, *index.shape).swapaxes(0, 1),
      jnp.asarray(index),
      block_len,
    )
    for index in indices
  )
  counts = count_tiles(queries, keys)
  tiles = counts.sum(axis=2, dtype=jnp.float32)
  by_device = tiles.reshape(parallel.row_shards, -1, tiles.shape[1]).sum(axis=1)
  hop_share = jnp.float32(0)
  if parallel.kind == 'ring' and parallel.num_shards > 1:
    hops = needed_hops(jnp.any(counts > 0, axis=0), parallel.layout)
    hop_share = (hops.up + hops.down) / jnp.float32(parallel.num_shards - 1)
  return AttentionWork(
    tiles=tiles.sum(),
    tile_share=tiles.sum() / (B * count_causal_tiles(*indices, block_len)),
    hop_share=hop_share,
    imbalance=by_device.max() / jnp.maximum(by_device.mean(), 1e-8),
    attended_pairs=_attended_pairs(segment_ids),
  )


def _parts(parallel):
  """Into how many parts the kernel's calls cut a row's queries, and its keys.

  With Ulysses all shards make the same tiles, each for some of the heads.
  """
  R = parallel.num_shards
  return {'ring': (R, R), 'allgather': (R, 1), 'ulysses': (1, 1)}[parallel.kind]


def _attended_pairs(segment_ids):
  """Sum over segments of n (n + 1) / 2; the order of tokens does not matter."""
  T = segment_ids.shape[1]

  def tokens_by_segment(row):
    # Segment ids count from 1 within a row, so none is above T.
    return jnp.zeros(T + 1, jnp.float32).at[row].add(1.0)

  tokens = jax.vmap(tokens_by_segment)(segment_ids)[:, 1:]
  return jnp.sum(tokens * (tokens + 1) / 2)
