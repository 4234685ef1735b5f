"""Cross entropy over a mesh: equal to one device's, and what it sends."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from longctx_jax.config import MeshConfig
from longctx_jax.ops.context_parallel import PARAM_AXES
from longctx_jax.ops.cross_entropy import (
  cross_entropy_sum,
  token_losses_and_predictions,
)
from longctx_jax.sharding import (
  batch_sharding,
  context_parallel,
  make_mesh,
)
from tests.collectives import collectives

B, T, D, V = 8, 24, 16, 64
REL = 1e-6
ALL = ('fsdp', 'context')
MESHES = {
  'context': MeshConfig(fsdp=1, context=8),
  'context, whole vocabulary': MeshConfig(fsdp=1, context=8, vocab_axes=()),
  'fsdp': MeshConfig(fsdp=8),
  'fsdp, split vocabulary': MeshConfig(fsdp=8, vocab_axes=ALL),
  'tensor': MeshConfig(fsdp=1, tensor=8),
  'three': MeshConfig(fsdp=2, context=2, tensor=2),
  'three, split vocabulary': MeshConfig(
    fsdp=2, context=2, tensor=2, vocab_axes=ALL
  ),
  'data': MeshConfig(data=2, fsdp=2, context=2),
}


def inputs(V=V):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(B, T, D)).astype(np.float32)
  unembedding = rng.normal(size=(D, V)).astype(np.float32)
  targets = rng.integers(0, V, (B, T), np.int32)
  weights = (rng.random((B, T)) < 0.7).astype(np.float32)
  return x, unembedding, targets, weights


def parallel_of(config):
  return context_parallel(config, make_mesh(config))


def shardings(mesh):
  batch = batch_sharding(mesh)
  unembedding = NamedSharding(mesh, P(PARAM_AXES, 'tensor'))
  return batch, unembedding, batch, batch


def loss_and_grads(parallel, chunk_len):
  """(x, unembedding, targets, weights) -> the sum, 3 times its gradients."""

  def run(x, unembedding, targets, weights):
    total, vjp = jax.vjp(
      lambda *args: cross_entropy_sum(
        *args, targets, weights, chunk_len=chunk_len, parallel=parallel
      ),
      x,
      unembedding,
    )
    return total, *vjp(jnp.float32(3))

  if parallel is None:
    return jax.jit(run)
  mesh = parallel.mesh
  where = shardings(mesh)
  return jax.jit(
    run,
    in_shardings=where,
    out_shardings=(NamedSharding(mesh, P()), *where[:2]),
  )


@functools.cache
def on_one_device(V=V):
  return jax.device_get(loss_and_grads(None, 40)(*inputs(V)))


def assert_as_on_one_device(config, V):
  # Of 24 to 192 tokens on a device, in chunks that divide them and do not.
  run = loss_and_grads(parallel_of(config), 40)
  got = jax.device_get(run(*inputs(V)))
  for a, b in zip(got, on_one_device(V), strict=True):
    assert np.linalg.norm(a - b) <= REL * np.linalg.norm(b)


@pytest.mark.parametrize('mesh', MESHES)
def test_sum_and_gradients_equal_those_of_one_device(mesh):
  assert_as_on_one_device(MESHES[mesh], V)


@pytest.mark.parametrize(
  ('mesh', 'vocab'), [('context', 61), ('three, split vocabulary', 62)]
)
def test_a_vocabulary_that_does_not_divide_is_filled_up(mesh, vocab):
  assert_as_on_one_device(MESHES[mesh], vocab)


def test_without_a_gradient_the_sum_is_the_same():
  parallel = parallel_of(MESHES['three'])
  run = jax.jit(
    functools.partial(cross_entropy_sum, chunk_len=40, parallel=parallel),
    in_shardings=shardings(parallel.mesh),
  )
  np.testing.assert_allclose(run(*inputs()), on_one_device()[0], rtol=REL)


def test_token_losses_and_the_first_of_the_likeliest_are_found_over_shards():
  x, unembedding, targets, _ = inputs()
  # The same column on two shards: argmax takes the first.
  unembedding[:, 50] = unembedding[:, 5] = 4 * x[0, 0]
  arrays = [jnp.asarray(a) for a in (x, unembedding, targets)]
  want = token_losses_and_predictions(*arrays)
  assert (want[1] == 5).sum() > 10
  parallel = parallel_of(MESHES['three, split vocabulary'])
  got = jax.jit(
    functools.partial(
      token_losses_and_predictions, chunk_len=40, parallel=parallel
    ),
    in_shardings=shardings(parallel.mesh)[:3],
  )(*arrays)
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(got[1], want[1])


def test_a_width_that_does_not_divide_stays_whole():
  config = dataclasses.replace(MESHES['context'], context=5)
  mesh = make_mesh(config, jax.devices()[:5])
  parallel = context_parallel(config, mesh)
  args = [jnp.asarray(a[:, :20] if a.shape[1] == T else a) for a in inputs()]
  got, want = (
    jax.jit(
      jax.value_and_grad(
        functools.partial(cross_entropy_sum, chunk_len=40, parallel=parallel),
        argnums=(0, 1),
      )
    )(*args)
    for parallel in (parallel, None)
  )
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert np.linalg.norm(a - b) <= REL * np.linalg.norm(b)


def compiled(config, chunk_len, width, vocab):
  parallel = parallel_of(config)
  args = (
    jax.ShapeDtypeStruct((8, 64, width), jnp.float32),
    jax.ShapeDtypeStruct((width, vocab), jnp.float32),
    jax.ShapeDtypeStruct((8, 64), jnp.int32),
    jax.ShapeDtypeStruct((8, 64), jnp.float32),
  )
  return loss_and_grads(parallel, chunk_len).lower(*args).compile()


@pytest.mark.parametrize('mesh', MESHES)
def test_a_chunk_sends_its_tokens_and_never_logits_or_unembeddings(mesh):
  """In bytes: [C, D] of hidden states and of gradients, and some [C]."""
  C, width, vocab = 32, 8, 1024
  config = MESHES[mesh]
  sent = collectives(compiled(config, C, width, vocab))
  in_loop = [one for one in sent if one.in_loop]
  splits = [
    axis for axis in (*config.vocab_axes, 'tensor') if getattr(config, axis) > 1
  ]
  # x there, its gradient back, targets, weights, maximum, sum and own logit.
  most = 4 * (2 * C * width + 5 * C)
  assert sum(one.num_bytes for one in in_loop) <= most
  assert bool(in_loop) == bool(splits)
  # Outside: the unembedding and its gradient, of a device's own columns.
  shards = np.prod([getattr(config, axis) for axis in splits], dtype=int)
  own = 4 * width * vocab // shards
  assert max((one.num_bytes for one in sent), default=0) <= max(own, most)
  # Logits of a chunk, on a device, would be seen.
  assert most < 4 * C * vocab // 8


@pytest.mark.parametrize('mesh', ['fsdp', 'context', 'three, split vocabulary'])
def test_the_work_is_shared_out_over_the_devices(mesh):
  one = dataclasses.replace(MESHES[mesh], fsdp=1, context=1, tensor=1)
  alone = context_parallel(one, make_mesh(one, jax.devices()[:1]))
  args = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in inputs()]
  flops = [
    loss_and_grads(parallel, B * T)
    .lower(*args)
    .compile()
    .cost_analysis()['flops']
    for parallel in (parallel_of(MESHES[mesh]), alone)
  ]
  assert flops[0] < flops[1] / 6
