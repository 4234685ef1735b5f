"""A profile of the steps that were asked for, where TensorBoard finds it."""

import jax
import jax.numpy as jnp
import pytest

from longctx_jax.profile_window import ProfileWindow


@pytest.fixture
def calls(monkeypatch):
  made = []
  monkeypatch.setattr(jax.profiler, 'start_trace', made.append)
  monkeypatch.setattr(
    jax.profiler, 'stop_trace', lambda: made.append('stopped')
  )
  return made


def run_steps(window, steps, calls):
  with window:
    for step in steps:
      window.begin(step)
      calls.append(step)
      window.end(step, jnp.zeros(()))


@pytest.mark.parametrize(
  ('steps', 'expected'),
  [
    (range(6), [0, 1, 'there', 2, 3, 'stopped', 4, 5]),
    # A run that goes on inside the window, and one that ends there.
    (range(3, 6), ['there', 3, 'stopped', 4, 5]),
    (range(3), [0, 1, 'there', 2, 'stopped']),
    (range(4, 6), [4, 5]),
  ],
)
def test_the_steps_of_the_window_are_profiled(calls, tmp_path, steps, expected):
  run_steps(ProfileWindow((2, 4), tmp_path / 'there'), steps, calls)
  named = [str(tmp_path / 'there') if c == 'there' else c for c in expected]
  assert calls == named


def test_without_a_window_nothing_is_profiled(calls, tmp_path):
  run_steps(ProfileWindow(None, tmp_path), range(3), calls)
  assert calls == [0, 1, 2]


def test_the_profile_is_where_tensorboard_looks(tmp_path):
  with ProfileWindow((0, 1), tmp_path) as window:
    window.begin(0)
    window.end(0, jax.jit(jnp.sum)(jnp.ones((8, 8))))
  assert [*tmp_path.glob('plugins/profile/*/*.xplane.pb')] != []
