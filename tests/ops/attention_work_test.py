"""Counters against counts made the long way, and against the loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longctx_jax.ops import blockwise_attention as blockwise
from longctx_jax.ops.attention import attention_mask, places
from longctx_jax.ops.attention_work import attended_pairs, attention_work
from longctx_jax.ops.context_parallel import (
  ContextParallel,
  context_parallel_attention,
)
from longctx_jax.ops.sequence_layout import to_layout
from longctx_jax.ops.tiles import block_extents, needed_tiles
from tests.ops.attention_inputs import random_qkv, row

T, BLOCK_LEN = 64, 8
ROWS = np.array(
  [row(T, T=T), row(8, 24, 16, T=T), row(*[8] * 8, T=T), row(20, T=T)]
)


def split(kind, layout, **axes):
  devices = np.array(jax.devices()[: np.prod([*axes.values()])])
  mesh = jax.sharding.Mesh(devices.reshape(tuple(axes.values())), tuple(axes))
  return ContextParallel(mesh, kind, layout)


count = jax.jit(attention_work, static_argnums=(1, 2))


def work_of(rows, parallel):
  stored = to_layout(rows, parallel.layout, parallel.num_shards, axis=-1)
  work = count(jnp.asarray(stored), parallel, BLOCK_LEN)
  return jax.tree.map(float, work)


@pytest.mark.parametrize('kind', ['ring', 'allgather', 'ulysses'])
@pytest.mark.parametrize('layout', ['contiguous', 'zigzag'])
def test_counts_of_a_drawn_batch(kind, layout):
  work = work_of(ROWS, split(kind, layout, data=2, context=4))
  # In blocks of 8: a triangle of 8; 1, 3 and 2 blocks; 8 of one; 3 blocks.
  tiles = [36, 1 + 6 + 3, 8, 6]
  assert work.tile_share == pytest.approx(sum(tiles) / (4 * 36))
  # The first row is one document, so its keys go all the way round.
  assert work.hop_share == (1.0 if kind == 'ring' else 0.0)


def test_attended_pairs_are_those_of_the_mask():
  rows = jnp.asarray(ROWS)
  mask = attention_mask(*[places(4, T, rows, None)] * 2)
  assert attended_pairs(rows) == attended_pairs(rows[:, ::-1]) == mask.sum()


def test_hops_follow_the_longest_document_of_the_batch():
  parallel = split('ring', 'contiguous', context=4)
  assert work_of(ROWS[2:3], parallel).hop_share == 0
  assert work_of(ROWS[1:3], parallel).hop_share == pytest.approx(1 / 3)


@pytest.mark.parametrize(
  ('kind', 'layout', 'imbalance'),
  [
    ('ring', 'zigzag', 1.0),
    ('allgather', 'zigzag', 1.0),
    # Of 36 tiles the last of 4 shards has 7 + 8.
    ('ring', 'contiguous', 15 / 9),
    ('allgather', 'contiguous', 15 / 9),
    ('ulysses', 'contiguous', 1.0),
  ],
)
def test_imbalance_is_the_busiest_device_against_the_mean(
  kind, layout, imbalance
):
  parallel = split(kind, layout, context=4)
  assert work_of(ROWS[:1], parallel).imbalance == pytest.approx(imbalance)


def test_devices_with_other_rows_count_too():
  parallel = split('ulysses', 'contiguous', data=2, context=4)
  # 36 tiles on one half of the devices, 10 on the other.
  assert work_of(ROWS[:2], parallel).imbalance == pytest.approx(36 / 23)


def test_each_micro_batch_makes_its_own_hops():
  parallel = split('ring', 'contiguous', data=2, context=4)
  one, short = ROWS[0], ROWS[2]
  apart = work_of(np.array([[short, short], [one, one]]), parallel)
  assert apart.hop_share == (0 + 1) / 2
  assert apart.imbalance == pytest.approx((2 + 15) / (2 + 9))
  # In each there is a row of one document.
  mixed = work_of(np.array([[short, one], [one, short]]), parallel)
  assert mixed.hop_share == 1
  assert apart.tiles == mixed.tiles == 2 * (8 + 36)
  assert apart.tile_share == mixed.tile_share == pytest.approx(44 / 72)


def test_what_one_micro_batch_leaves_idle_another_does_not_make_good():
  parallel = split('ulysses', 'contiguous', data=2, context=4)
  one, short = ROWS[0], ROWS[2]
  work = work_of(np.array([[one, short], [short, one]]), parallel)
  # Both halves of the devices make 36 + 8, but never as many at once.
  assert work.imbalance == pytest.approx((36 + 36) / (22 + 22))


def test_there_may_be_more_tiles_than_an_int32_holds():
  parallel = split('ring', 'zigzag', context=8)
  rows = jax.ShapeDtypeStruct((1024, 524_288), jnp.int32)
  jax.eval_shape(lambda ids: attention_work(ids, parallel, 128), rows)


@pytest.mark.parametrize('kind', ['ring', 'allgather', 'ulysses'])
@pytest.mark.parametrize('layout', ['contiguous', 'zigzag'])
# 6 divides neither 16 nor 64, and 12 is longer than a chunk of zigzag.
@pytest.mark.parametrize(
  'block_len', [6, *(pytest.param(n, marks=pytest.mark.slow) for n in (8, 12))]
)
def test_counts_are_those_of_the_loops(kind, layout, block_len):
  """The kernel itself reports how many tiles it was told to make."""
  R = 4
  parallel = split(kind, layout, context=R)
  counted = []

  def forward(q, k, v, queries, keys, block_len):
    # What the kernel is told, its blocks never longer than a chunk.
    needed = needed_tiles(
      block_extents(queries, min(block_len, q.shape[1])),
      block_extents(keys, min(block_len, k.shape[1])),
    )
    jax.debug.callback(lambda n: counted.append(int(n)), needed.sum())
    return blockwise.forward(q, k, v, queries, keys, block_len)

  kernel = blockwise.TileKernel(forward, blockwise.backward)
  stored = to_layout(ROWS, layout, R)
  q, k, v, _ = random_qkv(0, (4, T, 4, 4, 2))
  attend = functools.partial(
    context_parallel_attention,
    parallel=parallel,
    block_len=block_len,
    kernel=kernel,
  )
  jax.block_until_ready(jax.jit(attend)(q, k, v, segment_ids=stored))
  jax.effects_barrier()
  work = attention_work(jnp.asarray(stored), parallel, block_len)
  # With Ulysses every shard makes all tiles, for its part of the heads.
  assert work.tiles == sum(counted) / (R if kind == 'ulysses' else 1)
