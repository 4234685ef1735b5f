"""A batch that is late is told of while the run waits, and others are not."""

import threading

import pytest

from longctx_jax.data.late_batches import warn_when_late


class Log:
  """Lets the second batch come when two lines have been logged."""

  def __init__(self):
    self.lines, self.told = [], threading.Event()

  def warning(self, text, *values):
    self.lines.append(text % values)
    if len(self.lines) == 2:
      self.told.set()

  def batches(self):
    yield 'first'
    assert self.told.wait(10)
    yield 'second'


def test_a_late_batch_is_told_of_again_and_again(monkeypatch):
  log = Log()
  monkeypatch.setattr('longctx_jax.data.late_batches.log', log)
  assert list(warn_when_late(log.batches(), 0.01)) == ['first', 'second']
  assert log.lines[0].startswith('data: no batch for 0 s: a process that reads')


def test_batches_in_time_and_errors_pass_without_a_word(caplog):
  def batches():
    yield from range(3)
    raise KeyError('gone')

  found, before = [], set(threading.enumerate())
  with pytest.raises(KeyError, match='gone'):
    found.extend(warn_when_late(batches()))
  assert found == [0, 1, 2]
  assert caplog.messages == []
  for thread in set(threading.enumerate()) - before:
    thread.join(10)
  assert set(threading.enumerate()) <= before
