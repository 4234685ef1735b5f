"""Attention of new tokens to a cache of keys and values, causal, exact.

All rows begin at index 0 of the cache, and a token's index is its position, so
"attends to what is before it" is the whole mask: what padding left behind a
prompt lies at later indices, and is overwritten before any token gets there.

Two ways to come in. A chunk of C tokens, the same indices in all rows, is cut
out of prompts: it attends to itself, and block by block to the chunks before,
so that it costs what is filled and not what there is room for. A single token
per row, at indices of its own, attends to the whole cache at once.

Over the mesh axis `context` the cache is dealt out token by token, as in
striped attention (arXiv:2311.09431): each shard has the same share of every
chunk and, while a text grows, never more than one token less than another.
Places of 8 tokens on R=4:

  place        0 1 | 2 3 | 4 5 | 6 7
  index        0 4 | 1 5 | 2 6 | 3 7

Queries go to all shards; what each finds in its part is merged by log-sum-exp
in float32, with one exchange of the size of the queries ("pass-Q" of
arXiv:2411.01783), whatever the length of the cache.

Rows and heads are one axis Z = B * K, keys are stored [Z, H, S] and values
[Z, S, H]: so the products take them as they lie. On a CPU, keys the other way
round take five times as long, and with two leading axes XLA copies the whole
cache for every token that is written.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from longctx_jax.array_types import typed
from longctx_jax.ops.attention import check_heads

MASKED = -1e30  # finite: a difference of infinite ones is NaN
ROWS, CONTEXT, HEADS = ('data', 'fsdp'), 'context', 'tensor'
WHOLE_SPEC = P(ROWS, None, HEADS, None)  # [B, C, N, H]
SPLIT_SPEC = P(ROWS, CONTEXT, HEADS, None)


class LayerCache(NamedTuple):
  """Keys and values of one layer.

  Z lies over rows' axes and the heads', so that a device has whole rows of its
  heads: their order along Z is the mesh's. S lies over `context`.
  """

  keys: Array  # [Z, H, S]
  values: Array  # [Z, S, H]


CACHE_SPECS = LayerCache(
  P((*ROWS, HEADS), None, CONTEXT), P((*ROWS, HEADS), CONTEXT, None)
)


def make_layer_cache(
  batch_size: int, S: int, num_kv_heads: int, head_dim: int, dtype, mesh: Mesh
) -> LayerCache:
  """Zeros, on the mesh. S must divide over `context`."""
  Z, H = batch_size * num_kv_heads, head_dim
  return LayerCache(
    *(
      jnp.zeros(shape, dtype, device=NamedSharding(mesh, spec))
      for shape, spec in zip(((Z, H, S), (Z, S, H)), CACHE_SPECS, strict=True)
    )
  )


@typed
def attend_chunk(
  q: Float[Array, 'B C N H'],
  k: Float[Array, 'B C K H'],
  v: Float[Array, 'B C K H'],
  cache: LayerCache,
  start: Int[Array, ''],
  *,
  mesh: Mesh,
  kernel: 'CacheKernel | None' = None,
) -> tuple[Float[Array, 'B C N H'], LayerCache]:
  """Stores C tokens per row at `start`, and attends to all up to each.

  Args:
    q: queries; the output is split over `context` by tokens.
    k: their keys.
    v: their values.
    cache: donate it, and it is written in place.
    start: index of the first; a multiple of C.
    mesh: with axes `data`, `fsdp`, `context` and `tensor`.
    kernel: what attends on a shard, XLA if None.

  Raises:
    ValueError: the context shards do not divide C.
  """
  C, R = q.shape[1], mesh.shape[CONTEXT]
  check_heads(q.shape[2], k.shape[2])
  if C % R:
    raise ValueError(f'a chunk of {C} tokens does not divide over {R} shards')
  run = functools.partial(_chunk_on_shard, num_shards=R, kernel=kernel)
  return _on_mesh(run, mesh, SPLIT_SPEC, P())(q, k, v, cache, start)


@typed
def attend_token(
  q: Float[Array, 'B 1 N H'],
  k: Float[Array, 'B 1 K H'],
  v: Float[Array, 'B 1 K H'],
  cache: LayerCache,
  index: Int[Array, ' B'],
  *,
  mesh: Mesh,
) -> tuple[Float[Array, 'B 1 N H'], LayerCache]:
  """Stores a token per row at `index`, and attends to all up to it.

  A row whose index is beyond the cache stores nothing.
  """
  check_heads(q.shape[2], k.shape[2])
  run = functools.partial(_token_on_shard, num_shards=mesh.shape[CONTEXT])
  return _on_mesh(run, mesh, WHOLE_SPEC, P(ROWS))(q, k, v, cache, index)


def _on_mesh(run, mesh, out_spec, index_spec):
  return jax.shard_map(
    run,
    mesh=mesh,
    in_specs=(*(WHOLE_SPEC,) * 3, CACHE_SPECS, index_spec),
    out_specs=(out_spec, CACHE_SPECS),
    check_vma=False,
  )


# (q, keys, values, their indices [C] and [S]) -> out, log-sum-exp of scores;
# both float32, and keys and values as in a LayerCache.
CacheKernel = Callable[..., tuple[Array, Array]]


def _chunk_on_shard(q, k, v, cache, start, *, num_shards, kernel):
  B, C, _, H = q.shape
  K, R = k.shape[2], num_shards
  own = C // R
  shard = jax.lax.axis_index(CONTEXT)
  # This shard's tokens of the chunk: [Z, H, C / R] and [Z, C / R, H].
  k, v = (
    jax.lax.dynamic_index_in_dim(
      x.reshape(B, own, R, K, H), shard, 2, keepdims=False
    )
    for x in (k, v)
  )
  k = k.transpose(0, 2, 3, 1).reshape(B * K, H, own)
  v = v.swapaxes(1, 2).reshape(B * K, own, H)
  place = start // R
  cache = LayerCache(
    jax.lax.dynamic_update_slice(cache.keys, k, (0, 0, place)),
    jax.lax.dynamic_update_slice(cache.values, v, (0, place, 0)),
  )
  if kernel is None:
    found = _attend_in_blocks(q, k, v, cache, start, shard, R)
    out = _normalised(found, R, split_axis=2)
    out = out.reshape(B, -1, own, H).swapaxes(1, 2)
  else:
    index = start + jnp.arange(C, dtype=jnp.int32)
    stored = jnp.arange(cache.keys.shape[2], dtype=jnp.int32) * R + shard
    out, lse = kernel(q, *cache, index, stored)
    found = _Found(out, lse[..., None], jnp.ones_like(lse[..., None]))
    out = _normalised(found, R, split_axis=1)
  return out.astype(q.dtype), cache


def _attend_in_blocks(q, k, v, cache, start, shard, R):
  """The chunk to itself, then to each that is stored before it."""
  B, C, N, H = q.shape
  K, own = k.shape[0] // B, k.shape[2]
  q = q.reshape(B, C, K, N // K, H)
  q = q.transpose(0, 2, 3, 1, 4).reshape(B * K, N // K, C, H)
  q, scale = _scaled(q)
  offsets = jnp.arange(own) * R + shard
  sees = jnp.arange(C)[:, None] >= offsets[None, :]
  # Its first half never sees the second: a quarter of the work less.
  half, own_half = C // 2, -(-own // 2)
  halves = (
    _attend(
      q[:, :, :half],
      k[..., :own_half],
      v[:, :own_half],
      scale,
      sees[:half, :own_half],
    ),
    _attend(q[:, :, half:], k, v, scale, sees[half:]),
  )
  found = _Found(*(jnp.concatenate(x, 2) for x in zip(*halves, strict=True)))

  def earlier_block(i, found):
    k = jax.lax.dynamic_slice_in_dim(cache.keys, i * own, own, 2)
    v = jax.lax.dynamic_slice_in_dim(cache.values, i * own, own, 1)
    return _merge(found, _attend(q, k, v, scale))

  return jax.lax.fori_loop(0, start // C, earlier_block, found)


def _token_on_shard(q, k, v, cache, index, *, num_shards):
  B, _, N, H = q.shape
  K, R = k.shape[2], num_shards
  S = cache.keys.shape[2]
  shard = jax.lax.axis_index(CONTEXT)
  # A shard that does not own the index writes beyond its part: nowhere.
  place = jnp.repeat(jnp.where(index % R == shard, index // R, S), K)
  each = jnp.arange(B * K)
  cache = LayerCache(
    cache.keys.at[each, :, place].set(k.reshape(-1, H), mode='drop'),
    cache.values.at[each, place].set(v.reshape(-1, H), mode='drop'),
  )
  stored = jnp.arange(S) * R + shard
  sees = jnp.repeat(index, K)[:, None] >= stored[None, :]
  q, scale = _scaled(q.reshape(B * K, N // K, 1, H))
  found = _attend(q, *cache, scale, sees[:, None, None])
  out = _normalised(found, R)
  return out.reshape(B, 1, N, H).astype(q.dtype), cache


class _Found(NamedTuple):
  """Softmax over some keys, not yet divided by its total; all float32.

  Of a query that sees none of them it is anything finite: its largest score is
  MASKED, and next to any real one that weighs exp(MASKED) = 0.
  """

  out: Array  # [Z, G, C, H]; from a kernel [B, C, N, H]
  largest: Array  # [Z, G, C, 1]
  total: Array  # [Z, G, C, 1]


def _scaled(q):
  """Queries, and what is left to multiply scores with for a factor H^-0.5.

  Float32 queries take all of it, which spares a pass over all scores on CPUs.
  Others would round once more.
  """
  scale = q.shape[-1] ** -0.5
  return (q * scale, 1.0) if q.dtype == jnp.float32 else (q, scale)


def _attend(q, k, v, scale, sees=None) -> _Found:
  """Queries [Z, G, C, H] to keys [Z, H, S] and values [Z, S, H]."""
  scores = jnp.einsum(
    'ZGCH,ZHS->ZGCS', q, k, preferred_element_type=jnp.float32
  )
  scores = scores * scale
  if sees is not None:
    scores = jnp.where(sees, scores, MASKED)
  largest = jnp.max(scores, -1, keepdims=True)
  weights = jnp.exp(scores - largest)
  total = jnp.sum(weights, -1, keepdims=True)
  # In the cache's dtype: a float32 copy of a bfloat16 cache costs more.
  out = jnp.einsum(
    'ZGCS,ZSH->ZGCH',
    weights.astype(v.dtype),
    v,
    preferred_element_type=jnp.float32,
  )
  return _Found(out, largest, total)


def _merge(a: _Found, b: _Found) -> _Found:
  largest = jnp.maximum(a.largest, b.largest)
  fade_a, fade_b = jnp.exp(a.largest - largest), jnp.exp(b.largest - largest)
  return _Found(
    a.out * fade_a + b.out * fade_b,
    largest,
    a.total * fade_a + b.total * fade_b,
  )


def _normalised(found: _Found, num_shards: int, split_axis: int | None = None):
  """The output over what all shards found, or a shard's part of `split_axis`.

  Every query sees itself at least, so no total is 0.
  """
  if num_shards == 1:
    return found.out / found.total
  fade = jnp.exp(found.largest - jax.lax.pmax(found.largest, CONTEXT))
  add = functools.partial(jax.lax.psum, axis_name=CONTEXT)
  if split_axis is not None:
    add = functools.partial(
      jax.lax.psum_scatter,
      axis_name=CONTEXT,
      scatter_dimension=split_axis,
      tiled=True,
    )
  return add(found.out * fade) / add(found.total * fade)
