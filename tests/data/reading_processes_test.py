"""Rows read by processes: the same batches, and what a kill leaves."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from longctx_jax.data.pipeline import BatchSource, make_pipeline
from tests import small

STEPS = 12


@pytest.fixture(autouse=True)
def parsed_flags():
  """Grain reads a flag of its own; `__main__` marks them as parsed."""
  flags.FLAGS.mark_as_parsed()


def source_of(corpus):
  config = small.stage_config().data
  return BatchSource(config, corpus, seed=0, num_steps=STEPS)


def test_processes_read_the_batches_of_threads_until_one_is_killed(corpus):
  source = source_of(corpus)
  by_threads = list(make_pipeline(source, 8, start_step=1, host=(1, 2)))
  by_processes = make_pipeline(
    source, 8, start_step=1, host=(1, 2), num_workers=2
  )
  for _, expected in zip(range(3), by_threads, strict=False):
    for field, wanted in zip(next(by_processes), expected, strict=True):
      assert np.array_equal(field, wanted)
  reading = multiprocessing.active_children()
  assert len(reading) == 2
  os.kill(reading[0].pid, signal.SIGKILL)
  began = time.monotonic()
  with pytest.raises(ChildProcessError, match=r'killed.*data.num_workers'):
    list(by_processes)
  assert time.monotonic() - began < 10
  assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_processes_read_a_run_to_its_end_and_end_with_it(corpus):
  source = source_of(corpus)
  batches = list(make_pipeline(source, 8, num_workers=3))
  expected = list(make_pipeline(source, 8))
  assert len(batches) == STEPS
  for batch, fields in zip(batches, expected, strict=True):
    assert all(map(np.array_equal, batch, fields))
  assert multiprocessing.active_children() == []


KILLED = """
import multiprocessing, os, signal
from absl import flags
from longctx_jax.data.pipeline import BatchSource, make_pipeline
from longctx_jax.data.prepare import prepare_corpus
from pathlib import Path
from tests import small

if __name__ == '__main__':
  flags.FLAGS.mark_as_parsed()
  config = small.corpus_config()
  corpus = prepare_corpus(config, Path(__file__).with_name('corpus'), seed=0)
  data = small.stage_config().data
  source = BatchSource(data, corpus, seed=0, num_steps=1000)
  batches = make_pipeline(source, 8, num_workers=2)
  next(batches)
  pids = [str(child.pid) for child in multiprocessing.active_children()]
  Path(__file__).with_name('pids').write_text(' '.join(pids))
  os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_processes_that_read_end_when_training_is_killed(tmp_path):
  script = tmp_path / 'killed.py'
  script.write_text(KILLED)
  root = Path(__file__).parents[2]
  subprocess.run(
    [sys.executable, script],
    env={**os.environ, 'PYTHONPATH': str(root)},
    # What outlives the script would hold a pipe open.
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    timeout=60,
    check=False,
  )
  pids = [int(pid) for pid in (tmp_path / 'pids').read_text().split()]
  assert len(pids) == 2
  deadline = time.monotonic() + 10
  while any(map(_is_running, pids)) and time.monotonic() < deadline:
    time.sleep(0.1)
  left = [pid for pid in pids if _is_running(pid)]
  for pid in left:
    os.kill(pid, signal.SIGKILL)
  assert left == []


def _is_running(pid):
  try:
    state = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
  except FileNotFoundError:
    return False
  return state != 'Z'
