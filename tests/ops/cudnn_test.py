"""The choice between cuDNN and the XLA loops; JAX's XLA stands in for cuDNN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longctx_jax.ops.attention import dense_attention
from longctx_jax.ops.blockwise_attention import blockwise_attention
from longctx_jax.ops.context_parallel import (
  ContextParallel,
  WholeRowKernel,
  context_parallel_attention,
)
from longctx_jax.ops.kernels import cudnn
from tests.ops.attention_inputs import (
  assert_equal_to,
  random_qkv,
  row,
  with_gradients,
)
from tests.ops.cuda_lowering import (
  CUDNN_CALLS,
  lower_attention,
  pretend_cudnn,
)

B, T, N, K, H = 2, 48, 4, 2, 8
SHAPE = (B, T, N, K, H)
BLOCK_LEN = 16
ATTEND = functools.partial(cudnn.attend, implementation='xla')

WHOLE = row(T, T=T)
# The rows of a batch, and whether the causal flag tells all of their mask.
BATCHES = {
  'one segment': ([WHOLE, WHOLE], True),
  'padding at the end': ([row(31, T=T), WHOLE], True),
  'one token': ([row(1, T=T), row(T - 1, T=T)], True),
  'nothing but padding': ([row(T=T), WHOLE], True),
  'another number': ([7 * row(40, T=T), 2 * WHOLE], True),
  'documents': ([row(20, 28, T=T), row(5, 6, 7, T=T)], False),
  'documents in the last row': ([WHOLE, row(47, 1, T=T)], False),
  'padding in the middle': ([np.roll(row(40, T=T), 9), WHOLE], False),
  'padding first': ([WHOLE, row(31, T=T)[::-1]], False),
}


@functools.cache
def runs():
  return with_gradients(ATTEND), with_gradients(dense_attention)


@pytest.mark.parametrize('name', BATCHES)
def test_both_sides_equal_dense(name):
  rows, one_segment = BATCHES[name]
  segment_ids = jnp.asarray(np.stack(rows))
  assert bool(cudnn.hold_one_segment(segment_ids)) == one_segment
  attend, dense = runs()
  arrays = (*random_qkv(0, SHAPE), segment_ids)
  got = attend(*arrays)
  assert_equal_to(got, dense(*arrays))
  padding = np.asarray(segment_ids) == 0
  for x in got:
    assert (np.asarray(x)[padding] == 0).all()


@pytest.mark.parametrize('name', ['padding at the end', 'documents'])
def test_bfloat16_differs_by_its_rounding_alone(name):
  segment_ids = jnp.asarray(np.stack(BATCHES[name][0]))
  attend, dense = runs()
  arrays = (*random_qkv(0, SHAPE, jnp.bfloat16), segment_ids)
  got = attend(*arrays)
  assert all(x.dtype == jnp.bfloat16 for x in got)
  # Weights, too, are rounded to 8 bits on the side of JAX's own attention.
  assert_equal_to(got, dense(*arrays), rel=2**-8)


@pytest.mark.parametrize(
  ('kind', 'axes', 'heads'),
  [
    pytest.param('ulysses', {'context': 8}, (8, 8), marks=pytest.mark.slow),
    # More shards than key/value heads: each device has a copy of one.
    ('ulysses', {'data': 2, 'context': 4}, (8, 2)),
    pytest.param(
      *('ulysses', {'context': 2, 'tensor': 2}, (4, 4)),
      marks=pytest.mark.slow,
    ),
    # A device decides for its own rows.
    ('ring', {'data': 2, 'context': 1}, (4, 2)),
  ],
)
@pytest.mark.parametrize(
  'name', ['padding at the end', 'documents in the last row']
)
def test_on_a_mesh_it_equals_dense(kind, axes, heads, name):
  devices = np.array(jax.devices()[: np.prod([*axes.values()])])
  mesh = jax.sharding.Mesh(devices.reshape([*axes.values()]), [*axes])
  attend = functools.partial(
    context_parallel_attention,
    parallel=ContextParallel(mesh, kind, 'contiguous'),
    block_len=BLOCK_LEN,
    kernel=WholeRowKernel(ATTEND),
  )
  segment_ids = jnp.asarray(np.stack(BATCHES[name][0]))
  arrays = (*random_qkv(0, (B, T, *heads, H)), segment_ids)
  assert_equal_to(
    with_gradients(attend)(*arrays), with_gradients(dense_attention)(*arrays)
  )


@pytest.mark.parametrize(
  ('kind', 'layout'),
  [('ring', 'contiguous'), ('allgather', 'zigzag'), ('ulysses', 'zigzag')],
)
def test_parts_of_rows_are_refused(kind, layout):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ('context',))
  q, k, v, _ = random_qkv(0, SHAPE)
  with pytest.raises(ValueError, match=rf"{kind}'.*{layout}' on 2 context"):
    context_parallel_attention(
      q, k, v, parallel=ContextParallel(mesh, kind, layout), kernel=cudnn.CUDNN
    )


@pytest.fixture
def with_cudnn(monkeypatch):
  pretend_cudnn(monkeypatch)


def test_cudnn_is_installed_if_jax_says_so(monkeypatch):
  pretend_cudnn(monkeypatch)
  assert cudnn.is_installed()

  def none():
    raise RuntimeError('cuDNN is not detected.')

  pretend_cudnn(monkeypatch, none)
  assert not cudnn.is_installed()


@pytest.mark.usefixtures('with_cudnn')
def test_a_gpu_gets_both_sides_of_the_choice_and_both_gradients():
  lowered = lower_attention(cudnn.attend, (1, 1024, 4, 2, 128))
  assert lowered.custom_calls == set(CUDNN_CALLS)
  assert {'case', 'while'} <= lowered.operations


@pytest.mark.usefixtures('with_cudnn')
def test_gpus_of_ulysses_get_whole_rows_of_their_heads():
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('context',))
  attend = functools.partial(
    context_parallel_attention,
    parallel=ContextParallel(mesh, 'ulysses', 'contiguous'),
    kernel=cudnn.CUDNN,
  )
  lowered = lower_attention(attend, (1, 1024, 16, 8, 128))
  assert lowered.num_devices == 8
  assert lowered.custom_calls == set(CUDNN_CALLS)
  assert 'all_to_all' in lowered.operations
  assert (1, 1024, 2, 128) in lowered.shapes


@pytest.mark.usefixtures('with_cudnn')
def test_a_gradient_keeps_one_output_more_than_without_cudnn():
  def kept(attend):
    """Bytes between forward and backward, inputs included."""
    q, k = (jax.ShapeDtypeStruct((B, T, n, H), jnp.bfloat16) for n in (N, K))
    segment_ids = jax.ShapeDtypeStruct((B, T), jnp.int32)

    def pull_back(q, k, v, segment_ids):
      return jax.vjp(
        lambda *qkv: attend(*qkv, segment_ids=segment_ids), q, k, v
      )[1]

    leaves = jax.tree.leaves(jax.eval_shape(pull_back, q, k, k, segment_ids))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

  # cuDNN's own, in bfloat16, and its float32 statistics; the mask of padding
  # and which side was taken are two bytes a token and four.
  more = B * T * N * (2 * H + 4) + B * T * 2 + 4
  assert kept(cudnn.attend) <= kept(blockwise_attention) + more
