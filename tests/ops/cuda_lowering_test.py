"""What a GPU gets from the XLA path, forward and backward."""

import functools
import math

import jax
import numpy as np
import pytest

from longctx_jax.ops.attention import dense_attention
from longctx_jax.ops.blockwise_attention import blockwise_attention
from longctx_jax.ops.context_parallel import (
  ContextParallel,
  context_parallel_attention,
)
from tests.ops.cuda_lowering import lower_attention

T, BLOCK_LEN = 4096, 256
SHAPE = (1, T, 8, 8, 16)
COLLECTIVES = {
  'all_gather',
  'all_reduce',
  'all_to_all',
  'collective_permute',
  'reduce_scatter',
}


def largest(lowered):
  """Numbers in the largest array."""
  return max(math.prod(shape) for shape in lowered.shapes)


def test_one_gpu_gets_loops_over_tiles_and_no_call_of_a_cpu_library():
  attend = functools.partial(blockwise_attention, block_len=BLOCK_LEN)
  lowered = lower_attention(attend, SHAPE)
  assert lowered.custom_calls == set()
  assert 'while' in lowered.operations
  # Not the scores of a row, which dense attention makes: q, k and v at most.
  assert largest(lowered) == math.prod(SHAPE[:3]) * SHAPE[4]
  assert largest(lower_attention(dense_attention, SHAPE)) == 8 * T * T


@pytest.mark.parametrize(
  ('kind', 'layout', 'collectives'),
  [
    ('ring', 'zigzag', {'collective_permute', 'all_gather'}),
    ('allgather', 'zigzag', {'all_gather', 'reduce_scatter'}),
    ('ulysses', 'contiguous', {'all_to_all', 'all_gather'}),
  ],
)
def test_eight_gpus_get_their_parts_and_the_collectives_between(
  kind, layout, collectives
):
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('context',))
  attend = functools.partial(
    context_parallel_attention,
    parallel=ContextParallel(mesh, kind, layout),
    block_len=BLOCK_LEN,
  )
  lowered = lower_attention(attend, SHAPE)
  assert lowered.num_devices == 8
  assert lowered.custom_calls == set()
  # Of segment ids alone, except under 'allgather', is anything gathered.
  assert lowered.operations & COLLECTIVES == collectives
