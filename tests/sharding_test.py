"""Meshes, rules for every parameter, and equality with one device."""

import dataclasses
import functools
import itertools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from longctx_jax.batch import Batch
from longctx_jax.config import ConfigError, MeshConfig, RopeConfig
from longctx_jax.loss import loss_sum_and_weight
from longctx_jax.model import model_graph
from longctx_jax.ops.context_parallel import ContextParallel
from longctx_jax.ops.kernels import cpp_library
from longctx_jax.optimizer import make_optimizer
from longctx_jax.sharding import (
  PARAM_SPECS,
  batch_sharding,
  check_divisible,
  context_parallel,
  describe_attention,
  host_block,
  leaf_name,
  make_mesh,
  param_shardings,
)
from tests import small
from tests.jaxprs import primitives
from tests.ops.cuda_lowering import pretend_cudnn
from tests.random_params import graph_and_params

B, T = 8, 8
CONFIG = dataclasses.replace(
  small.stage_config().model,
  vocab_size=32,
  attention_block_len=5,
  loss_chunk_len=20,
  qkv_bias=True,
)
ROPE = RopeConfig(10_000.0)
MESHES = {
  'fsdp=8': MeshConfig(fsdp=8),
  'tensor=2 x fsdp=4': MeshConfig(fsdp=4, tensor=2),
  'data=2 x context=4': MeshConfig(
    data=2, fsdp=1, context=4, context_layout='contiguous'
  ),
}


@functools.cache
def small_model():
  return graph_and_params(CONFIG, ROPE)


def batch():
  """Rows of several documents and of padding."""
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, T + 1, size=B)
  used = np.arange(T)[None] < lengths[:, None]
  return Batch(
    tokens=rng.integers(0, 32, (B, T), np.int32),
    targets=rng.integers(0, 32, (B, T), np.int32),
    loss_weights=used.astype(np.float32),
    segment_ids=np.where(used, 1 + (np.arange(T) >= 3), 0).astype(np.int32),
    positions=np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)),
  )


def loss_and_grads(config, devices=None):
  mesh = make_mesh(config, devices)
  params = small_model()[1]
  graph = model_graph(CONFIG, ROPE, context_parallel(config, mesh))
  params = jax.device_put(params, param_shardings(params, mesh))

  @jax.jit
  def run(params, batch):
    return jax.value_and_grad(
      lambda p: loss_sum_and_weight(nnx.merge(graph, p), batch)[0]
    )(params)

  placed = jax.device_put(batch(), batch_sharding(mesh))
  return jax.device_get(run(params, placed))


@functools.cache
def on_one_device():
  return loss_and_grads(MeshConfig(), jax.devices()[:1])


@pytest.mark.slow
@pytest.mark.parametrize('mesh', MESHES)
def test_sharded_loss_and_gradients_equal_one_device(mesh):
  got = loss_and_grads(MESHES[mesh])
  for a, b in zip(
    jax.tree.leaves(got), jax.tree.leaves(on_one_device()), strict=True
  ):
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


@pytest.mark.parametrize(
  ('axes', 'trades'), [(('context',), True), (('fsdp',), False), ((), False)]
)
def test_the_loss_splits_the_vocabulary_as_the_config_says(axes, trades):
  """Only the loss turns rows of a kernel into columns, by all-to-all."""
  config = MESHES['data=2 x context=4']
  config = dataclasses.replace(config, vocab_axes=axes)
  parallel = context_parallel(config, make_mesh(config))
  graph, (_, params) = model_graph(CONFIG, ROPE, parallel), small_model()
  jaxpr = jax.make_jaxpr(
    lambda p, batch: loss_sum_and_weight(nnx.merge(graph, p), batch)[0]
  )(params, jax.tree.map(jnp.asarray, batch()))
  assert bool(primitives(jaxpr)['all_to_all']) == trades


def test_every_matrix_has_a_rule_that_splits_it_over_all_axes_but_data():
  _, params = small_model()
  mesh = make_mesh(MeshConfig(fsdp=2, context=2, tensor=2))
  shardings = param_shardings(params, mesh)
  names = set()
  for (path, leaf), sharding in zip(
    jax.tree_util.tree_leaves_with_path(params),
    jax.tree.leaves(shardings),
    strict=True,
  ):
    name = leaf_name(path)
    names.add(name)
    if name == 'scale':
      assert sharding.is_fully_replicated
      continue
    assert len(sharding.spec) == leaf.ndim, name
    # A bias [N, H] is split as its outputs are, and has no D to split.
    wide = not name.endswith('_bias')
    axes = {'tensor', *(('fsdp', 'context') if wide else ())}
    split_by = [a if isinstance(a, tuple) else (a,) for a in sharding.spec]
    assert axes <= set(itertools.chain(*split_by)), name
    split = sharding.shard_shape(leaf.shape)
    shards = math.prod(mesh.shape[axis] for axis in axes)
    assert math.prod(split) * shards == leaf.size, name
  # Nor is there a rule for a parameter that no model has.
  assert names == {*PARAM_SPECS, 'scale'}


@pytest.mark.parametrize('name', ['adamw', 'muon'])
def test_optimizer_moments_lie_where_their_parameters_lie(name):
  _, params = small_model()
  mesh = make_mesh(MeshConfig(fsdp=2, context=2, tensor=2))
  config = dataclasses.replace(small.stage_config().optimizer, name=name)
  state = jax.eval_shape(make_optimizer(config, 4).init, params)
  specs = {
    leaf_name(path): (leaf.shape, sharding.spec)
    for (path, leaf), sharding in zip(
      jax.tree_util.tree_leaves_with_path(params),
      jax.tree.leaves(param_shardings(params, mesh)),
      strict=True,
    )
  }
  moments = dict.fromkeys(specs, 0)
  for (path, leaf), sharding in zip(
    jax.tree_util.tree_leaves_with_path(state),
    jax.tree.leaves(param_shardings(state, mesh)),
    strict=True,
  ):
    if leaf_name(path) not in specs:  # counters and Muon's coefficients
      assert leaf.ndim <= 1
      assert sharding.is_fully_replicated
    elif leaf_name(path) != 'scale':
      assert (leaf.shape, sharding.spec) == specs[leaf_name(path)]
      moments[leaf_name(path)] += 1
  del moments['scale']
  assert min(moments.values()) >= 1


def test_a_batch_is_split_over_rows_and_positions():
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, context=2))
  sharding = batch_sharding(mesh)
  assert sharding.spec == P(('data', 'fsdp'), 'context')
  x = np.arange(B * T).reshape(B, T)
  placed = jax.device_put(jnp.asarray(x), sharding)
  assert {s.data.shape for s in placed.addressable_shards} == {(2, 4)}
  np.testing.assert_array_equal(placed, x)


@pytest.mark.parametrize(
  ('config', 'shape'),
  [
    (MeshConfig(), (1, 8, 1, 1)),
    (MeshConfig(fsdp=2, context=-1), (1, 2, 4, 1)),
    (MeshConfig(data=2, fsdp=2, context=2, tensor=-1), (2, 2, 2, 1)),
    (MeshConfig(data=2, fsdp=1, context=2, tensor=2), (2, 1, 2, 2)),
  ],
)
def test_an_axis_of_minus_one_takes_the_devices_that_are_left(config, shape):
  mesh = make_mesh(config)
  assert mesh.axis_names == ('data', 'fsdp', 'context', 'tensor')
  assert mesh.devices.shape == shape
  assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize(
  ('config', 'says'),
  [
    (MeshConfig(data=-1), 'only one axis may be -1, got data, fsdp'),
    (MeshConfig(context=3), "'context': 3.* does not fit the 8 device"),
    (MeshConfig(fsdp=4), "'fsdp': 4.* does not fit the 8 device"),
    (MeshConfig(fsdp=16), "'fsdp': 16.* does not fit the 8 device"),
    (MeshConfig(data=0), "'data': 0.* does not fit"),
    (MeshConfig(data=-2, fsdp=-1), "'data': -2.* does not fit"),
  ],
)
def test_a_mesh_that_does_not_fit_is_refused_with_its_numbers(config, says):
  with pytest.raises(ConfigError, match=says) as error:
    make_mesh(config)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('mesh', 'changes', 'says'),
  [
    (
      MeshConfig(fsdp=1, context=8),
      {'data': {'seq_len': 132}},
      r'data.seq_len=132 .* 8 shards of mesh axis context',
    ),
    (
      MeshConfig(data=2, fsdp=4),
      {'data': {'batch_size': 12}},
      r'batch_size / train.micro_batches=12 .* 8 shards .* data x fsdp',
    ),
    (
      MeshConfig(data=2, fsdp=4),
      {'train': {'micro_batches': 2}},
      r'batch_size / train.micro_batches=4 .* 8 shards .* data x fsdp',
    ),
    (
      MeshConfig(fsdp=8),
      {'model': {'embed_dim': 36}},
      r'model.embed_dim=36 .* 8 shards of mesh axis fsdp x context',
    ),
    (
      MeshConfig(fsdp=2, context=4),
      {'model': {'embed_dim': 36}},
      r'model.embed_dim=36 .* 8 shards of mesh axis fsdp x context',
    ),
    (
      MeshConfig(fsdp=2, tensor=4),
      {'model': {'hidden_dim': 66}},
      r'model.hidden_dim=66 .* 4 shards of mesh axis tensor',
    ),
    (
      MeshConfig(fsdp=2, tensor=4),
      {'model': {'mlp_chunk_width': 32, 'num_kv_heads': 4}},
      r'hidden_dim / model.mlp_chunk_width=2 .* 4 shards of mesh axis tensor',
    ),
    (
      MeshConfig(fsdp=2, tensor=4),
      {'model': {'num_heads': 6}},
      r'model.num_heads=6 .* 4 shards of mesh axis tensor',
    ),
    (
      MeshConfig(fsdp=2, tensor=4),
      {},
      r'model.num_kv_heads=2 .* 4 shards of mesh axis tensor',
    ),
    (
      MeshConfig(fsdp=4, tensor=2),
      {'model': {'vocab_size': 767}, 'corpus': {'vocab_size': 767}},
      r'model.vocab_size=767 .* 2 shards of mesh axis tensor',
    ),
    (
      MeshConfig(fsdp=1, context=8),
      {'data': {'seq_len': 136}},
      r"136 tokens .* 16 chunks of layout 'zigzag' on 8 context shards",
    ),
    (
      MeshConfig(fsdp=1, context=8),
      {'mesh': {'context_kind': 'ulysses'}},
      r'the 4 heads of a device do not divide over 8 context shards',
    ),
    (
      MeshConfig(),
      {'model': {'attention_kernel': 'pallas'}},
      r"attention_kernel='pallas' runs on TPUs, not on 'cpu'",
    ),
    (
      MeshConfig(),
      {'model': {'attention_kernel': 'cudnn'}},
      r"attention_kernel='cudnn' runs on GPUs, not on 'cpu'",
    ),
  ],
)
def test_a_size_that_does_not_divide_is_named_with_its_axis(
  mesh, changes, says
):
  with pytest.raises(ConfigError, match=says) as error:
    check_divisible(small.stage_config(**changes), make_mesh(mesh))
  assert '\n' not in str(error.value)


def test_sizes_that_divide_pass():
  config = small.stage_config()
  for mesh in (MeshConfig(), MeshConfig(fsdp=2, context=2, tensor=2)):
    check_divisible(config, make_mesh(mesh))


def test_the_log_says_which_kernel_attends_and_why(monkeypatch):
  config = small.stage_config(model={'compute_dtype': 'bfloat16'})
  rows, shards = (
    make_mesh(mesh) for mesh in (MeshConfig(), MeshConfig(fsdp=4, context=2))
  )
  for problem, says in (
    ('', "'cpp' (it is for 'cpu') in blocks of 64"),
    ('finds none', "'xla' ('cpp' finds none) in blocks of 32"),
  ):
    monkeypatch.setattr(
      cpp_library, 'why_unavailable', lambda problem=problem: problem
    )
    assert describe_attention(config, shards) == (
      f'attention by kernel {says}, 2 context shard(s)'
    )
  pretend_cudnn(monkeypatch)
  monkeypatch.setattr(ContextParallel, 'platform', 'gpu')
  monkeypatch.setattr(ContextParallel, 'compute_capability', (8, 0))
  assert describe_attention(config, rows) == (
    "attention by kernel 'cudnn' (it is for 'gpu'), or 'xla' on a device while"
    ' a row there holds several documents, in blocks of 32, 1 context shard(s)'
  )
  assert "kernel 'xla' ('cudnn' needs whole rows" in describe_attention(
    config, shards
  )


def mesh_of_hosts(owners, data, fsdp, context):
  """What `host_block` reads of a mesh: its shape, and whose the devices are."""
  devices = np.empty(len(owners), object)
  devices[:] = [types.SimpleNamespace(process_index=p) for p in owners]
  shape = {'data': data, 'fsdp': fsdp, 'context': context, 'tensor': 1}
  return types.SimpleNamespace(
    devices=devices.reshape(*shape.values()), shape=shape
  )


@pytest.mark.parametrize(
  ('axes', 'blocks'),
  [
    ((4, 1, 2), [(0, 4), (1, 4), (2, 4), (3, 4)]),
    ((2, 4, 1), [(0, 4), (1, 4), (2, 4), (3, 4)]),
    ((1, 2, 4), [(0, 2), (0, 2), (1, 2), (1, 2)]),
    ((1, 1, 8), [(0, 1)] * 4),
  ],
)
def test_a_host_reads_the_rows_that_its_devices_hold(axes, blocks):
  owners = [0, 0, 1, 1, 2, 2, 3, 3]
  mesh = mesh_of_hosts(owners, *axes)
  assert [host_block(mesh, p) for p in range(4)] == blocks


def test_one_process_reads_all_rows():
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, context=2))
  assert host_block(mesh) == (0, 1)


@pytest.mark.parametrize(
  ('owners', 'process', 'rows'),
  [([0, 1, 0, 1], 0, r'\[0, 2\] of 4'), ([0, 1, 1, 2], 1, r'\[1, 2\] of 4')],
)
def test_devices_of_a_process_that_are_no_block_are_refused(
  owners, process, rows
):
  mesh = mesh_of_hosts(owners, 4, 1, 1)
  with pytest.raises(ConfigError, match=rf'process {process} .* {rows}'):
    host_block(mesh, process)
