"""Which tiles are walked: all that some pair needs, and often no more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longctx_jax.ops import tiles
from longctx_jax.ops.attention import Place, attention_mask
from longctx_jax.ops.sequence_layout import stored_index
from longctx_jax.ops.tiles import (
  block_extents,
  count_causal_tiles,
  count_tiles,
  needed_tiles,
  shard_extents,
  tile_lists,
)

T = 12


def tiles_with_a_pair(queries, keys, block_len):
  """[B, query blocks, key blocks] by looking at every pair."""
  mask = np.asarray(attention_mask(queries, keys))
  starts = range(0, T, block_len)
  return np.array(
    [
      [
        [row[i : i + block_len, j : j + block_len].any() for j in starts]
        for i in starts
      ]
      for row in mask
    ]
  )


def needed(queries, keys, block_len):
  return np.asarray(
    needed_tiles(
      block_extents(queries, block_len), block_extents(keys, block_len)
    )
  )


@st.composite
def packed_rows(draw):
  lengths = draw(st.lists(st.integers(1, T), max_size=6))
  ids = np.repeat(np.arange(len(lengths)) + 1, lengths)[:T]
  return np.pad(ids, (0, T - len(ids)))


def place(ids, index=None):
  index = np.arange(T) if index is None else index
  return Place(jnp.asarray(ids)[None], jnp.asarray(index))


@settings(deadline=None)
@given(ids=packed_rows(), block_len=st.integers(1, T + 1))
def test_in_packed_rows_a_tile_is_needed_iff_a_pair_attends(ids, block_len):
  here = place(ids)
  np.testing.assert_array_equal(
    needed(here, here, block_len), tiles_with_a_pair(here, here, block_len)
  )


@settings(deadline=None)
@given(
  ids=st.lists(st.integers(0, 3), min_size=2 * T, max_size=2 * T),
  index=st.permutations(range(2 * T)),
  block_len=st.integers(1, T),
)
def test_no_pair_is_lost_whatever_the_order(ids, index, block_len):
  queries, keys = place(ids[:T], index[:T]), place(ids[T:], index[T:])
  pairs = tiles_with_a_pair(queries, keys, block_len)
  assert not (pairs & ~needed(queries, keys, block_len)).any()


def test_a_drawn_example():
  # Blocks of two; documents 1 1 1 | 2 | 3 3 3 and padding.
  here = place([1, 1, 1, 2, 3, 3, 3, 0, 0, 0, 0, 0])
  drawn = [
    '1.....',
    '11....',
    '..1...',
    '..11..',
    '......',
    '......',
  ]
  got = needed(here, here, 2)[0]
  assert [''.join('.1'[int(n)] for n in row) for row in got] == drawn
  lists = tile_lists(jnp.asarray(got))
  assert lists.counts.tolist() == [1, 2, 1, 2, 0, 0]
  assert lists.key_blocks[1, :2].tolist() == [0, 1]
  assert lists.key_blocks[3, :2].tolist() == [2, 3]


def count_all_at_once(queries, keys):
  """[B, query shards, key shards] from every tile of every two shards."""
  return np.array(
    [
      [
        needed_tiles(
          jax.tree.map(lambda x, r=r: x[:, r], queries),
          jax.tree.map(lambda x, s=s: x[:, s], keys),
        ).sum(axis=(1, 2))
        for s in range(keys.max_segment.shape[1])
      ]
      for r in range(queries.max_segment.shape[1])
    ]
  ).transpose(2, 0, 1)


def shards(rows, index, num_shards, block_len):
  ids = jnp.asarray(rows).reshape(len(rows), num_shards, -1).swapaxes(0, 1)
  index = jnp.asarray(index).reshape(num_shards, -1)
  return shard_extents(ids, index, block_len)


@pytest.fixture
def few_at_a_time(monkeypatch):
  """So few tiles that there are several turns, and a short last one."""
  monkeypatch.setattr(tiles, '_TILES_AT_A_TIME', 37)


@pytest.mark.usefixtures('few_at_a_time')
@pytest.mark.parametrize('layout', ['contiguous', 'zigzag'])
@settings(
  deadline=None,
  max_examples=8,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
  rows=st.lists(packed_rows(), min_size=2, max_size=2),
  cuts=st.sampled_from([(3, 3), (3, 1), (1, 1)]),
  block_len=st.integers(1, 5),
)
def test_counting_some_at_a_time_counts_all(layout, rows, cuts, block_len):
  index = stored_index(layout, T, 3)
  rows = np.stack(rows)[:, index]
  queries, keys = (shards(rows, index, n, block_len) for n in cuts)
  np.testing.assert_array_equal(
    count_tiles(queries, keys), count_all_at_once(queries, keys)
  )


@pytest.mark.parametrize('layout', ['contiguous', 'zigzag'])
@pytest.mark.parametrize('cuts', [(3, 3), (3, 1), (1, 1)])
# 5 leaves a short block on a shard, and one of two chunks of zigzag.
@pytest.mark.parametrize('block_len', [2, 5, 24])
def test_causal_tiles_are_those_of_one_document(layout, cuts, block_len):
  index = stored_index(layout, 2 * T, 3)
  row = np.ones((1, 2 * T), np.int32)
  queries, keys = (shards(row, index, n, block_len) for n in cuts)
  indices = (index.reshape(n, -1) for n in cuts)
  expected = count_all_at_once(queries, keys).sum()
  assert count_causal_tiles(*indices, block_len) == expected


def test_memory_does_not_grow_with_the_number_of_tiles():
  R, length, block_len = 8, 524_288, 128

  def count(segment_ids, index):
    extents = shard_extents(segment_ids, index, block_len)
    return count_tiles(extents, extents)

  ids, index = (
    jax.ShapeDtypeStruct(shape, jnp.int32)
    for shape in ((R, 1, length // R), (R, length // R))
  )
  memory = jax.jit(count).lower(ids, index).compile().memory_analysis()
  # A byte for each of the tiles would be 16 MB.
  assert memory.temp_size_in_bytes < 8e6
