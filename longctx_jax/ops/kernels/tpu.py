"""FlashAttention on TPUs, in Pallas kernels.

`forward` and `backward` are those of `ops.blockwise_attention`; they walk the
same tiles, in the way that `tile_grid` describes. The G query heads of a
key/value head share one read of its keys and values.

Products are of the dtype of q, to which weights and their gradients are
rounded (FlashAttention, arXiv:2205.14135, does the same), and are summed in
float32; float32 ones are not rounded on the way, as TPUs otherwise do.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from longctx_jax.ops.attention import Place
from longctx_jax.ops.blockwise_attention import MASKED, TileKernel
from longctx_jax.ops.kernels.tile_grid import (
  LANES,
  cut_sides,
  run_over_tiles,
  tile_state,
)
from longctx_jax.ops.tiles import block_extents, needed_tiles


def forward(
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B S K H'],
  v: Float[Array, 'B S K H'],
  queries: Place,
  keys: Place,
  block_len: int,
  *,
  interpret: bool = False,
) -> tuple[Float[Array, 'B T N H'], Float[Array, 'B T N']]:
  """Attention of these queries to these keys, and the log-sum-exp of scores.

  Both float32. A query that attends to nothing here gives 0 and MASKED.

  Args:
    q: queries.
    k: keys.
    v: values.
    queries: places of the queries.
    keys: places of the keys.
    block_len: queries and keys of a tile; a multiple of 128.
    interpret: run the kernel as plain JAX operations, on any platform.
  """
  (T, N, H), (S, K) = q.shape[1:], k.shape[1:3]
  G = N // K
  rows, columns = cut_sides(T, S, block_len)
  out, lse = run_over_tiles(
    functools.partial(_forward_kernel, H**-0.5),
    _needed(queries, keys, rows, columns),
    (rows, columns),
    [rows.heads(q), rows.place(queries)],
    [columns.heads(k), columns.heads(v), columns.place(keys)],
    [rows.heads_out(N, H), rows.numbers_out(K, G)],
    [_place_columns(rows), _columns(G, rows), _columns(G, rows)],
    num_kv_heads=K,
    interpret=interpret,
  )
  return rows.join_heads(out, N, H), rows.join_numbers(lse)


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
  *,
  interpret: bool = False,
) -> tuple[
  Float[Array, 'B T N H'], Float[Array, 'B S K H'], Float[Array, 'B S K H']
]:
  """dq, dk and dv of `forward`, in float32.

  Two passes over the tiles, so that every sum stays in VMEM until it is whole:
  by query block for dq, by key block for dk and dv.

  Args:
    q: as there, and so k, v, queries, keys, block_len and interpret.
    d_out: gradient of the attention's output.
    lse: log-sum-exp over all keys of the row, those elsewhere too.
    delta: `row_delta` of the output over all keys.
  """
  (T, N, H), (S, K) = q.shape[1:], k.shape[1:3]
  G, scale = N // K, H**-0.5
  # As in `forward`: where all is masked, weights are exp(MASKED - floor) = 0.
  lse = jnp.maximum(lse, 0.5 * MASKED)
  run = functools.partial(run_over_tiles, num_kv_heads=K, interpret=interpret)

  def query_arrays(side):
    return [
      side.heads(q),
      side.heads(d_out.astype(q.dtype)),
      side.numbers(lse, K),
      side.numbers(delta, K),
      side.place(queries),
    ]

  def key_arrays(side):
    return [side.heads(k), side.heads(v), side.place(keys)]

  rows, columns = cut_sides(T, S, block_len)
  (dq,) = run(
    functools.partial(_dq_kernel, scale),
    _needed(queries, keys, rows, columns),
    (rows, columns),
    query_arrays(rows),
    key_arrays(columns),
    [rows.heads_out(N, H)],
    [_place_columns(rows), _columns(G, rows), _columns(G, rows)],
  )
  dq = rows.join_heads(dq, N, H)

  columns, rows = cut_sides(S, T, block_len)
  dk, dv = run(
    functools.partial(_dkv_kernel, scale),
    jnp.swapaxes(_needed(queries, keys, rows, columns), 1, 2),
    (columns, rows),
    key_arrays(columns),
    query_arrays(rows),
    [columns.heads_out(K, H)] * 2,
    [_place_columns(columns)],
  )
  dk, dv = columns.join_heads(dk, K, H), columns.join_heads(dv, K, H)
  # The scale of scores is a factor of each sum: once is enough.
  return dq * scale, dk * scale, dv


PALLAS = TileKernel(forward, backward)


def _needed(queries, keys, rows, columns):
  return needed_tiles(
    block_extents(queries, rows.block_len),
    block_extents(keys, columns.block_len),
  )


def _place_columns(side):
  return pltpu.VMEM((2, side.block_len, LANES), jnp.int32)


def _columns(G, side):
  return pltpu.VMEM((G, side.block_len, LANES), jnp.float32)


def _forward_kernel(scale, outer, inner, *refs):
  q, queries, k, v, keys, out, lse, places, largest, total = refs
  first, needed, last = tile_state(outer, inner)
  G, H = lse.shape[0], k.shape[1]

  @pl.when(first)
  def start():
    _write_place(places, queries)
    # The floor keeps exp(MASKED - largest) at 0 in rows that are all masked.
    largest[...] = jnp.full(largest.shape, 0.5 * MASKED)
    total[...] = jnp.zeros(total.shape)
    out[...] = jnp.zeros(out.shape)

  @pl.when(needed)
  def add_tile():
    C = keys.shape[1]
    mask = _mask(places, keys, jnp.greater_equal)
    for g in range(G):
      lanes = slice(g * H, (g + 1) * H)
      scores = jnp.where(mask, _dot_nt(q[:, lanes], k[...]) * scale, MASKED)
      tile_largest = jnp.max(scores, axis=1, keepdims=True)
      now_largest = jnp.maximum(largest[g], tile_largest)
      weights = jnp.exp(scores - _across(now_largest, C))
      fade = jnp.exp(largest[g] - now_largest)
      total[g] = total[g] * fade + jnp.sum(weights, axis=1, keepdims=True)
      added = _dot(weights.astype(v.dtype), v[...])
      out[:, lanes] = out[:, lanes] * _across(fade, H) + added
      largest[g] = now_largest

  @pl.when(last)
  def finish():
    for g in range(G):
      lanes = slice(g * H, (g + 1) * H)
      seen = total[g] > 0
      safe_total = jnp.where(seen, total[g], 1.0)
      out[:, lanes] = out[:, lanes] / _across(safe_total, H)
      lse[g : g + 1] = _row(
        jnp.where(seen, largest[g] + jnp.log(safe_total), MASKED)
      )


def _dq_kernel(scale, outer, inner, *refs):
  q, d_out, lse, delta, queries, k, v, keys, dq, places, *columns = refs
  first, needed, _ = tile_state(outer, inner)
  G, H = lse.shape[0], k.shape[1]

  @pl.when(first)
  def start():
    _write_place(places, queries)
    for g in range(G):
      columns[0][g] = _column(lse[g : g + 1])
      columns[1][g] = _column(delta[g : g + 1])
    dq[...] = jnp.zeros(dq.shape)

  @pl.when(needed)
  def add_tile():
    C = keys.shape[1]
    mask = _mask(places, keys, jnp.greater_equal)
    for g in range(G):
      lanes = slice(g * H, (g + 1) * H)
      scores = jnp.where(mask, _dot_nt(q[:, lanes], k[...]) * scale, MASKED)
      row_lse, row_delta = (_across(column[g], C) for column in columns)
      weights = jnp.exp(scores - row_lse)
      d_weights = _dot_nt(d_out[:, lanes], v[...])
      d_scores = weights * (d_weights - row_delta)
      dq[:, lanes] += _dot(d_scores.astype(k.dtype), k[...])


def _dkv_kernel(scale, outer, inner, *refs):
  """Scores are [S, T] here: numbers per query lie along lanes as they come."""
  k, v, keys, q, d_out, lse, delta, queries, dk, dv, places = refs
  first, needed, _ = tile_state(outer, inner)
  G, H = lse.shape[0], k.shape[1]

  @pl.when(first)
  def start():
    _write_place(places, keys)
    dk[...] = jnp.zeros(dk.shape)
    dv[...] = jnp.zeros(dv.shape)

  @pl.when(needed)
  def add_tile():
    mask = _mask(places, queries, jnp.less_equal)
    for g in range(G):
      lanes = slice(g * H, (g + 1) * H)
      scores = jnp.where(mask, _dot_nt(k[...], q[:, lanes]) * scale, MASKED)
      weights = jnp.exp(scores - lse[g : g + 1])
      d_weights = _dot_nt(v[...], d_out[:, lanes])
      d_scores = weights * (d_weights - delta[g : g + 1])
      dv[...] += _dot(weights.astype(d_out.dtype), d_out[:, lanes])
      dk[...] += _dot(d_scores.astype(q.dtype), q[:, lanes])


def _write_place(columns, place):
  """Segment ids and indices as columns; padding is made unlike all ids."""
  segment_ids = place[0:1]
  nobody = jnp.iinfo(jnp.int32).min
  columns[0] = _column(jnp.where(segment_ids > 0, segment_ids, nobody))
  columns[1] = _column(place[1:2])


def _mask(columns, place, in_order):
  """Pairs of one document in the order of indices."""
  C = place.shape[1]
  same = _across(columns[0], C) == place[0:1]
  return same & in_order(_across(columns[1], C), place[1:2])


def _column(row):
  """[1, C] -> [C, LANES], repeated, which `_across` need not shuffle."""
  return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def _row(column):
  """Back from `_column`."""
  return column.T[:1]


def _across(column, width):
  return jnp.tile(column, (1, width // LANES))


def _dot(a, b, b_axis=0):
  highest = jax.lax.Precision.HIGHEST
  return jax.lax.dot_general(
    a,
    b,
    (((1,), (b_axis,)), ((), ())),
    precision=highest if a.dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )


def _dot_nt(a, b):
  """a @ b.T, which the matrix unit takes as it is."""
  return _dot(a, b, b_axis=1)
