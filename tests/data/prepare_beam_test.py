"""Apache Beam runs the same tasks to the same bytes, and errors come back."""

import os
import subprocess
import sys

import pytest

from longctx_jax.config import ConfigError
from longctx_jax.data.prepare_beam import beam_runner
from longctx_jax.data.prepare_pipeline import prepare_at_scale
from longctx_jax.progress import Progress
from tests.architecture_test import ROOT
from tests.data.large_corpus import (
  PREPARE,
  config_of,
  config_of_drops,
  files_of,
  write_drops,
  write_texts,
)


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  return write_texts(tmp_path_factory.mktemp('texts'))


def test_without_beam_one_line_names_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, 'apache_beam', None)
  with pytest.raises(
    ConfigError, match=r'pip install "longctx_jax\[beam\]", or leave'
  ):
    beam_runner('DirectRunner')


@pytest.mark.parametrize('option', ['', '=4', '--a=4', 'a='])
def test_a_malformed_option_is_shown(option):
  pytest.importorskip('apache_beam')
  with pytest.raises(ConfigError, match=f'--runner_option={option}: give a'):
    beam_runner('DirectRunner', [option])


@pytest.mark.parametrize(
  ('runner', 'option', 'says'),
  [
    ('NoSuchRunner', 'job_name=a', r'^--runner=NoSuchRunner: .*DirectRunner'),
    ('here.NoSuchRunner', 'job_name=a', r"^--runner=here\..*named 'here'"),
    (
      'DirectRunner',
      'direct_num_workers=many',
      r"^--runner_option: argument --direct_num_workers: .*'many'$",
    ),
    ('DirectRunner', 'num_worker=2', '^--runner_option=num_worker: DirectR'),
  ],
)
def test_what_beam_does_not_know_is_refused_before_anything_is_read(
  runner, option, says, capfd
):
  pytest.importorskip('apache_beam')
  with pytest.raises(ConfigError, match=says) as error:
    beam_runner(runner, [option])
  assert '\n' not in str(error.value)
  assert capfd.readouterr().err == ''


def test_options_of_job_servers_are_let_through():
  pytest.importorskip('apache_beam')
  beam_runner('FlinkRunner', ['flink_version=1.20', 'of_job_server=4'])


@pytest.mark.slow
@pytest.mark.parametrize(
  'options',
  [('direct_num_workers=2',), ('direct_running_mode=in_memory',)],
  ids=str,
)
def test_the_bytes_are_those_of_a_plain_loop(tmp_path, options):
  pytest.importorskip('apache_beam')
  # Manifests among them, with what became of every document.
  config = config_of_drops(write_drops(tmp_path / 'texts'))
  prepare_at_scale(config, tmp_path / 'loop', **PREPARE)
  run = beam_runner('DirectRunner', options)
  prepare_at_scale(config, tmp_path / 'beam', run=run, **PREPARE)
  assert files_of(tmp_path / 'beam') == files_of(tmp_path / 'loop')


@pytest.mark.slow
def test_an_error_in_a_worker_is_the_one_of_the_plain_loop(texts, tmp_path):
  pytest.importorskip('apache_beam')
  source = {'kind': 'jsonl', 'max_chars': 10**6, 'on_problem': 'stop'}
  source['path'] = str(texts / 'records.jsonl')
  config = config_of(texts, sources={'records': source})
  errors = []
  for run in ({}, {'run': beam_runner('DirectRunner')}):
    with pytest.raises(ConfigError) as raised:
      prepare_at_scale(config, tmp_path / 'c', **run, **PREPARE)
    errors.append(str(raised.value))
  assert errors[0] == errors[1]
  assert '\n' not in errors[1]


@pytest.mark.slow
@pytest.mark.parametrize(
  ('num_workers', 'given', 'expected'), [(1, '', 4), (3, '', 1), (1, '2', 2)]
)
def test_workers_share_the_cores(
  tmp_path, monkeypatch, num_workers, given, expected
):
  pytest.importorskip('apache_beam')
  monkeypatch.setattr(os, 'cpu_count', lambda: 4)
  monkeypatch.setenv('RAYON_NUM_THREADS', given)

  def step(number):
    found = os.environ['RAYON_NUM_THREADS']
    (tmp_path / str(number)).write_text(found)

  run = beam_runner('DirectRunner', [f'direct_num_workers={num_workers}'])
  run(step, range(3), lambda: 0, Progress('corpus', 3))
  found = {int(path.read_text()) for path in tmp_path.iterdir()}
  assert found == {expected}


KILLED = """
import os, signal, sys, time
from longctx_jax.data.prepare_beam import beam_runner
from longctx_jax.progress import Progress

def step(number):
  try:
    os.close(os.open('FILE', os.O_CREAT | os.O_EXCL))
  except FileExistsError:
    7 ** 10**8  # minutes, and no thread beside it runs, as with tokenizers
  time.sleep(2)
  os.kill(os.getpid(), signal.SIGKILL)

run = beam_runner('DirectRunner', ['direct_num_workers=2'])
try:
  run(step, range(20), lambda: 0, Progress('corpus', 20))
except ChildProcessError as error:
  print(error)
"""


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_the_run_in_one_line(tmp_path):
  pytest.importorskip('apache_beam')
  done = subprocess.run(
    [sys.executable, '-c', KILLED.replace('FILE', f'{tmp_path}/first')],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=60,
    check=True,
  )
  assert done.stdout == (
    'a process of DirectRunner was killed (exit code 137), likely for want of'
    ' memory: lower --runner_option=direct_num_workers=N. The same command goes'
    ' on\n'
  )
  assert 'Traceback' not in done.stderr
