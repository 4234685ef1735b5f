"""One run at a time: others are refused, and a dead one is in nobody's way."""

import errno
import fcntl
import subprocess
import sys

import pytest

from longctx_jax.config import ConfigError
from longctx_jax.directory_lock import directory_lock
from tests.architecture_test import ROOT

HOLD = """
import pathlib, sys
from longctx_jax.directory_lock import directory_lock
with directory_lock(pathlib.Path('there'), pathlib.Path(sys.argv[1]), '--out'):
  print('held', flush=True)
  sys.stdin.read()
"""


@pytest.fixture
def file(tmp_path):
  return tmp_path / 'runs' / 'corpus.lock'


def lock(file):
  return directory_lock(file.with_suffix(''), file, '--out')


def test_another_process_is_refused_until_this_one_is_dead(file):
  process = subprocess.Popen(
    [sys.executable, '-c', HOLD, str(file)],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  with process:
    assert process.stdout.readline() == 'held\n'
    says = rf'corpus is in use by .*process {process.pid} on .* another --out'
    with pytest.raises(ConfigError, match=says) as raised, lock(file):
      pass
    assert '\n' not in str(raised.value)
    process.kill()
  assert file.exists()
  with lock(file):
    pass
  assert not file.exists()


def test_a_run_that_fails_lets_go(file):
  with pytest.raises(KeyError), lock(file):
    raise KeyError
  with lock(file), pytest.raises(ConfigError, match='in use'), lock(file):
    pass


def test_a_lock_on_a_file_that_was_removed_is_no_lock(file, monkeypatch):
  flock, calls = fcntl.flock, []

  def remove_then_lock(descriptor, operation):
    # As by a run that ends when this one has opened its file.
    if not calls:
      file.unlink()
    calls.append(operation)
    flock(descriptor, operation)

  monkeypatch.setattr(fcntl, 'flock', remove_then_lock)
  with lock(file), pytest.raises(ConfigError, match='in use'), lock(file):
    pass
  assert len(calls) == 3


def test_where_there_are_no_locks_a_warning_says_so(file, monkeypatch, caplog):
  def flock(descriptor, operation):
    raise OSError(errno.EOPNOTSUPP, 'Operation not supported')

  monkeypatch.setattr(fcntl, 'flock', flock)
  with lock(file):
    pass
  (message,) = caplog.messages
  assert 'corpus cannot be locked (Operation not supported)' in message
