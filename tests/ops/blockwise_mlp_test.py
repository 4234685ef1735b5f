"""SwiGLU in chunks: equal to the plain one, and what it holds and sends."""

import collections
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from longctx_jax.config import MeshConfig
from longctx_jax.ops.blockwise_mlp import Chunks, blockwise_mlp, swiglu
from longctx_jax.ops.context_parallel import PARAM_AXES
from longctx_jax.sharding import batch_sharding, context_parallel, make_mesh
from tests.collectives import collectives
from tests.jaxprs import equations

B, T, D, F = 8, 24, 8, 32
REL = 1e-6
# 192 tokens: 5 does not divide, 1000 exceeds.
CHUNKS = [
  Chunks(*each)
  for each in ((1, 0), (5, 0), (64, 0), (1000, 0), (0, 8), (5, 16), (1000, 32))
]
MESHES = {
  'context': MeshConfig(fsdp=1, context=8),
  'fsdp': MeshConfig(fsdp=8),
  'tensor': MeshConfig(fsdp=1, tensor=8),
  'three': MeshConfig(fsdp=2, context=2, tensor=2),
  'data': MeshConfig(data=2, fsdp=2, context=2),
}


def inputs(dtype=jnp.float32):
  rng = np.random.default_rng(0)
  x, d_out = (jnp.asarray(rng.normal(size=(B, T, D)), dtype) for _ in range(2))
  kernels = (
    jnp.asarray(rng.normal(size=shape), jnp.float32)
    for shape in ((D, F), (D, F), (F, D))
  )
  return x, *kernels, d_out


def value_and_grads(mlp):
  def run(*args):
    out, vjp = jax.vjp(mlp, *args[:4])
    return out, *vjp(args[4])

  return run


@jax.jit
def plain(*args):
  def mlp(x, *kernels):
    return swiglu(x, *(kernel.astype(x.dtype) for kernel in kernels))

  return value_and_grads(mlp)(*args)


def chunked(chunks, config=None):
  parallel = config and context_parallel(config, make_mesh(config))
  run = value_and_grads(
    functools.partial(blockwise_mlp, chunks=chunks, parallel=parallel)
  )
  if parallel is None:
    return jax.jit(run)
  mesh = parallel.mesh
  columns, rows = (
    NamedSharding(mesh, P(*spec))
    for spec in ((PARAM_AXES, 'tensor'), ('tensor', PARAM_AXES))
  )
  x = batch_sharding(mesh)
  where = x, columns, columns, rows, x
  return jax.jit(
    run, in_shardings=where, out_shardings=(x, x, columns, columns, rows)
  )


def assert_close(got, want, rel):
  for a, b in zip(got, want, strict=True):
    assert a.dtype == b.dtype
    a, b = np.float32(a), np.float32(b)
    assert np.linalg.norm(a - b) <= rel * np.linalg.norm(b)


@pytest.mark.parametrize('chunks', CHUNKS, ids=str)
def test_chunks_give_the_values_and_gradients_of_the_whole(chunks):
  assert_close(chunked(chunks)(*inputs()), plain(*inputs()), REL)


def test_chunks_that_leave_features_out_are_refused():
  for width, config in ((5, None), (8, MESHES['tensor'])):
    with pytest.raises(ValueError, match=rf'chunks of {width} features do not'):
      chunked(Chunks(0, width), config)(*inputs())


@pytest.mark.parametrize('width', [0, 2])
@pytest.mark.parametrize('mesh', MESHES)
def test_a_mesh_gives_the_values_and_gradients_of_one_device(mesh, width):
  run = chunked(Chunks(5, width), MESHES[mesh])
  assert_close(jax.device_get(run(*inputs())), plain(*inputs()), REL)


def test_a_width_that_does_not_divide_is_gathered_by_nobody():
  config = MeshConfig(fsdp=1, context=3)
  parallel = context_parallel(config, make_mesh(config, jax.devices()[:3]))
  run = value_and_grads(
    functools.partial(blockwise_mlp, chunks=Chunks(5, 8), parallel=parallel)
  )
  assert_close(jax.jit(run)(*inputs()), plain(*inputs()), REL)


def test_gradients_of_bfloat16_chunks_add_up_in_float32():
  """Chunks of one token: in bfloat16 the sums would be off by 1 in 100."""
  args = inputs(jnp.bfloat16)
  many, one = (chunked(Chunks(chunk_len))(*args) for chunk_len in (1, 1000))
  assert_close(many[2:], one[2:], 1e-4)
  assert {str(d_kernel.dtype) for d_kernel in many[2:]} == {'float32'}


def test_bfloat16_chunks_of_features_add_up_in_float32():
  """One feature each: 32 sums in bfloat16 would be off by 1 in 100."""
  args = inputs(jnp.bfloat16)
  many, one = (chunked(Chunks(0, width))(*args) for width in (1, 0))
  assert_close(many[:2], one[:2], 0.004)  # a rounding to bfloat16
  assert {str(array.dtype) for array in many[:2]} == {'bfloat16'}


def test_the_hidden_of_all_tokens_never_exists():
  def largest(mlp):
    jaxpr = jax.make_jaxpr(value_and_grads(mlp))(*inputs())
    return max(
      math.prod(v.aval.shape) for eqn in equations(jaxpr) for v in eqn.outvars
    )

  assert largest(swiglu) == B * T * F
  for chunks in (Chunks(8), Chunks(0, 4)):
    in_chunks = functools.partial(blockwise_mlp, chunks=chunks)
    # Nor is there anything larger than what comes in and goes out.
    assert largest(in_chunks) == B * T * D > 8 * F


def test_a_chunk_of_features_gathers_its_columns_alone():
  width = 4
  sent = collectives(
    chunked(Chunks(0, width), MESHES['fsdp']).lower(*inputs()).compile()
  )
  kinds = collections.Counter((one.kind, one.num_bytes) for one in sent)
  columns = 4 * D * width
  assert kinds == {
    ('all-gather', columns): 6,
    ('reduce-scatter', columns // 8): 3,
  }
  assert all(one.in_loop for one in sent)


@pytest.mark.parametrize('mesh', MESHES)
def test_kernels_are_sent_once_a_pass_and_tokens_never(mesh):
  config = MESHES[mesh]
  sent = collectives(chunked(Chunks(5), config).lower(*inputs()).compile())
  assert [one for one in sent if one.in_loop] == []
  activations = 4 * B * T * D // (8 // config.tensor)
  kernel = 4 * D * F // config.tensor
  own = kernel // (config.fsdp * config.context)
  expected = collections.Counter()
  if config.fsdp * config.context > 1:
    # Kernels are gathered; their gradients go back in parts.
    expected['all-gather'] = 3 * kernel
    expected['reduce-scatter'] = 3 * own
  if config.data > 1:
    expected['all-reduce'] += 3 * own
  if config.tensor > 1:
    # Over F: the output, and the gradient of x, of a device's own tokens.
    expected['all-reduce'] += 2 * activations
  num_bytes = collections.Counter()
  for one in sent:
    num_bytes[one.kind] += one.num_bytes
  assert num_bytes == expected
