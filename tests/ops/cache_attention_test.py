"""Attention to a cache against plain loops; what it reads and costs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh

from longctx_jax.ops.cache_attention import (
  LayerCache,
  attend_chunk,
  attend_token,
  make_layer_cache,
)
from longctx_jax.ops.kernels.cpu import attend_cache
from tests.ops.cpp_library import needs_library

AXES = ('data', 'fsdp', 'context', 'tensor')
B, S, H = 2, 64, 16
C, FILLED = 16, 48


def mesh_of(**sizes):
  shape = [sizes.get(axis, 1) for axis in AXES]
  devices = np.array(jax.devices()[: np.prod(shape)])
  return Mesh(devices.reshape(shape), AXES)


ONE = mesh_of()


def plain_attention(q, k, v):
  """[B, T, N, H] in float64: each query sees itself and what is before it."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  out = np.zeros(q.shape)
  for b, t, n in np.ndindex(q.shape[:3]):
    g = n // (q.shape[2] // k.shape[2])
    scores = k[b, : t + 1, g] @ q[b, t, n] / np.sqrt(q.shape[3])
    weights = np.exp(scores - scores.max())
    out[b, t, n] = weights @ v[b, : t + 1, g] / weights.sum()
  return out


def random_rows(rng, N, K, dtype=np.float32):
  """q, k, v of rows of S tokens."""
  return [jnp.asarray(rng.normal(size=(B, S, n, H)), dtype) for n in (N, K, K)]


def dirty_cache(K, mesh, fill=100.0, dtype=jnp.float32):
  """A cache in which everything not yet written would be noticed."""
  cache = make_layer_cache(B, S, K, H, dtype, mesh)
  return jax.tree.map(lambda x: jnp.full_like(x, fill), cache)


@functools.cache
def compiled(mesh, kernel=None):
  return (
    jax.jit(functools.partial(attend_chunk, mesh=mesh, kernel=kernel)),
    jax.jit(functools.partial(attend_token, mesh=mesh)),
  )


def read_chunks(qkv, mesh, cache, C=C, kernel=None):
  """Outputs [B, FILLED, N, H] of chunks, and the cache."""
  out = []
  for start in range(0, FILLED, C):
    chunk = (x[:, start : start + C] for x in qkv)
    one, cache = compiled(mesh, kernel)[0](*chunk, cache, jnp.int32(start))
    out.append(np.asarray(one))
  return np.concatenate(out, axis=1), cache


def read_token(qkv, mesh, cache, index):
  """Output [B, N, H] of the tokens at `index` of each row, and the cache."""
  token = (
    jnp.stack([x[b, i] for b, i in enumerate(index)])[:, None] for x in qkv
  )
  out, cache = compiled(mesh)[1](*token, cache, jnp.array(index, jnp.int32))
  return np.asarray(out)[:, 0], cache


# What attends on a shard.
kernels = pytest.mark.parametrize(
  'kernel',
  [None, pytest.param(attend_cache, marks=needs_library)],
  ids=['xla', 'cpp'],
)


@kernels
@pytest.mark.parametrize(
  ('sizes', 'N', 'K'),
  [
    ({}, 4, 2),
    ({}, 3, 1),
    ({}, 2, 2),
    ({'context': 8}, 4, 2),
    ({'context': 4, 'tensor': 2}, 4, 2),
    ({'data': 2, 'context': 4}, 6, 2),
    ({'data': 2, 'context': 2, 'tensor': 2}, 4, 2),
  ],
  ids=str,
)
def test_chunks_and_then_tokens_equal_plain_attention(rng, sizes, N, K, kernel):
  mesh = mesh_of(**sizes)
  qkv = random_rows(rng, N, K)
  expected = plain_attention(*qkv)
  out, cache = read_chunks(qkv, mesh, dirty_cache(K, mesh), kernel=kernel)
  np.testing.assert_allclose(out, expected[:, :FILLED], atol=2e-6)
  # Row 1 had a shorter prompt: what was read behind it is written over.
  for step in range(S - FILLED):
    index = FILLED + step, 21 + step
    out, cache = read_token(qkv, mesh, cache, index)
    for b, i in enumerate(index):
      np.testing.assert_allclose(out[b], expected[b, i], atol=2e-6)


def filled_cache(k, v):
  """One device's cache that holds all S tokens."""
  return LayerCache(
    k.transpose(0, 2, 3, 1).reshape(-1, H, S),
    v.swapaxes(1, 2).reshape(-1, S, H),
  )


@given(
  st.lists(st.integers(0, S - 1), min_size=B, max_size=B), st.integers(0, 99)
)
def test_a_token_sees_what_is_before_it_however_much_there_is(index, seed):
  qkv = random_rows(np.random.default_rng(seed), 4, 2)
  out, cache = read_token(qkv, ONE, filled_cache(*qkv[1:]), index)
  expected = plain_attention(*qkv)
  for b, i in enumerate(index):
    np.testing.assert_allclose(out[b], expected[b, i], atol=2e-6)
  # It was there already, and nothing else was touched.
  for a, b in zip(cache, filled_cache(*qkv[1:]), strict=True):
    np.testing.assert_array_equal(a, b)


def test_one_chunk_and_many_are_the_same(rng):
  qkv = random_rows(rng, 4, 2)
  many, many_cache = read_chunks(qkv, ONE, dirty_cache(2, ONE))
  one, one_cache = read_chunks(qkv, ONE, dirty_cache(2, ONE), C=FILLED)
  np.testing.assert_allclose(many, one, atol=2e-6)
  for a, b in zip(many_cache, one_cache, strict=True):
    np.testing.assert_array_equal(a, b)


@kernels
@pytest.mark.parametrize(('context', 'C'), [(1, 1), (1, 3), (8, 8), (8, 24)])
def test_chunks_of_any_length_are_plain_attention(rng, context, C, kernel):
  """Down to a token per shard, where halves are not equal."""
  mesh = mesh_of(context=context)
  qkv = random_rows(rng, 4, 2)
  out, _ = read_chunks(qkv, mesh, dirty_cache(2, mesh), C=C, kernel=kernel)
  expected = plain_attention(*qkv)[:, :FILLED]
  np.testing.assert_allclose(out, expected, atol=2e-6)


@kernels
@pytest.mark.parametrize('context', [1, 4])
def test_a_chunk_reads_nothing_of_what_is_not_filled(rng, context, kernel):
  """NaN, times a weight of 0 even, would be NaN."""
  mesh = mesh_of(context=context)
  qkv = random_rows(rng, 4, 2)
  cache = dirty_cache(2, mesh, fill=jnp.nan)
  out, _ = read_chunks(qkv, mesh, cache, kernel=kernel)
  assert np.isfinite(out).all()


def test_shards_have_equal_parts_of_whatever_is_filled(rng):
  mesh = mesh_of(context=8)
  qkv = random_rows(rng, 4, 2)
  _, cache = read_chunks(qkv, mesh, dirty_cache(2, mesh))
  for step in range(3):
    _, cache = read_token(qkv, mesh, cache, (FILLED + step,) * B)
  filled = [
    int((np.asarray(shard.data) != 100).any(axis=(0, 2)).sum())
    for shard in cache.values.addressable_shards
  ]
  assert filled == [7, 7, 7, 6, 6, 6, 6, 6]


def test_bfloat16_rounds_weights_and_outputs_alone(rng):
  """Scores, totals and sums are float32, over blocks and shards too."""
  mesh = mesh_of(context=4)
  qkv = random_rows(rng, 4, 2, jnp.bfloat16)
  cache = dirty_cache(2, mesh, dtype=jnp.bfloat16)
  out, cache = read_chunks(qkv, mesh, cache)
  assert out.dtype == cache.keys.dtype == jnp.bfloat16
  token, _ = read_token(qkv, mesh, cache, (FILLED, FILLED))
  expected = plain_attention(*qkv)
  # Weights that sum to 1, each rounded by up to 2^-9 of it, times values of
  # size 1 to 4; and the output.
  for got, want in (
    (out, expected[:, :FILLED]),
    (token, expected[:, FILLED]),
  ):
    error = np.abs(got.astype(np.float64) - want)
    assert error.max() < 4 * 2**-8
    assert error.mean() < 2**-9


@needs_library
def test_the_kernel_refuses_heads_that_do_not_fill_registers():
  q, k = jnp.zeros((1, 4, 2, 8)), jnp.zeros((2, 8, 16))
  index, stored = (jnp.arange(n, dtype=jnp.int32) for n in (4, 16))
  with pytest.raises(ValueError, match='head_dim=8 is not a multiple of 16'):
    attend_cache(q, k, k.mT, index, stored)


def memory(attend, S, T, where):
  """Bytes of temporary arrays, and of the cache."""
  cache = make_layer_cache(1, S, 2, H, jnp.float32, ONE)
  q, k, v = (jnp.zeros((1, T, n, H)) for n in (4, 2, 2))
  run = jax.jit(functools.partial(attend, mesh=ONE), donate_argnums=3)
  stats = run.lower(q, k, v, cache, where).compile().memory_analysis()
  cache_bytes = sum(x.nbytes for x in cache)
  assert stats.alias_size_in_bytes == cache_bytes
  return stats.temp_size_in_bytes, cache_bytes


def test_a_chunk_takes_as_much_memory_whatever_the_cache_holds():
  short, _ = memory(attend_chunk, 1024, 32, jnp.int32(0))
  long, cache_bytes = memory(attend_chunk, 65_536, 32, jnp.int32(0))
  assert long == short < cache_bytes / 50


def test_a_token_is_written_in_place():
  used, cache_bytes = memory(attend_token, 65_536, 1, jnp.zeros(1, jnp.int32))
  # The scores of four heads are a fourth of keys and values of 2 x 8 numbers;
  # there is no second cache.
  assert used < 0.6 * cache_bytes


def test_a_chunk_that_does_not_divide_over_the_shards_is_refused(rng):
  mesh = mesh_of(context=8)
  chunk = (x[:, :12] for x in random_rows(rng, 4, 2))
  with pytest.raises(ValueError, match=r'chunk of 12 .* over 8 shards'):
    attend_chunk(*chunk, dirty_cache(2, mesh), jnp.int32(0), mesh=mesh)
