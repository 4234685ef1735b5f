"""The ring's plan: how far keys travel, and that they travel no farther."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from longctx_jax.ops import blockwise_attention as blockwise
from longctx_jax.ops.attention import dense_attention
from longctx_jax.ops.context_parallel import (
  ContextParallel,
  context_parallel_attention,
)
from longctx_jax.ops.ring_attention import (
  Ring,
  merge,
  needed_hops,
  ring_attention,
  way_home,
)
from longctx_jax.ops.sequence_layout import stored_index
from longctx_jax.ops.tiles import count_tiles, shard_extents
from tests.ops.attention_inputs import random_qkv, row

R, T, BLOCK_LEN = 4, 64, 8
ONE = row(T, T=T)
SHORT = row(*[8] * 8, T=T)  # a chunk of zigzag each
PAIRS = row(*[12] * 5, T=T)  # each within two chunks, but not within one shard


def hops_of(segment_ids, layout):
  index = stored_index(layout, T, R)
  extents = shard_extents(
    jnp.asarray(segment_ids[index].reshape(R, 1, -1)),
    jnp.asarray(index.reshape(R, -1)),
    BLOCK_LEN,
  )
  needed = count_tiles(extents, extents)[0] > 0
  return tuple(map(int, needed_hops(needed, layout)))


@pytest.mark.parametrize(
  ('segment_ids', 'layout', 'hops'),
  [
    (ONE, 'contiguous', (3, 0)),
    (ONE, 'zigzag', (3, 0)),
    (SHORT, 'contiguous', (0, 0)),
    (SHORT, 'zigzag', (0, 0)),
    (PAIRS, 'contiguous', (1, 0)),
    (PAIRS, 'zigzag', (1, 1)),
    (row(T=T), 'zigzag', (0, 0)),
  ],
  ids=str,
)
def test_hops_are_those_drawn_in_the_module(segment_ids, layout, hops):
  assert hops_of(segment_ids, layout) == hops


@settings(deadline=None, max_examples=50)
@given(
  st.integers(1, 7).flatmap(
    lambda n: st.lists(
      st.lists(st.booleans(), min_size=n, max_size=n), min_size=n, max_size=n
    )
  )
)
def test_hops_reach_all_that_is_needed_and_are_the_fewest(needed):
  needed = np.array(needed)
  n = len(needed)

  def reaches(up, down):
    seen = {d % n for d in range(up + 1)} | {-d % n for d in range(down + 1)}
    return all((r - s) % n in seen for r, s in np.argwhere(needed))

  up, down = map(int, needed_hops(jnp.asarray(needed), 'zigzag'))
  assert reaches(up, down)
  # No key may be met twice, from above and from below.
  ways = [(u, d) for u in range(n) for d in range(n - u)]
  assert (up, down) in ways
  assert up + down == min(u + d for u, d in ways if reaches(u, d))


@pytest.mark.parametrize('num_shards', [1, 2, 7, 8])
def test_gradients_go_home_the_shorter_way(num_shards):
  for hops in range(num_shards):
    back, onward = map(int, way_home(jnp.int32(hops), num_shards))
    assert (hops - back + onward) % num_shards == 0
    assert back + onward == min(hops, num_shards - hops)


def counting(calls):
  """The XLA kernel, which also notes each call when the program runs."""

  def count(name, function):
    def run(*args):
      jax.debug.callback(functools.partial(calls.append, name))
      return function(*args)

    return run

  return blockwise.TileKernel(
    count('forward', blockwise.forward), count('backward', blockwise.backward)
  )


@pytest.mark.parametrize(
  'segment_ids', [ONE, SHORT, PAIRS], ids=['one', 'short', 'pairs']
)
def test_the_ring_makes_these_hops_and_no_more(segment_ids):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:R]), ('context',))
  q, k, v, _ = random_qkv(0, (1, T, 2, 1, 8))
  stored = jnp.asarray(segment_ids[stored_index('zigzag', T, R)])[None]
  calls = []

  def loss(q):
    out = context_parallel_attention(
      q,
      k,
      v,
      segment_ids=stored,
      parallel=ContextParallel(mesh, 'ring', 'zigzag'),
      block_len=BLOCK_LEN,
      kernel=counting(calls),
    )
    return jnp.sum(out**2)

  jax.block_until_ready(jax.jit(jax.grad(loss))(q))
  jax.effects_barrier()
  up, down = hops_of(segment_ids, 'zigzag')
  # One of the own keys, and one a hop.
  visits = R * (1 + up + down)
  assert calls.count('forward') == calls.count('backward') == visits


def test_merging_equals_attention_to_both_at_once():
  q, k, v, _ = random_qkv(1, (1, 16, 2, 2, 8))
  index = jnp.arange(16)
  queries = blockwise.Place(jnp.ones((1, 16), int), index)
  parts = [
    blockwise.forward(
      q,
      k[:, half],
      v[:, half],
      queries,
      blockwise.Place(jnp.ones((1, 8), int), index[half]),
      4,
    )
    for half in (slice(0, 8), slice(8, 16))
  ]
  out, lse = merge(*parts)
  np.testing.assert_allclose(
    out, dense_attention(q, k, v), rtol=1e-5, atol=1e-6
  )
  whole = blockwise.Place(jnp.ones((1, 16), int), index)
  _, expected = blockwise.forward(q, k, v, queries, whole, 16)
  np.testing.assert_allclose(lse, expected, rtol=1e-5, atol=1e-6)
  # Early queries see nothing of the second half, and keep what they have.
  np.testing.assert_array_equal(out[:, :8], parts[0][0][:, :8])


def test_merging_nothing_with_nothing_is_nothing():
  nothing = jnp.zeros((1, 2, 1, 4)), jnp.full((1, 2, 1), blockwise.MASKED)
  out, lse = merge(nothing, nothing)
  assert (out == 0).all()
  assert (lse == blockwise.MASKED).all()


def test_arrays_that_do_not_belong_together_are_refused():
  q, k, v, _ = random_qkv(2, (1, 8, 2, 1, 4))
  ring = Ring('context', (), R, 'zigzag', blockwise.XLA, BLOCK_LEN)
  part = jnp.zeros((1, 8, 2, 4)), jnp.zeros((1, 8, 2))
  for call, argument in (
    (lambda: ring_attention(q, k, v, jnp.ones((1, T), int), ring), 'segment'),
    (lambda: merge(part, (part[0], part[1][:, :1])), "'b'"),
    (lambda: needed_hops(jnp.ones((R, 2), bool), 'zigzag'), 'needed'),
  ):
    with pytest.raises(TypeCheckError, match=f'typechecking .*{argument}'):
      call()
