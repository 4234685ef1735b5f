"""Stages chained: what carries over, what is refused, what a kill loses."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longctx_jax.checkpoint import Checkpoints
from longctx_jax.config import ConfigError, StageConfig
from longctx_jax.config_from_dict import from_config_dict
from longctx_jax.directory_lock import directory_lock
from longctx_jax.recipe import Predecessor, run_recipe, start_state
from longctx_jax.train import train
from longctx_jax.train_step import init_state
from tests import small
from tests.train_test import assert_equal_bits, one_device


def two_stages(**second):
  first = small.stage_config(name='short', train={'steps': 2})
  long_rows = {
    'kind': 'documents',
    'weight': 1.0,
    'domains': (),
    'planner': 'interleave',
    'docs_per_row': 4,
    'num_chunks': 2,
  }
  changes = {
    'name': 'long',
    'rope': {'base': 100_000.0},
    'data': {
      'seq_len': 256,
      'document_mask': False,
      'restart_positions': False,
      'mixture': {'cip': long_rows},
    },
    'train': {'steps': 2, 'carry_over': 'weights'},
  }
  return first, small.stage_config(**{**changes, **second})


def test_a_recipe_runs_its_stages_once_and_reports_them(tmp_path):
  stages = two_stages()
  summary = run_recipe(stages, tmp_path)
  assert [stage['name'] for stage in summary['stages']] == ['short', 'long']
  for stage in summary['stages']:
    assert set(stage['needle']) == {'64', '128'}
    assert 0 < stage['val_loss'] < 10
    assert stage['tokens'] == 2 * 8 * (128 if stage['name'] == 'short' else 256)
  assert json.loads((tmp_path / 'summary.json').read_text()) == summary
  assert 'long' in (tmp_path / 'report.html').read_text()
  written = (tmp_path / 'stages/1_short/results.json').stat().st_mtime_ns
  assert run_recipe(stages, tmp_path) == summary
  again = (tmp_path / 'stages/1_short/results.json').stat().st_mtime_ns
  assert again == written


@pytest.mark.slow
def test_a_stage_trains_and_is_evaluated_on_a_corpus_of_documents(tmp_path):
  _, stage = two_stages(
    corpus={'conversations': {}}, train={'steps': 2, 'carry_over': 'none'}
  )
  (summary,) = run_recipe((stage,), tmp_path)['stages']
  assert summary['tokens'] == 2 * 8 * 256
  assert 0 < summary['val_loss'] < 10
  assert set(summary['needle']) == {'64', '128'}


@pytest.mark.parametrize(
  'carry_over',
  [pytest.param('weights', marks=pytest.mark.slow), 'weights_and_optimizer'],
)
def test_a_stage_takes_over_what_it_says(corpus, tmp_path, carry_over):
  first, second = two_stages(train={'steps': 2, 'carry_over': carry_over})
  mesh = one_device(first)
  trained = train(first, corpus, tmp_path / 'first', mesh).state
  start = start_state(
    second, corpus, mesh, Predecessor(first, tmp_path / 'first')
  )
  assert_equal_bits(start.params, trained.params)
  assert int(start.step) == 0
  fresh = init_state(second, mesh)
  adam, fresh_adam = start.opt_state[1][0], fresh.opt_state[1][0]
  if carry_over == 'weights':
    assert_equal_bits(adam.mu, fresh_adam.mu)
  else:
    assert_equal_bits(adam.mu, trained.opt_state[1][0].mu)
    assert not np.array_equal(adam.mu['embedding'], fresh_adam.mu['embedding'])
  # Either way the schedule begins again.
  assert int(start.opt_state[1][2].count) == 0
  assert int(trained.opt_state[1][2].count) == 2


@pytest.mark.parametrize(
  ('saved', 'now'), [('float32', 'bfloat16'), ('bfloat16', 'float32')]
)
def test_a_stage_takes_over_moments_in_its_own_dtype(
  corpus, tmp_path, saved, now
):
  first, second = two_stages(
    train={'steps': 2, 'carry_over': 'weights_and_optimizer'}
  )
  first, second = (
    dataclasses.replace(
      stage, optimizer=dataclasses.replace(stage.optimizer, moment_dtype=dtype)
    )
    for stage, dtype in ((first, saved), (second, now))
  )
  mesh = one_device(first)
  trained = train(first, corpus, tmp_path / 'first', mesh).state
  start = start_state(
    second, corpus, mesh, Predecessor(first, tmp_path / 'first')
  )
  before, after = trained.opt_state[1][0], start.opt_state[1][0]
  assert_equal_bits(after.nu, before.nu)
  moments = jax.tree.map(lambda x: np.asarray(x).astype(now), before.mu)
  assert_equal_bits(after.mu, moments)
  assert {x.dtype for x in jax.tree.leaves(after.mu)} == {jnp.dtype(now)}
  # What the step of the second stage is compiled for.
  assert jax.tree.map(jax.typeof, start) == jax.tree.map(
    jax.typeof, init_state(second, mesh)
  )


def test_a_stage_without_a_predecessor_takes_over_nothing(corpus, tmp_path):
  _, second = two_stages()
  with pytest.raises(ConfigError, match=r'long: .*train.init_from'):
    run_recipe((second,), tmp_path)
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_workdir_of_another_config_is_refused(tmp_path):
  first, _ = two_stages()
  run_recipe((first,), tmp_path)
  other = small.stage_config(
    name='short', train={'steps': 2}, optimizer={'peak_lr': 0.5}
  )
  with pytest.raises(ConfigError, match=r'peak_lr is 0.01 there, 0.5 here'):
    run_recipe((other,), tmp_path)


def test_a_second_run_in_a_workdir_is_refused(tmp_path):
  stage = small.stage_config()
  lock = directory_lock(tmp_path / 'run', tmp_path / 'run/lock', '--workdir')
  match = r'run is in use by another run .* another --workdir'
  with lock, pytest.raises(ConfigError, match=match):
    run_recipe((stage,), tmp_path / 'run')
  assert [*(tmp_path / 'run').iterdir()] == []


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'mesh': {'fsdp': 3}}, r'mesh .* 8 device'),
    ({'data': {'batch_size': 12}}, r'batch_size.*=12 .* 8 shards'),
  ],
)
def test_a_mesh_that_does_not_fit_leaves_nothing_behind(
  tmp_path, changes, message
):
  config = small.stage_config(**changes)
  with pytest.raises(ConfigError, match=message):
    run_recipe((config,), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def final_weights(workdir):
  """Parameters of the last checkpoint of the run."""
  stages = json.loads((workdir / 'config.json').read_text())['stages']
  config = from_config_dict(StageConfig, stages[-1])
  state = init_state(config, one_device(config))
  directory = workdir / 'stages/2_long/checkpoints'
  state, data, _ = Checkpoints(directory, keep=2).restore_latest(state)
  assert data.step == config.train.steps
  return jax.device_get(state.params)


@pytest.mark.slow
def test_kill_minus_nine_at_any_moment_loses_nothing(tmp_path):
  root = Path(__file__).parents[1]
  environment = {
    **os.environ,
    'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'cache'),
    'JAX_PLATFORMS': 'cpu',
  }

  command = [sys.executable, '-m', 'longctx_jax', 'recipe']
  command.append('--config=tests/killed_recipe.py')

  def start(workdir):
    return subprocess.Popen(
      [*command, f'--workdir={workdir}'],
      cwd=root,
      env=environment,
      start_new_session=True,
      stderr=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
    )

  began = time.monotonic()
  assert start(tmp_path / 'whole').wait() == 0
  wall_s = time.monotonic() - began
  draw = random.Random(0)
  kills = 0
  while True:
    run = start(tmp_path / 'killed')
    try:
      code = run.wait(draw.uniform(0.2, 0.6) * wall_s)
    except subprocess.TimeoutExpired:
      os.killpg(run.pid, signal.SIGKILL)
      run.wait()
      kills += 1
      continue
    assert code == 0
    break
  assert kills >= 1
  assert_equal_bits(
    final_weights(tmp_path / 'killed'), final_weights(tmp_path / 'whole')
  )
