"""Every way to save memory, alone and together: the same loss and gradients."""

import jax
import numpy as np
import pytest

from longctx_jax import sharding
from longctx_jax.batch import Batch
from longctx_jax.model import model_graph
from longctx_jax.train import put_batch
from longctx_jax.train_step import mean_loss_and_grads
from tests import small
from tests.random_params import graph_and_params

T, ROWS = 32, 8
MODEL = {
  'vocab_size': 64,
  'num_layers': 2,
  'hidden_dim': 48,
  'attention_block_len': 5,
  'loss_chunk_len': 24,
}
# Changes to the model, changes to the mesh, micro-batches.
OPTIONS = {
  'context': ({}, {'fsdp': 2, 'context': 4}, 1),
  'split over three axes': ({}, {'fsdp': 2, 'context': 2, 'tensor': 2}, 1),
  'remat dots': ({'remat': 'dots'}, {}, 1),
  'remat attention': ({'remat': 'attention'}, {}, 1),
  'remat full': ({'remat': 'full'}, {}, 1),
  'remat offload': ({'remat': 'offload'}, {}, 1),
  'mlp in chunks': ({'mlp_chunk_len': 7}, {}, 1),
  'mlp in chunks of features': ({'mlp_chunk_width': 8}, {'context': 2}, 1),
  'loss over fsdp': ({}, {'vocab_axes': ('fsdp', 'context')}, 1),
  'micro-batches': ({}, {'fsdp': 4, 'context': 2}, 2),
  'together': (
    {'remat': 'offload', 'mlp_chunk_len': 7, 'mlp_chunk_width': 8},
    {
      'data': 2,
      'fsdp': 1,
      'context': 2,
      'tensor': 2,
      'vocab_axes': ('fsdp', 'context'),
    },
    2,
  ),
}


def packed_batch():
  """Rows of up to three documents and of padding, unlike one another."""
  rng = np.random.default_rng(0)
  cuts = np.sort(rng.integers(1, T, (ROWS, 3)), axis=1)
  at = np.arange(T)[None]
  segment = 1 + (at >= cuts[:, :1]) + (at >= cuts[:, 1:2])
  segment_ids = np.where(at < cuts[:, 2:], segment, 0).astype(np.int32)
  starts = np.where(segment == 2, cuts[:, :1], cuts[:, 1:2])
  return Batch(
    tokens=rng.integers(0, 64, (ROWS, T), np.int32),
    targets=rng.integers(0, 64, (ROWS, T), np.int32),
    loss_weights=(segment_ids > 0).astype(np.float32),
    segment_ids=segment_ids,
    positions=np.where(segment == 1, at, at - starts).astype(np.int32),
  )


def loss_and_grads(model, mesh, num_micro, devices=None, apart=False):
  config = small.stage_config(
    model={**MODEL, **model},
    corpus={**small.CORPUS, 'vocab_size': 64},
    mesh=mesh,
  )
  mesh = sharding.make_mesh(config.mesh, devices)
  parallel = sharding.context_parallel(config.mesh, mesh)
  parallel = parallel._replace(apart=apart)
  graph = model_graph(config.model, config.rope, parallel)
  params = graph_and_params(config.model, config.rope)[1]
  where = sharding.param_shardings(params, mesh)
  batch = put_batch(packed_batch(), config, mesh)
  run = jax.jit(
    lambda params, batch: mean_loss_and_grads(
      graph, params, batch, num_micro, mesh if apart else None
    )
  )
  return jax.device_get(run(jax.device_put(params, where), batch))


@pytest.fixture(scope='module')
def plain():
  return loss_and_grads({}, {}, 1, jax.devices()[:1])


@pytest.mark.parametrize(
  'option',
  [
    option
    if option == 'together'
    else pytest.param(option, marks=pytest.mark.slow)
    for option in OPTIONS
  ],
)
def test_saving_memory_changes_neither_loss_nor_gradients(option, plain):
  got = loss_and_grads(*OPTIONS[option])
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(plain), strict=True):
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


@pytest.mark.parametrize(
  ('model', 'mesh'),
  [
    pytest.param(
      {}, {'data': 2, 'fsdp': 2, 'tensor': 2}, marks=pytest.mark.slow
    ),
    (
      {'mlp_chunk_len': 7, 'mlp_chunk_width': 8, 'remat': 'full'},
      {'data': 2, 'fsdp': 1, 'context': 2, 'tensor': 2},
    ),
    pytest.param(
      {'remat': 'offload'},
      {'data': 2, 'fsdp': 2, 'context': 2, 'vocab_axes': ('fsdp', 'context')},
      marks=pytest.mark.slow,
    ),
  ],
)
def test_parts_that_add_up_their_own_first_change_neither(model, mesh, plain):
  got = loss_and_grads(model, mesh, 2, apart=True)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(plain), strict=True):
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)
