"""Layouts: what is stored where, and back."""

import jax.numpy as jnp
import numpy as np
import pytest

from longctx_jax.ops.sequence_layout import (
  check_layout,
  from_layout,
  shard_index,
  stored_index,
  to_layout,
)
from longctx_jax.ops.tiles import count_tiles, shard_extents

LAYOUTS = ('contiguous', 'zigzag')


def test_the_drawn_example():
  assert stored_index('zigzag', 8, 4).tolist() == [0, 7, 1, 6, 2, 5, 3, 4]
  assert stored_index('contiguous', 8, 4).tolist() == list(range(8))
  rows = np.arange(12).reshape(1, 12)
  stored = [[0, 1, 10, 11, 2, 3, 8, 9, 4, 5, 6, 7]]
  assert to_layout(rows, 'zigzag', 3).tolist() == stored


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('num_shards', [1, 2, 3, 5])
def test_there_and_back(layout, num_shards):
  rows = np.arange(120).reshape(2, 30, 2).astype(np.int32)[:, :, 0]
  rows = np.tile(rows, (1, 2))  # 60: a multiple of 2R for all of them
  there = to_layout(rows, layout, num_shards)
  np.testing.assert_array_equal(from_layout(there, layout, num_shards), rows)
  traced = to_layout(jnp.asarray(rows), layout, num_shards)
  np.testing.assert_array_equal(traced, there)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('num_shards', [1, 2, 3, 5])
def test_a_shard_knows_the_index_of_its_tokens(layout, num_shards):
  T = 60
  whole = stored_index(layout, T, num_shards).reshape(num_shards, -1)
  for shard in range(num_shards):
    index = shard_index(layout, shard, T // num_shards, num_shards)
    np.testing.assert_array_equal(index, whole[shard])


@pytest.mark.parametrize('num_shards', [2, 3, 8])
def test_zigzag_gives_every_shard_the_same_work(num_shards):
  T, block_len = 2 * num_shards * 4, 4
  segment_ids = jnp.ones((num_shards, 1, T // num_shards), int)
  tiles = {}
  for layout in LAYOUTS:
    index = stored_index(layout, T, num_shards).reshape(num_shards, -1)
    extents = shard_extents(segment_ids, jnp.asarray(index), block_len)
    tiles[layout] = np.asarray(count_tiles(extents, extents).sum(axis=(0, 2)))
  # Of n = 2R blocks, n (n + 1) / 2 tiles in all.
  assert set(tiles['zigzag']) == {2 * num_shards + 1}
  assert tiles['contiguous'].sum() == tiles['zigzag'].sum()
  # The last two blocks need all but one tile of their two rows.
  assert tiles['contiguous'][-1] == 4 * num_shards - 1


def test_what_does_not_divide_is_refused():
  check_layout('contiguous', 12, 4)
  check_layout('zigzag', 7, 1)
  with pytest.raises(ValueError, match=r'12 tokens .* 8 chunks .* 4 context'):
    check_layout('zigzag', 12, 4)
  with pytest.raises(ValueError, match="unknown layout 'striped'"):
    check_layout('striped', 12, 4)
