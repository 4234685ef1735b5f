"""Which tiles are walked: all that some pair needs, and often no more."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx_jax.ops.attention import Place, attention_mask
from longctx_jax.ops.tiles import block_extents, needed_tiles, tile_lists

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
