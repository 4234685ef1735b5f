"""The TPU kernels, interpreted, against dense attention; and their compiler.

Interpreted, a kernel's blocks are read and written as on a TPU, but one after
another and as plain JAX operations: what is tested is the arithmetic and which
blocks are touched. That Mosaic takes the kernels is the slow test's to show.
"""

import functools
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longctx_jax.ops import blockwise_attention as blockwise
from longctx_jax.ops.attention import Place, dense_attention
from longctx_jax.ops.context_parallel import (
  ContextParallel,
  context_parallel_attention,
)
from longctx_jax.ops.kernels import tile_grid, tpu
from longctx_jax.ops.sequence_layout import stored_index
from tests.jaxprs import equations
from tests.ops.attention_inputs import (
  assert_equal_to,
  random_qkv,
  row,
  with_gradients,
)
from tests.ops.row_parts import (
  LAYOUTS,
  SHARDS,
  B,
  H,
  K,
  N,
  S,
  T,
  assert_equal_to_dense,
  inputs,
  places,
)

ROOT = Path(__file__).parent.parent.parent


@functools.cache
def compiled(block_len):
  """(q, k, v, d_out, queries, keys) -> out, dq, dk, dv and lse."""

  @jax.jit
  def run(q, k, v, d_out, queries, keys):
    where = queries, keys, block_len
    out, lse = tpu.forward(q, k, v, *where, interpret=True)
    delta = blockwise.row_delta(out, d_out)
    grads = tpu.backward(q, k, v, d_out, lse, delta, *where, interpret=True)
    return out, *grads, lse

  return lambda *args: [np.asarray(x) for x in run(*args)]


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('shards', SHARDS)
def test_kernels_equal_dense_attention(shards, layout):
  where = places(shards, layout, 'documents and padding')
  assert_equal_to_dense(compiled(128), inputs(), where)


@pytest.mark.slow
@pytest.mark.parametrize(('block_len', 'N'), [(256, 2), (512, 6)])
def test_kernels_equal_dense_with_other_blocks_and_heads(block_len, N):
  """Of 256 the last block is short, 512 is longer than the shards."""
  where = places('any order', 'one document', 'documents and padding')
  assert_equal_to_dense(compiled(block_len), inputs(N=N), where)


@pytest.mark.slow
def test_bfloat16_inputs_give_float32_results_near_those_of_float32():
  where = places('any order', 'one document', 'documents and padding')
  arrays = inputs(jnp.bfloat16)
  results = compiled(128)(*arrays, *where)
  assert {x.dtype for x in results} == {np.dtype('float32')}
  # Weights are rounded to bfloat16, to 8 bits: 1 part in 512 at most.
  assert_equal_to_dense(compiled(128), arrays, where, rel=2**-8)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['ring', 'allgather', 'ulysses'])
def test_kernels_on_shards_equal_dense_attention(kind):
  """Zigzag on two shards of 300 tokens; documents of both, of one, padding."""
  attend = functools.partial(
    context_parallel_attention,
    block_len=128,
    parallel=ContextParallel(
      jax.sharding.Mesh(np.array(jax.devices()[:2]), ('context',)),
      kind,
      'zigzag',
    ),
    kernel=blockwise.TileKernel(
      *(functools.partial(run, interpret=True) for run in tpu.PALLAS)
    ),
  )
  q, k, v, d_out = random_qkv(0, (1, 600, N, K, H))
  segment_ids = jnp.asarray(row(100, 320, 110, T=600)[None])
  expected = with_gradients(dense_attention)(q, k, v, d_out, segment_ids)
  index = stored_index('zigzag', 600, 2)
  stored = [x[:, index] for x in (q, k, v, d_out, segment_ids)]
  got = with_gradients(attend)(*stored)
  assert_equal_to(got, [x[:, index] for x in expected])


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
def test_products_take_the_inputs_dtype_and_float32_in_full(dtype):
  """A TPU multiplies bfloat16, and float32 rounded to it unless told not to."""
  where = places('zigzag', 'one document', 'one document')
  q, k, v, d_out = inputs(dtype)
  number = jnp.zeros((B, T, N))
  highest = jax.lax.Precision.HIGHEST
  # Tile products of each pass: 2; then 3 for dq and 4 for dk and dv.
  for run, count, args in (
    (tpu.forward, 2, (q, k, v, *where)),
    (tpu.backward, 7, (q, k, v, d_out, number, number, *where)),
  ):
    run = functools.partial(run, block_len=128)
    jaxpr = jax.make_jaxpr(run)(*args)
    found = [
      eqn for eqn in equations(jaxpr) if eqn.primitive.name == 'dot_general'
    ]
    assert len(found) == count * (N // K)
    for product in found:
      assert {x.aval.dtype.name for x in product.invars} == {dtype}
      precision = product.params['precision']
      assert (precision == (highest, highest)) == (dtype == 'float32')
      assert product.outvars[0].aval.dtype == jnp.float32


def test_padding_gives_exactly_zeros_and_zero_gradients():
  where = places('any order', 'padding inside and first', 'all padding')
  out, dq, dk, dv, lse = compiled(128)(*inputs(), *where)
  query_padding, key_padding = (np.asarray(x.segment_ids) == 0 for x in where)
  for array, padding in (
    (out, query_padding),
    (dq, query_padding),
    (dk, key_padding),
    (dv, key_padding),
  ):
    assert (array[padding] == 0).all()
    # What is checked is not zero all over.
    assert np.abs(array[~padding]).max() > 0.1
  assert (lse[query_padding] == blockwise.MASKED).all()


def test_blocks_that_no_tile_needs_are_not_read():
  """A NaN that is multiplied, even with 0, or compared would be seen."""
  # Query blocks of documents 1 and 2, keys of 0, 1 and 3; and the other way.
  ids = [1] * 128 + [2] * 128 + [0] * 44, [3] * 128 + [1] * 128 + [0] * 144
  queries, keys = (
    Place(jnp.array([x] * B), jnp.arange(len(x)) + start)
    for x, start in zip(ids, (256, 0), strict=True)
  )
  q, k, v, d_out = inputs()
  clean = compiled(128)(q, k, v, d_out, queries, keys)
  unseen_keys, unseen_queries = np.r_[0:128, 256:S], np.r_[128:T]
  k, v = (x.at[:, unseen_keys].set(jnp.nan) for x in (k, v))
  q = q.at[:, unseen_queries].set(jnp.nan)
  # Not d_out: its row sums with `out` are no matter of tiles.
  got = compiled(128)(q, k, v, d_out, queries, keys)
  assert np.abs(clean[0][:, :128]).max() > 0.1
  for a, b in zip(got, clean, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_lists_too_long_for_scalar_memory_are_worked_off_in_parts(monkeypatch):
  """3 query and 4 key blocks, and 1, 2 (the last part is short) or 3 a part."""
  where = places('any order', 'one document', 'documents and padding')
  whole = compiled(128)(*inputs(), *where)
  for max_tiles in (4, 8, 9):
    monkeypatch.setattr(tile_grid, 'MAX_TILES', max_tiles)
    parts = compiled.__wrapped__(128)(*inputs(), *where)  # built anew
    for a, b in zip(parts, whole, strict=True):
      np.testing.assert_array_equal(a, b)


def test_a_part_fits_in_scalar_memory_and_no_block_is_left_out():
  lengths = 1, 65_536, 524_288, 700_001
  for outer_len, inner_len in itertools.product(lengths, lengths):
    outer, inner = tile_grid.cut_sides(outer_len, inner_len, 512)
    tiles = outer.blocks_per_part * inner.blocks_per_part
    assert 2 * 4 * tiles <= 2**19
    assert 0 <= outer.num_parts * outer.part_len - outer_len < outer.part_len
    assert inner.num_parts == 1
    assert 0 <= inner.part_len - inner_len < inner.block_len
  assert tile_grid.cut_sides(524_288, 524_288, 512)[0].num_parts == 16


def test_the_drawn_list():
  needed = jnp.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]], bool)
  tiles = tile_grid.list_tiles(needed)
  assert tiles.count == 4
  assert tiles.outer[:4].tolist() == [0, 1, 1, 2]
  assert tiles.inner[:4].tolist() == [0, 0, 1, -1]


def test_more_key_blocks_than_fit_in_scalar_memory_are_refused():
  with pytest.raises(ValueError, match=r'block_len=128 cuts .* 65537 blocks'):
    tile_grid.cut_sides(128, 65_536 * 128 + 1, 128)


@pytest.mark.parametrize('block_len', [0, 64, 200])
def test_blocks_that_do_not_fill_registers_are_refused(block_len):
  where = places('any order', 'one document', 'one document')
  q, k, v, _ = inputs()
  with pytest.raises(ValueError, match=f'block_len={block_len}: .* 128'):
    tpu.forward(q, k, v, *where, block_len, interpret=True)


# What compiles for TPUs without one. It prints the bytes of HBM that each pass
# takes beside its arguments and results.
COMPILE = """
import functools, json, sys
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from longctx_jax.ops.attention import Place
from longctx_jax.ops.kernels import tpu
from longctx_jax.plan.topology import topology_devices

topology, T, H = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
devices = topology_devices(topology)
mesh = Mesh(np.array(devices), ('context',))
T *= len(devices)


def array(dtype, *shape):
  spec = PartitionSpec(*[None, 'context'][2 - len(shape[:2]) :])
  return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


q = array(jnp.bfloat16, 1, T, 32, H)
k = array(jnp.bfloat16, 1, T, 8, H)
number = array(jnp.float32, 1, T, 32)
place = Place(array(jnp.int32, 1, T), array(jnp.int32, T))
temp_bytes = {}
for name, args in {
  'forward': (q, k, k, place, place),
  'backward': (q, k, k, q, number, number, place, place),
}.items():
  step = jax.shard_map(
    functools.partial(getattr(tpu, name), block_len=512),
    mesh=mesh,
    in_specs=jax.tree.map(lambda x: x.sharding.spec, args),
    out_specs=PartitionSpec(None, 'context'),
    check_vma=False,
  )
  compiled = jax.jit(step).lower(*args).compile()
  temp_bytes[name] = compiled.memory_analysis().temp_size_in_bytes
print(json.dumps(temp_bytes))
"""


@pytest.mark.slow
@pytest.mark.parametrize('topology', ['v5e:2x2', 'v5p:2x2x1', 'v6e:2x2'])
@pytest.mark.parametrize(('shard_len', 'head_dim'), [(32_768, 128), (8192, 64)])
def test_kernels_compile_for_tpus(topology, shard_len, head_dim):
  pytest.importorskip('libtpu')
  done = subprocess.run(
    [sys.executable, '-c', COMPILE, topology, str(shard_len), str(head_dim)],
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  temp_bytes = json.loads(done.stdout.splitlines()[-1])
  # Linear in T: some copies of the arrays in the kernels' layout, not scores,
  # one head of which would be 4 * 32,768**2 bytes = 4 GiB. libtpu 0.0.42 takes
  # 3.5 copies for narrow heads on v5p, where 0.0.52 takes less than 3.
  per_pass = shard_len * 32 * max(head_dim, 128) * 4
  assert 0 < temp_bytes['forward'] < 4 * per_pass
  assert 0 < temp_bytes['backward'] < 4 * per_pass
