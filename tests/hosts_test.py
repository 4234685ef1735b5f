"""Several JAX processes: a run as of one, and a clear end if one is gone."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from longctx_jax import hosts, sharding
from longctx_jax.checkpoint import Checkpoints
from longctx_jax.config import ConfigError, StageConfig, from_config_dict
from longctx_jax.data.prepare import prepare_corpus
from longctx_jax.evals.runner import evaluate
from longctx_jax.metrics import read_metrics
from longctx_jax.train import train
from longctx_jax.train_step import init_state
from tests import hosts_run, small
from tests.train_test import assert_equal_bits

ROOT = Path(__file__).parents[1]


def free_port():
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return free.getsockname()[1]


class Ended(NamedTuple):
  code: int
  text: str  # standard error


@contextlib.contextmanager
def processes(commands, cache, environment=({}, {})):
  """The running commands, each with two devices; killed in the end."""
  started = [
    subprocess.Popen(
      [sys.executable, *command],
      cwd=ROOT,
      env={
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'JAX_NUM_CPU_DEVICES': '2',
        'JAX_COMPILATION_CACHE_DIR': str(cache),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
        **extra,
      },
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )
    for command, extra in zip(commands, environment, strict=True)
  ]
  try:
    yield started
  finally:
    for process in started:
      process.kill()
      process.wait()


def ended(process):
  _, text = process.communicate(timeout=300)
  return Ended(process.returncode, text)


def run_of_two(workdir, *flags):
  """Commands of both processes of a training run in `workdir`."""
  together = f'--coordinator=localhost:{free_port()}', '--num_processes=2'
  return [
    [
      *('-m', 'tests.disturbed_host', 'train', f'--workdir={workdir}'),
      *('--config=tests/hosts_run.py', *together, f'--process_id={index}'),
      *flags,
    ]
    for index in range(2)
  ]


def stage_of(workdir):
  return workdir / 'stages/1_small'


def losses(directory):
  return [m['loss'] for m in read_metrics(directory / 'metrics.jsonl')]


def weights(directory, step):
  """Of a checkpoint, restored by this one process."""
  config = hosts_run.stage()
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:4])
  checkpoints = Checkpoints(directory / 'checkpoints', keep=9)
  assert max(checkpoints.steps()) == step
  state, data, _ = checkpoints.restore_latest(init_state(config, mesh))
  assert data.step == step
  return jax.device_get(state.params)


def run_both(commands, cache, environment=({}, {})):
  with processes(commands, cache, environment) as started:
    return [ended(process) for process in started]


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  """Compiled programs, shared by all processes."""
  return tmp_path_factory.mktemp('compiled')


@pytest.fixture(scope='module')
def alone(corpus, tmp_path_factory):
  """(directory, results) of the stage, trained by one process."""
  config = from_config_dict(StageConfig, hosts_run.get_config())
  directory = tmp_path_factory.mktemp('alone')
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:4])
  trained = train(config, corpus, directory, mesh)
  return directory, evaluate(config, trained.state.params, corpus, mesh)


def begin_at_step_2(workdir, alone):
  """What is there when one process was killed after its first checkpoint."""
  shutil.copytree(
    alone[0] / 'checkpoints/2', stage_of(workdir) / 'checkpoints/2'
  )
  shutil.copy(alone[0] / 'metrics.jsonl', stage_of(workdir))


@pytest.fixture(scope='module')
def together(alone, cache, tmp_path_factory):
  """Workdir of two processes that went on from a checkpoint of one."""
  workdir = tmp_path_factory.mktemp('together')
  begin_at_step_2(workdir, alone)
  both = run_both(run_of_two(workdir), cache)
  for process in both:
    assert process.code == 0, process.text
  assert 'small: going on from step 2' in both[0].text
  return workdir


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one_does(alone, together):
  directory, evals = alone
  np.testing.assert_allclose(
    losses(stage_of(together)), losses(directory), rtol=1e-5
  )
  results = json.loads((stage_of(together) / 'results.json').read_text())
  assert results['evals']['val_loss'] == pytest.approx(evals['val_loss'], 1e-5)
  assert results['evals']['needle'] == evals['needle']
  # Written by one, whole: a line a step, and a page.
  steps = [
    m['step'] for m in read_metrics(stage_of(together) / 'metrics.jsonl')
  ]
  assert steps == [*range(6)]
  assert (together / 'report.html').exists()
  events = (stage_of(together) / 'tensorboard').glob('events.*')
  assert len(list(events)) == 1
  for ours, theirs in zip(
    jax.tree.leaves(weights(stage_of(together), 6)),
    jax.tree.leaves(weights(directory, 6)),
    strict=True,
  ):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.slow
def test_sigterm_to_one_of_two_saves_and_resumes_exactly(
  alone, together, cache, tmp_path
):
  begin_at_step_2(tmp_path, alone)
  flag = f'--config.corpus.prepared={together / "corpus"}'
  disturbed = [{}, {'DISTURB': 'term:2'}]
  for process in run_both(run_of_two(tmp_path, flag), cache, disturbed):
    assert process.code == hosts.RESTART_CODE, process.text
    assert 'small: stopped after 5 of 6 steps, which are saved' in process.text
  assert [*(stage_of(tmp_path) / 'checkpoints').glob('[0-9]')] != []
  # One process reads what two have written: to within rounding, the weights
  # between those of steps 4 and 6.
  assert np.isfinite(weights(stage_of(tmp_path), 5)['embedding']).all()
  both = run_both(run_of_two(tmp_path, flag), cache)
  for process in both:
    assert process.code == 0, process.text
  assert 'small: going on from step 5' in both[0].text
  assert losses(stage_of(tmp_path)) == losses(stage_of(together))
  assert_equal_bits(
    weights(stage_of(tmp_path), 6), weights(stage_of(together), 6)
  )


@pytest.mark.slow
def test_who_lags_is_named_and_a_killed_process_ends_the_other(
  together, cache, tmp_path
):
  flags = '--hang_s=3', f'--config.corpus.prepared={together / "corpus"}'
  commands = run_of_two(tmp_path, *flags)
  with processes(commands, cache, [{}, {'DISTURB': 'sleep:1'}]) as started:
    first, second = started
    said = []
    for line in first.stderr:
      said.append(line)
      if 'reading data' in line:
        break
    assert 'no step has ended for ' in said[-1], said
    assert '1 of 2 processes wait for process 1 on ' in said[-1]
    assert '(reading data, step 1)' in said[-1]
    second.kill()
    began = time.monotonic()
    process = ended(first)
    assert time.monotonic() - began < 60
  assert process.code == hosts.RESTART_CODE
  last = process.text.splitlines()[-1]
  assert 'process 0: lost process 1 on ' in last
  assert 'reading data, step 1' in last
  assert 'goes on from the newest checkpoint' in last
  assert 'Traceback' not in process.text


JOIN = """
import sys, time
from longctx_jax import __main__, hosts
from longctx_jax.config import ConfigError, StageConfig, from_config_dict
def join(argv):
  hosts.start(hosts.Start(argv[0], 2, int(argv[1]), int(argv[2])))
  print('joined', file=sys.stderr, flush=True)
  if argv[3:]:
    raise ConfigError(argv[3])
  time.sleep(100)
__main__.VERBS['join'] = join
__main__.main()
"""


def joining(*fails, timeout_s=120):
  """Commands of processes that find each other, and then fail or wait."""
  address = f'localhost:{free_port()}'
  return [
    ['-c', JOIN, 'join', address, str(index), str(timeout_s), *failure]
    for index, failure in enumerate(fails)
  ]


def read_until(process, text):
  for line in process.stderr:
    if text in line:
      return
  raise AssertionError(f'{text} was never said')


@pytest.mark.slow
def test_the_others_end_when_the_process_that_coordinates_is_killed(cache):
  with processes(joining([], []), cache) as (first, second):
    read_until(second, 'joined')
    first.kill()
    process = ended(second)
  assert process.code == hosts.RESTART_CODE
  last = process.text.splitlines()[-1]
  assert last.startswith('longctx: process 1: lost process 0 at localhost:')
  assert 'goes on from the newest checkpoint' in last


@pytest.mark.slow
@pytest.mark.parametrize('bad', [0, 1])
def test_a_process_that_fails_tells_the_others_why(cache, bad):
  fails = [[], []]
  fails[bad] = ['corpus.bos is wrong']
  with processes(joining(*fails), cache) as started:
    both = [ended(process) for process in started]
  assert [process.code for process in both] == [1, 1]
  assert both[bad].text.count('longctx: ') == 1
  line = both[bad].text.splitlines()[-1]
  assert line == 'longctx: corpus.bos is wrong'
  line = both[1 - bad].text.splitlines()[-1]
  assert f'process {1 - bad}: process {bad} on ' in line
  assert line.endswith(' ended: corpus.bos is wrong')


def test_a_coordinator_that_cannot_be_reached_is_one_line(tmp_path, cache):
  command = run_of_two(tmp_path, '--start_timeout_s=1')[1]
  with processes([command], cache, [{}]) as (second,):
    process = ended(second)
  assert process.code == hosts.RESTART_CODE
  (line,) = process.text.splitlines()
  assert line.startswith('longctx: cannot reach process 0 at localhost:')
  assert 'in 1 s' in line
  assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
def test_a_run_without_its_other_process_says_so(cache):
  with processes(joining([], timeout_s=2), cache, [{}]) as (first,):
    process = ended(first)
  assert process.code == hosts.RESTART_CODE
  last = process.text.splitlines()[-1]
  assert 'process 0 of 2: the run did not start in 2 s' in last


@pytest.mark.parametrize(
  ('start', 'message'),
  [
    (hosts.Start('localhost:1'), 'together, or none of them'),
    (
      hosts.Start('localhost', 2, 1),
      '--coordinator=localhost is not HOST:PORT',
    ),
    (hosts.Start('localhost:1', 2, 2), '--process_id=2 is none of the'),
  ],
)
def test_flags_that_say_too_little_are_refused(start, message):
  with pytest.raises(ConfigError, match=message):
    hosts.start(start)


@pytest.mark.slow
def test_two_hosts_put_their_rows_together_to_the_batch_of_one(tmp_path):
  prepare_corpus(small.corpus_config(), tmp_path / 'corpus', seed=0)
  port = free_port()
  commands = [
    ['-m', 'tests.hosts_batches', str(i), '2', str(port), tmp_path / 'corpus']
    for i in range(2)
  ]
  for process in run_both(commands, tmp_path / 'cache'):
    assert process.code == 0, process.text
