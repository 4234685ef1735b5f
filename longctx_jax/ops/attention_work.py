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


@typed
def attention_work(
  segment_ids: Int[Array, '*micro B T'],
  parallel: ContextParallel,
  block_len: int,
) -> AttentionWork:
  """Counts the work of a batch, or of its micro-batches one after the other.

  Rows are stored in their layout. Every device of `data` and `fsdp` holds an
  equal share of them, in order. Hops are agreed on, and the busiest device is
  waited for, in each micro-batch anew: `hop_share` is the mean of theirs, and
  `imbalance` the sum of the busiest's tiles against the sum of the means.
  """
  B, T = segment_ids.shape[-2:]
  check_rows(parallel, B)
  R = parallel.num_shards
  block_len = parallel.fit_block(block_len, T)
  index = stored_index(parallel.layout, T, R)
  # The parts of a row in which queries, and keys, are cut into blocks.
  indices = [index.reshape(parts, -1) for parts in _parts(parallel)]

  def of_one(segment_ids):
    queries, keys = (
      shard_extents(
        segment_ids.reshape(B, *index.shape).swapaxes(0, 1),
        jnp.asarray(index),
        block_len,
      )
      for index in indices
    )
    counts = count_tiles(queries, keys)
    by_row = counts.sum(axis=2, dtype=jnp.float32)
    by_device = by_row.reshape(parallel.row_shards, -1, by_row.shape[1])
    hop_share = jnp.float32(0)
    if parallel.kind == 'ring' and R > 1:
      hops = needed_hops(jnp.any(counts > 0, axis=0), parallel.layout)
      hop_share = (hops.up + hops.down) / jnp.float32(R - 1)
    return by_device.sum(axis=1), hop_share

  micro_batches = segment_ids.reshape(-1, B, T)
  tiles, hop_share = jax.lax.map(of_one, micro_batches)
  busiest, mean = tiles.max(axis=(1, 2)), tiles.mean(axis=(1, 2))
  num_rows = micro_batches.shape[0] * B
  causal = num_rows * count_causal_tiles(*indices, block_len)
  return AttentionWork(
    tiles=tiles.sum(),
    tile_share=tiles.sum() / float(causal),  # may be more than an int32 holds
    hop_share=hop_share.mean(),
    imbalance=busiest.sum() / jnp.maximum(mean.sum(), 1e-8),
  )


def _parts(parallel):
  """Into how many parts the kernel's calls cut a row's queries, and its keys.

  With Ulysses all shards make the same tiles, each for some of the heads.
  """
  R = parallel.num_shards
  return {'ring': (R, R), 'allgather': (R, 1), 'ulysses': (1, 1)}[parallel.kind]


@typed
def attended_pairs(segment_ids: Int[Array, 'B T']) -> Float[Array, '']:
  """(query, key) pairs that attend: the sum over segments of n (n + 1) / 2.

  The order of tokens does not matter.
  """
  T = segment_ids.shape[1]

  def tokens_by_segment(row):
    # Segment ids count from 1 within a row, so none is above T.
    return jnp.zeros(T + 1, jnp.float32).at[row].add(1.0)

  tokens = jax.vmap(tokens_by_segment)(segment_ids)[:, 1:]
  return jnp.sum(tokens * (tokens + 1) / 2)
