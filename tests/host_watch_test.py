"""Who is gone, who failed, who lags: the watch on a store of this process."""

import logging

import pytest

from longctx_jax import host_watch
from longctx_jax.host_watch import BEAT_S, LOST_S, RESTART_CODE, Watch


class Store:
  """What jax.distributed's client does, without the network."""

  def __init__(self):
    self.values = {}
    self.gone = False

  def key_value_set(self, key, value, allow_overwrite=False):
    self._answer()
    assert allow_overwrite or key not in self.values
    self.values[key] = value

  def key_value_dir_get(self, key):
    self._answer()
    return [(k, v) for k, v in self.values.items() if k.startswith(f'{key}/')]

  def key_value_try_get(self, key):
    self._answer()
    if key not in self.values:
      raise RuntimeError('NOT_FOUND')
    return self.values[key]

  def _answer(self):
    if self.gone:
      raise RuntimeError('UNAVAILABLE: Socket closed\nand much more')


class Run:
  """Watches of three processes that look in turn, one beat after the other."""

  def __init__(self, monkeypatch, hang_s=600.0):
    monkeypatch.setattr(host_watch, '_LINGER_S', 0)
    self.store, self.ended, self.seconds = Store(), {}, 0.0
    self.watches = [
      Watch(
        self.store,
        index,
        3,
        hang_s=hang_s,
        end=lambda *how, index=index: self.ended.setdefault(index, how),
        now=lambda: self.seconds,
      )
      for index in range(3)
    ]

  def look(self, beats, processes=(0, 1, 2)):
    for _ in range(beats):
      self.seconds += BEAT_S
      for index in processes:
        if index not in self.ended:
          self.watches[index].look()


@pytest.fixture
def run(monkeypatch):
  return Run(monkeypatch)


LOST = int(LOST_S / BEAT_S)


def test_processes_that_beat_are_left_alone(run):
  run.look(3 * LOST)
  assert run.ended == {}


def test_a_process_that_is_gone_ends_the_others_with_a_line(run):
  run.watches[2].tell('in the step', 7)
  run.look(2)
  run.look(LOST - 1, processes=(0, 1))
  assert run.ended == {}
  run.look(2, processes=(0, 1))
  for index in (0, 1):
    line, code = run.ended[index]
    assert code == RESTART_CODE
    assert line.startswith(f'process {index}: lost process 2 on ')
    assert 'for 30 s, in the step, step 7' in line


def test_a_process_that_never_came_is_lost_too(run):
  run.look(LOST + 1, processes=(0, 1))
  assert 'lost process 2: no sign of it' in run.ended[1][0]


def test_a_broken_connection_makes_it_quicker(run):
  run.look(1)
  run.watches[1]._beat = run.watches[1]._beat._replace(broken=True)
  run.look(5, processes=(0, 1))
  assert 'lost process 2' in run.ended[0][0]


def test_who_was_stopped_itself_calls_nobody_lost(run):
  run.look(1)
  run.seconds += 10 * LOST_S  # as a virtual machine that was moved
  run.look(LOST - 1)
  assert run.ended == {}


def test_a_failure_is_told_to_all_and_said_once_where_it_was(run):
  run.look(1)
  failed = run.watches[1]
  failed._beat = failed._beat._replace(failed='no such file: a', code=1)
  run.look(2)
  assert run.ended[1] == ('', 1)
  for index in (0, 2):
    line, code = run.ended[index]
    assert code == 1
    assert line.startswith(f'process {index}: process 1 on ')
    assert line.endswith(' ended: no such file: a')


def test_a_coordinator_that_does_not_answer_is_lost(run):
  run.look(1)
  run.store.gone = True
  run.look(LOST - 1, processes=(1, 2))
  assert run.ended == {}
  run.look(1, processes=(1, 2))
  line, code = run.ended[1]
  assert code == RESTART_CODE
  assert 'lost process 0: no answer for 30 s (UNAVAILABLE: Socket clo' in line
  assert '\n' not in line


def test_a_coordinator_that_answers_again_is_not_lost(run):
  run.look(1)
  for _ in range(3):
    run.store.gone = True
    run.look(LOST - 1, processes=(1, 2))
    run.store.gone = False
    run.look(1)
  assert run.ended == {}


def said(caplog):
  return [m for m in caplog.messages if 'no step has ended' in m]


def test_who_lags_is_said_once_every_while(monkeypatch, caplog):
  run = Run(monkeypatch, hang_s=10.0)
  for step in range(4):
    for watch in run.watches:
      watch.tell('in the step', step)
    run.look(4)
  run.watches[1].tell('reading data', 4)
  for index in (0, 2):
    run.watches[index].tell('in the step', 4)
  with caplog.at_level(logging.WARNING):
    run.look(5)
    assert said(caplog) == []
    run.look(5)
  (line,) = said(caplog)
  assert '2 of 3 processes wait for process 1 on ' in line
  assert line.endswith('(reading data, step 4)')


def test_the_lowest_step_lags_whatever_it_does(monkeypatch, caplog):
  run = Run(monkeypatch, hang_s=10.0)
  for index, step in ((0, 5), (1, 5), (2, 4)):
    run.watches[index].tell('in the step', step)
  with caplog.at_level(logging.WARNING):
    run.look(8)
  assert '2 of 3 processes wait for process 2 on ' in said(caplog)[0]


def test_what_is_no_training_may_take_its_time(monkeypatch, caplog):
  run = Run(monkeypatch, hang_s=10.0)
  for watch in run.watches:
    watch.tell('evaluating')
  with caplog.at_level(logging.WARNING):
    run.look(100)
  assert said(caplog) == []
