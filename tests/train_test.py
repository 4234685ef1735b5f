"""The step and the loop: accumulation, meshes, resuming, non-finite losses."""

import dataclasses
import functools
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longctx_jax import sharding
from longctx_jax import train as train_loop
from longctx_jax.checkpoint import Checkpoints
from longctx_jax.config import ConfigError
from longctx_jax.data.pipeline import BatchSource, DataState, make_pipeline
from longctx_jax.data.prepare import prepare_corpus
from longctx_jax.metrics import read_metrics
from longctx_jax.model import model_graph
from longctx_jax.ops.sequence_layout import to_layout
from longctx_jax.train import put_batch, train
from longctx_jax.train_step import (
  attention_metrics,
  init_state,
  mean_loss_and_grads,
)
from tests import small
from tests.ops.attention_inputs import row


def one_device(config):
  return sharding.make_mesh(config.mesh, jax.devices()[:1])


def first_batch(config, corpus):
  source = BatchSource(config.data, corpus, seed=0, num_steps=1)
  return next(make_pipeline(source, config.data.batch_size))


def loss_and_grads(config, batch, mesh, num_micro=1):
  parallel = sharding.context_parallel(config.mesh, mesh)
  graph = model_graph(config.model, config.rope, parallel)
  params = init_state(config, mesh).params
  batch = put_batch(batch, config, mesh)
  run = jax.jit(mean_loss_and_grads, static_argnums=(0, 3))
  loss, _, grads = run(graph, params, batch, num_micro)
  return jax.device_get((loss, grads))


def assert_close(tree, expected):
  for got, want in zip(
    jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True
  ):
    error = np.linalg.norm(got - want) / (np.linalg.norm(want) + 1e-12)
    assert error < 1e-5


def assert_equal_bits(tree, expected):
  for got, want in zip(
    jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


def test_four_micro_batches_equal_one_big_batch(corpus):
  config = small.stage_config()
  batch = first_batch(config, corpus)
  # Rows must differ in how much they train on, or a mean of means would pass.
  assert np.ptp(batch.loss_weights.sum(axis=1)) > 20
  mesh = one_device(config)
  whole = loss_and_grads(config, batch, mesh)
  assert_close(loss_and_grads(config, batch, mesh, num_micro=4), whole)


@pytest.mark.parametrize(
  'axes',
  [
    {'data': 2, 'context': 2, 'tensor': 2, 'fsdp': 1},
    *(
      pytest.param(axes, marks=pytest.mark.slow)
      for axes in (
        {'fsdp': 2, 'context': 4, 'context_kind': 'ulysses'},
        {'fsdp': 8},
        {'fsdp': 2, 'context': 4},
        {'context': 8, 'fsdp': 1, 'context_layout': 'contiguous'},
        {'fsdp': 2, 'context': 4, 'context_kind': 'allgather'},
      )
    ),
  ],
  ids=str,
)
def test_loss_and_gradients_do_not_depend_on_the_mesh(corpus, axes):
  config = small.stage_config(mesh=axes)
  batch = first_batch(config, corpus)
  expected = loss_and_grads(config, batch, one_device(small.stage_config()))
  mesh = sharding.make_mesh(config.mesh)
  assert_close(loss_and_grads(config, batch, mesh), expected)


@pytest.mark.slow
def test_training_does_not_depend_on_the_slices(corpus, tmp_path):
  found = {}
  for num_slices in (1, 2):
    config = small.stage_config(
      mesh={'data': 2, 'fsdp': 2, 'context': 2, 'slices': num_slices},
      train={'micro_batches': 2},
    )
    # Slices that lie on the devices of one: what is compiled is the same.
    mesh = sharding.make_mesh(dataclasses.replace(config.mesh, slices=1))
    directory = tmp_path / str(num_slices)
    train(config, corpus, directory, mesh)
    found[num_slices] = read_metrics(directory / 'metrics.jsonl')
  for name in ('loss', 'grad_norm', 'tokens', 'attention_tile_share'):
    one, two = ([m[name] for m in found[n]] for n in (1, 2))
    np.testing.assert_allclose(two, one, rtol=1e-5)


def test_a_batch_is_on_the_devices_before_the_step_before_is_waited_for(
  corpus, tmp_path, monkeypatch
):
  config = small.stage_config(checkpoint={'every_steps': 4})
  happened = []

  def note(name):
    run = getattr(train_loop, name)

    def noted(*args):
      happened.append(name)
      return run(*args)

    monkeypatch.setattr(train_loop, name, noted)

  put, read = 'put_batch', '_check_finite'  # which reads the metrics
  note(put)
  note(read)
  train(config, corpus, tmp_path, one_device(config))
  # The last one is read before it is saved.
  assert happened == [put, put, read, put, read, put, read, read]


def test_two_and_two_steps_equal_four_bit_for_bit(corpus, tmp_path):
  config = small.stage_config()
  mesh = one_device(config)
  whole = train(config, corpus, tmp_path / 'whole', mesh)
  # What is there when a run is killed between its steps 3 and 4.
  shutil.copytree(
    tmp_path / 'whole/checkpoints/2', tmp_path / 'killed/checkpoints/2'
  )
  resumed = train(config, corpus, tmp_path / 'killed', mesh)
  assert_equal_bits(resumed.state, whole.state)
  assert [m['step'] for m in read_metrics(tmp_path / 'killed/metrics.jsonl')]


@pytest.mark.slow
def test_metrics_count_the_work_of_attention(corpus, tmp_path, caplog):
  config = small.stage_config(mesh={'fsdp': 2, 'context': 4})
  mesh = sharding.make_mesh(config.mesh)
  with caplog.at_level(logging.INFO):
    train(config, corpus, tmp_path, mesh)
  assert sharding.describe_attention(config, mesh) in caplog.text
  assert '4 context shard(s)' in caplog.text
  source = BatchSource(config.data, corpus, seed=0, num_steps=4)
  batches = make_pipeline(source, config.data.batch_size)
  for batch, metrics in zip(
    batches, read_metrics(tmp_path / 'metrics.jsonl'), strict=True
  ):
    lengths = [
      np.bincount(ids[ids > 0])[1:] if ids.any() else [0]
      for ids in batch.segment_ids
    ]
    lengths = np.concatenate(lengths)
    assert metrics['tokens'] == lengths.sum()
    assert metrics['attended_pairs'] == (lengths * (lengths + 1) // 2).sum()
    # Rows of packed documents: some of the work is left out, not all.
    assert 0 < metrics['attention_tile_share'] < 1
    assert 0 < metrics['ring_hop_share'] <= 1
    assert metrics['device_imbalance'] >= 1
    assert metrics['model_flops_per_s'] > metrics['tokens_per_s'] > 0


def metrics_of(rows, **changes):
  config = small.stage_config(mesh={'fsdp': 2, 'context': 4}, **changes)
  parallel = sharding.context_parallel(
    config.mesh, sharding.make_mesh(config.mesh)
  )
  stored = jnp.asarray(to_layout(np.stack(rows), parallel.layout, 4))
  run = jax.jit(functools.partial(attention_metrics, config, parallel))
  return jax.tree.map(float, run(stored))


def test_counters_are_those_of_the_micro_batches_that_are_made():
  one, short = row(128, T=128), row(*[16] * 8, T=128)
  rows = [short, one, short, one]
  # Two strided ones: in the first no keys travel, in the second all do.
  split = metrics_of(rows, train={'micro_batches': 2})
  assert split['ring_hop_share'] == 0.5
  # Of 36 tiles of a triangle of 8 blocks, 8 are left of the short documents.
  assert split['attention_tile_share'] == pytest.approx(44 / 72)
  assert split['device_imbalance'] == 1
  whole = metrics_of(rows, train={'micro_batches': 1})
  assert whole['ring_hop_share'] == 1
  assert whole['attention_tile_share'] == split['attention_tile_share']
  assert whole['attended_pairs'] == split['attended_pairs']


def test_dense_attention_reports_no_tiles_and_no_hops():
  rows = [row(128, T=128), row(100, 28, T=128)]
  metrics = metrics_of(rows, model={'attention': 'dense'})
  pairs = (128 * 129 + 100 * 101 + 28 * 29) / 2
  assert metrics == {'attended_pairs': pairs}


def test_resuming_redoes_the_metrics_of_lost_steps_once(corpus, tmp_path):
  config = small.stage_config()
  mesh = one_device(config)
  train(config, corpus, tmp_path, mesh)
  shutil.rmtree(tmp_path / 'checkpoints/4')
  before = read_metrics(tmp_path / 'metrics.jsonl')
  train(config, corpus, tmp_path, mesh)
  after = read_metrics(tmp_path / 'metrics.jsonl')
  assert [m['step'] for m in after] == [0, 1, 2, 3]
  assert [m['loss'] for m in after] == [m['loss'] for m in before]


@pytest.mark.slow
def test_training_lowers_the_loss(corpus, tmp_path):
  config = small.stage_config(train={'steps': 30})
  train(config, corpus, tmp_path, one_device(config))
  losses = [m['loss'] for m in read_metrics(tmp_path / 'metrics.jsonl')]
  assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 1


def test_a_non_finite_loss_stops_the_run_and_saves_nothing_of_it(
  corpus, tmp_path
):
  config = small.stage_config(
    optimizer={'peak_lr': 1e30, 'clip_norm': 1e9, 'warmup_steps': 0},
    checkpoint={'every_steps': 1},
  )
  mesh = one_device(config)
  with pytest.raises(FloatingPointError) as failure:
    train(config, corpus, tmp_path, mesh)
  message = str(failure.value)
  assert 'small: ' in message
  assert 'at step ' in message
  assert 'rows ' in message
  checkpoints = Checkpoints(tmp_path / 'checkpoints', keep=2)
  state, data, _ = checkpoints.restore_latest(init_state(config, mesh))
  bad_step = int(message.split('at step ')[1].split(',')[0])
  assert message.endswith(f'longctx inspect --step={bad_step}')
  assert data.step <= bad_step
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_a_changed_corpus_is_refused(corpus, tmp_path):
  config = small.stage_config()
  mesh = one_device(config)
  train(config, corpus, tmp_path / 'run', mesh)
  other = small.corpus_config(heldout_frac=0.4)
  changed = prepare_corpus(other, tmp_path / 'corpus', seed=0)
  changed = changed._replace(tokenizer=corpus.tokenizer)
  with pytest.raises(ConfigError, match='the corpus changed since step 4'):
    train(config, changed, tmp_path / 'run', mesh)


@pytest.mark.parametrize(
  ('saved', 'now'), [('float32', 'bfloat16'), ('bfloat16', 'float32')]
)
def test_moments_of_another_dtype_are_refused_and_kept(
  corpus, tmp_path, saved, now
):
  before = small.stage_config(optimizer={'moment_dtype': saved})
  mesh = one_device(before)
  checkpoints = Checkpoints(tmp_path / 'checkpoints', keep=2)
  checkpoints.save(
    init_state(before, mesh),
    DataState(2, before.seed, 'any'),
    config_json='{}',
    tokenizer_fingerprint=corpus.tokenizer.fingerprint,
    clock={},
  )
  checkpoints.close()
  changed = small.stage_config(optimizer={'moment_dtype': now})
  match = rf'small: optimizer.moment_dtype .*mu.* is {saved} there, {now} here'
  with pytest.raises(ConfigError, match=f'{match}.*: set it back'):
    train(changed, corpus, tmp_path, mesh)
  assert [*(tmp_path / 'checkpoints').iterdir()] == [tmp_path / 'checkpoints/2']


def test_sizes_that_do_not_fit_the_mesh_are_refused(corpus, tmp_path):
  config = small.stage_config(data={'batch_size': 12}, mesh={'fsdp': 8})
  mesh = sharding.make_mesh(config.mesh)
  with pytest.raises(ConfigError, match=r'batch_size.*=12 .* 8 shards'):
    train(config, corpus, tmp_path, mesh)
  assert not list(tmp_path.iterdir())


def test_the_seed_decides_the_initial_weights(corpus):
  config = small.stage_config()
  mesh = one_device(config)
  again = init_state(config, mesh)
  assert_equal_bits(again, init_state(config, mesh))
  other = init_state(dataclasses.replace(config, seed=1), mesh)
  assert not np.array_equal(
    other.params['embedding'], again.params['embedding']
  )
