"""Exact attention, tile by tile, with its own gradient.

Scores of one block of queries against one block of keys are made, used and
dropped; the backward pass makes them again from the saved log-sum-exp
(FlashAttention, arXiv:2205.14135). Memory is linear in T. Only the tiles that
causality and documents leave are touched (`ops.tiles`): a loop over query
blocks, and inside it one over as many key blocks as that query block needs, a
number known at run time. Small tiles stay in a core's cache, which is what
makes the loops fast on CPUs.

`forward` and `backward` work on parts of rows, in float32, and are what
context parallelism puts together; `blockwise_attention` is for whole rows.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from longctx_jax.array_types import typed
from longctx_jax.ops.attention import (
  Place,
  attention_mask,
  check_heads,
  query_and_key_places,
)
from longctx_jax.ops.tiles import block_extents, needed_tiles, tile_lists

MASKED = -1e30  # finite, so that differences of two masked scores are not NaN
# What remat policies call the two arrays that spare the gradient another
# forward pass: the output and the log-sum-exp.
KEPT = 'attention'


@typed
def blockwise_attention(
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B S K H'],
  v: Float[Array, 'B S K H'],
  *,
  segment_ids: Int[Array, 'B T'] | None = None,
  index: Int[Array, ' T'] | None = None,
  key_segment_ids: Int[Array, 'B S'] | None = None,
  key_index: Int[Array, ' S'] | None = None,
  block_len: int = 512,
  kernel: 'TileKernel | None' = None,
) -> Float[Array, 'B T N H']:
  """`dense_attention`, in tiles of `block_len` queries and keys.

  Accumulators are float32 whatever the inputs; grouped heads share their keys
  and values without repeating them. `kernel` is what walks the tiles, XLA if
  None.
  """
  check_heads(q.shape[2], k.shape[2])
  queries, keys = query_and_key_places(
    (*q.shape[:2], k.shape[1]), segment_ids, index, key_segment_ids, key_index
  )
  return _attend(q, k, v, queries, keys, block_len, kernel or XLA)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(q, k, v, queries, keys, block_len, kernel):
  return _attend_forward(q, k, v, queries, keys, block_len, kernel)[0]


def _attend_forward(q, k, v, queries, keys, block_len, kernel):
  out, lse = keep(*kernel.forward(q, k, v, queries, keys, block_len))
  return out.astype(q.dtype), (q, k, v, queries, keys, out, lse)


def _attend_backward(block_len, kernel, residuals, d_out):
  q, k, v, queries, keys, out, lse = residuals
  delta = row_delta(out, d_out)
  dq, dk, dv = kernel.backward(
    q, k, v, d_out, lse, delta, queries, keys, block_len
  )
  return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_attend.defvjp(_attend_forward, _attend_backward)


def keep(out: Array, lse: Array) -> tuple[Array, Array]:
  """Names (out, lse) for remat policies; out is float32 for `row_delta`."""
  return checkpoint_name(out, KEPT), checkpoint_name(lse, KEPT)


def row_delta(out: Array, d_out: Array) -> Float[Array, 'B T N']:
  """Row sums of d_out * out: the second term of the softmax's Jacobian."""
  # As a product, which XLA makes a sum again where that is faster: on CPUs the
  # sum took 80 times as long, a tenth of a whole backward pass.
  return jnp.einsum(
    'BTNH,BTNH->BTN',
    d_out.astype(jnp.float32),
    out.astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  )


def forward(
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B S K H'],
  v: Float[Array, 'B S K H'],
  queries: Place,
  keys: Place,
  block_len: int,
) -> tuple[Float[Array, 'B T N H'], Float[Array, 'B T N']]:
  """Attention of these queries to these keys, and the log-sum-exp of scores.

  Both float32. A query that attends to nothing here gives 0 and MASKED.
  """
  grid = _Grid(q.shape, k.shape, block_len)
  k_blocks, v_blocks = grid.split_keys(k), grid.split_keys(v)
  key_places = grid.split_place(keys, grid.key_len)

  def one_block(_, block):
    def one_tile(i, carry):
      largest, total, out = carry
      at = block.row, block.key_blocks[i]
      scores = _scores(block, k_blocks[at], key_places, at)
      now_largest = jnp.maximum(largest, jnp.max(scores, -1, keepdims=True))
      weights = jnp.exp(scores - now_largest)
      fade = jnp.exp(largest - now_largest)
      total = total * fade + jnp.sum(weights, -1, keepdims=True)
      out = out * fade + _dot('KGCS,KSH->KGCH', weights, v_blocks[at])
      return now_largest, total, out

    # The floor keeps exp(MASKED - largest) at 0 in rows that are all masked.
    zero = jnp.zeros((*block.q.shape[:-1], 1), jnp.float32)
    start = zero + 0.5 * MASKED, zero, jnp.zeros(block.q.shape, jnp.float32)
    largest, total, out = jax.lax.fori_loop(0, block.count, one_tile, start)
    seen = total > 0
    safe_total = jnp.where(seen, total, 1.0)
    lse = jnp.where(seen, largest + jnp.log(safe_total), MASKED)
    return None, (out / safe_total, lse[..., 0])

  blocks = _query_blocks(grid, q, queries, keys)
  _, (out, lse) = jax.lax.scan(one_block, None, blocks)
  return grid.join_queries(out), grid.join_queries(lse)


def backward(
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B S K H'],
  v: Float[Array, 'B S K H'],
  d_out: Float[Array, 'B T N H'],
  lse: Float[Array, 'B T N'],
  delta: Float[Array, 'B T N'],
  queries: Place,
  keys: Place,
  block_len: int,
) -> tuple[
  Float[Array, 'B T N H'], Float[Array, 'B S K H'], Float[Array, 'B S K H']
]:
  """dq, dk and dv of `forward`, in float32.

  Args:
    q: as there, and so k, v, queries, keys and block_len.
    d_out: gradient of the attention's output.
    lse: log-sum-exp over all keys of the row, those elsewhere too.
    delta: `row_delta` of the output over all keys.
  """
  grid = _Grid(q.shape, k.shape, block_len)
  k_blocks, v_blocks = grid.split_keys(k), grid.split_keys(v)
  key_places = grid.split_place(keys, grid.key_len)

  def one_block(carry, xs):
    block, d_out, lse, delta = xs
    # As in `forward`: where all is masked, weights are exp(MASKED - floor) = 0.
    lse = jnp.maximum(lse, 0.5 * MASKED)[..., None]
    delta = delta[..., None]
    # dk and dv are summed as [K, H, C]. As [K, C, H] each tile's matrix would
    # have to be transposed for the product: half of the time on CPUs.
    q_columns, d_out_columns = (
      jnp.moveaxis(x, -1, 1) for x in (block.q, d_out)
    )

    def one_tile(i, carry):
      dq, dk, dv = carry
      at = block.row, block.key_blocks[i]
      k, v = k_blocks[at], v_blocks[at]
      weights = jnp.exp(_scores(block, k, key_places, at) - lse)
      d_weights = _dot('KGCH,KSH->KGCS', d_out, v)
      d_scores = weights * (d_weights - delta) * _scale(block.q)
      dq += _dot('KGCS,KSH->KGCH', d_scores, k)
      dk = dk.at[at].add(_dot('KHGC,KGCS->KHS', q_columns, d_scores))
      dv = dv.at[at].add(_dot('KHGC,KGCS->KHS', d_out_columns, weights))
      return dq, dk, dv

    start = jnp.zeros(block.q.shape, jnp.float32), *carry
    dq, *carry = jax.lax.fori_loop(0, block.count, one_tile, start)
    return tuple(carry), dq

  start = (jnp.zeros(k_blocks.mT.shape, jnp.float32),) * 2
  per_block = (grid.split_queries(x) for x in (d_out, lse, delta))
  blocks = _query_blocks(grid, q, queries, keys)
  (dk, dv), dq = jax.lax.scan(one_block, start, (blocks, *per_block))
  return grid.join_queries(dq), grid.join_keys(dk.mT), grid.join_keys(dv.mT)


class TileKernel(NamedTuple):
  """What walks the tiles, on parts of rows; signatures as of the two above."""

  forward: Callable[..., tuple[Array, Array]]
  backward: Callable[..., tuple[Array, Array, Array]]


XLA = TileKernel(forward, backward)


class _QueryBlock(NamedTuple):
  """A block of queries of one row, and the tiles that it needs."""

  q: Any  # [K, G, C, H]
  place: Place  # [1, C] and [C]
  row: Any
  key_blocks: Any  # the needed ones first
  count: Any  # how many are needed


def _query_blocks(grid, q, queries, keys) -> _QueryBlock:
  """All query blocks of all rows, stacked for a scan."""
  needed = needed_tiles(
    block_extents(queries, grid.query_len), block_extents(keys, grid.key_len)
  )
  B, num_blocks, _ = needed.shape
  tiles = tile_lists(needed.reshape(B * num_blocks, -1))
  segment_ids, index = grid.split_place(queries, grid.query_len)
  return _QueryBlock(
    q=grid.split_queries(q),
    place=Place(
      segment_ids.reshape(B * num_blocks, 1, -1), jnp.tile(index, (B, 1))
    ),
    row=jnp.repeat(jnp.arange(B), num_blocks),
    key_blocks=tiles.key_blocks,
    count=tiles.counts,
  )


def _scores(block, k, key_places, at):
  """Scores [K, G, C, S] of a tile, masked.

  They are scaled here, in float32: scaled bfloat16 queries round once more.
  """
  keys = Place(key_places.segment_ids[at][None], key_places.index[at[1]])
  mask = attention_mask(block.place, keys)[None]
  scores = _dot('KGCH,KSH->KGCS', block.q, k)
  return jnp.where(mask, scores * _scale(block.q), MASKED)


def _dot(subscripts, a, b):
  return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


def _scale(q):
  return q.shape[-1] ** -0.5


class _Grid:
  """How rows are cut into blocks; the last block is filled with segment 0."""

  def __init__(self, q_shape, k_shape, block_len: int):
    self.q_shape, self.k_shape = q_shape, k_shape
    self.query_len = min(block_len, q_shape[1])
    self.key_len = min(block_len, k_shape[1])

  def split_queries(self, x):
    """[B, T, N, ...] -> [B * blocks, K, G, C, ...]."""
    B, T, N = x.shape[:3]
    K = self.k_shape[2]
    x = _split(x.reshape(B, T, K, N // K, *x.shape[3:]), self.query_len)
    return jnp.moveaxis(x.reshape(-1, *x.shape[2:]), 1, 3)

  def join_queries(self, x):
    """Back from `split_queries`."""
    B, T, N, _ = self.q_shape
    return jnp.moveaxis(x, 3, 1).reshape(B, -1, N, *x.shape[4:])[:, :T]

  def split_keys(self, x):
    """[B, S, K, H] -> [B, blocks, K, C, H]."""
    return jnp.swapaxes(_split(x, self.key_len), 2, 3)

  def join_keys(self, x):
    """Back from `split_keys`."""
    B, S, K, H = self.k_shape
    return jnp.swapaxes(x, 2, 3).reshape(B, -1, K, H)[:, :S]

  def split_place(self, place, block_len):
    """[B, T] and [T] -> [B, blocks, C] and [blocks, C]."""
    return Place(
      _split(place.segment_ids, block_len),
      _split(place.index[None], block_len)[0],
    )


def _split(x, block_len):
  """[B, T, ...] -> [B, blocks, C, ...], zero-padded."""
  pad = [(0, 0)] * x.ndim
  pad[1] = 0, -x.shape[1] % block_len
  x = jnp.pad(x, pad)
  return x.reshape(x.shape[0], -1, block_len, *x.shape[2:])
