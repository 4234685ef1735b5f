"""Where the time goes: all of it is somewhere, through kills and restarts."""

import pytest

from longctx_jax.goodput import KINDS, Goodput, never_saved
from longctx_jax.memory_peak import peak_memory


class Clock:
  def __init__(self, now):
    self.now = now

  def __call__(self):
    return self.now


def spend(goodput, clock, **seconds):
  for kind, each in seconds.items():
    goodput.enter(kind)
    clock.now += each


def test_every_second_is_counted_once_over_a_kill(tmp_path):
  path, clock = tmp_path / 'stage/started.json', Clock(1005.0)
  first = Goodput(1000.0, never_saved(path, 1000.0, write=True), clock)
  spend(first, clock, compile=10, data_wait=1, step=20, checkpoint=2)
  saved = first.saved()
  # Steps that are done and lost; a kill; a wait for machines.
  spend(first, clock, step=7)
  clock.now += 100
  again = Goodput(clock.now, saved, clock)
  clock.now += 4
  spend(again, clock, compile=3, step=30)
  metrics = again.metrics()
  assert metrics == {
    'lost_start_up_s': 5 + 4,
    'lost_compile_s': 10 + 3,
    'lost_data_wait_s': 1,
    'lost_checkpoint_s': 2,
    'lost_restart_s': 7 + 100,
    'goodput': pytest.approx(50 / (clock.now - 1000)),
  }
  assert again.training_s() == 10 + 1 + 20 + 2 + 3 + 30


def test_what_was_never_saved_is_lost(tmp_path):
  path, clock = tmp_path / 'started.json', Clock(1000.0)
  first = Goodput(1000.0, never_saved(path, 1000.0, write=True), clock)
  spend(first, clock, step=50)
  again = Goodput(1060.0, never_saved(path, 1060.0, write=True), Clock(1060.0))
  assert again.metrics() == {
    **dict.fromkeys(again.metrics(), 0),
    'lost_restart_s': 60,
  }


def test_only_who_may_write_does(tmp_path):
  never_saved(tmp_path / 'started.json', 5.0, write=False)
  assert [*tmp_path.iterdir()] == []


def test_a_clock_that_is_set_back_takes_nothing_away():
  clock = Clock(1000.0)
  goodput = Goodput(1000.0, never_saved_at(1000.0), clock)
  spend(goodput, clock, step=10, data_wait=-500, checkpoint=5)
  goodput.enter('step')
  metrics = goodput.metrics()
  assert metrics['lost_data_wait_s'] == 0
  assert metrics['goodput'] == pytest.approx(10 / 15)


def never_saved_at(unix):
  return {**dict.fromkeys(KINDS, 0.0), 'unix': unix}


def test_the_most_memory_is_that_of_the_host_where_devices_do_not_say():
  (before,) = [*peak_memory().items()]
  assert before[0] == 'host_peak_bytes'
  block = bytearray(int(before[1]))  # more than there ever was
  block[::4096] = b'x' * len(block[::4096])
  assert peak_memory()['host_peak_bytes'] > 1.5 * before[1]
