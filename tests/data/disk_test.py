"""Nothing is seen under its name before all of it is on the disk."""

import errno
import os
from pathlib import Path

import pytest

from longctx_jax.data.disk import full_disk
from longctx_jax.data.prepare import prepare_corpus
from longctx_jax.data.prepare_pipeline import prepare_at_scale
from tests.data.large_corpus import PREPARE, config_of, write_texts
from tests.data.stored_documents import make_documents, write


class Disk:
  """Knows which files, as they are, a power failure would not harm."""

  def __init__(self, monkeypatch):
    self.synced, self.published = {}, []
    self._replace = os.replace
    monkeypatch.setattr(os, 'fsync', self.fsync)
    monkeypatch.setattr(os, 'replace', self.replace)

  def fsync(self, descriptor):
    state = os.fstat(descriptor)
    self.synced[state.st_ino] = state.st_mtime_ns, state.st_size

  def is_safe(self, path):
    state = path.stat()
    return self.synced.get(state.st_ino) == (state.st_mtime_ns, state.st_size)

  def replace(self, source, target):
    if Path(source).is_dir() and Path(target).suffix == '':
      everything = [Path(source), *Path(source).rglob('*')]
      assert [path for path in everything if not self.is_safe(path)] == []
      self.published.append(Path(target).name)
    self._replace(source, target)
    # The name is as little on the disk as any other content.
    self.synced.pop(os.stat(Path(target).parent).st_ino, None)


@pytest.fixture
def disk(monkeypatch):
  return Disk(monkeypatch)


def test_a_store_is_on_the_disk_before_it_has_its_name(disk, tmp_path):
  write(tmp_path / 'store', make_documents([500, 5, 7]), shard_tokens=100)
  assert disk.published == ['store']
  assert disk.is_safe(tmp_path)
  # In place of the other one.
  write(tmp_path / 'store', make_documents([500, 5]), shard_tokens=100)
  assert disk.published == ['store', 'store']


def test_a_corpus_is_on_the_disk_before_it_has_its_name(disk, tmp_path):
  config = config_of(write_texts(tmp_path / 'texts'))
  prepare_at_scale(config, tmp_path / 'large', **PREPARE)
  stores = ['documents', 'heldout', 'conversations']
  assert disk.published == [*stores, 'large']
  prepare_corpus(config, tmp_path / 'small', seed=0)
  assert disk.published[4:] == [*stores, 'small']


def test_a_shard_is_on_the_disk_before_its_task_is_done(disk, tmp_path):
  config = config_of(write_texts(tmp_path / 'texts'))

  def look(step, numbers, done, progress):
    for number in numbers:
      step(number)
    shards = [*(tmp_path / 'c.partial').glob('documents.partial/*')]
    if step.args[0] == 'write':
      assert len(shards) > 10
      assert all(map(disk.is_safe, shards))

  prepare_at_scale(config, tmp_path / 'c', run=look, **PREPARE)


@pytest.mark.parametrize(
  'error',
  [
    OSError(errno.ENOSPC, 'No space left on device'),
    OSError(errno.EDQUOT, 'Disk quota exceeded'),
    OSError('UNKNOWN: write() failed: File too large; writing /a/b'),
    RuntimeError(
      'Traceback ...\nOSError: [Errno 28] No space left on device\n'
    ),
  ],
)
def test_a_full_disk_is_told_in_one_line(error):
  found = full_disk(error, 'make room for /a/c')
  assert found.errno
  assert str(found).endswith(': make room for /a/c')
  assert '\n' not in str(found)


def test_other_errors_tell_of_no_full_disk():
  for error in (OSError(errno.EACCES, 'Permission denied'), ValueError('full')):
    assert full_disk(error, '') is None
