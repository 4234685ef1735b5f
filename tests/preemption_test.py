"""SIGTERM and announced maintenance: steps are finished, then the run stops."""

import contextlib
import http.server
import os
import signal
import threading

import pytest

from longctx_jax import preemption
from longctx_jax.checkpoint import Checkpoints
from longctx_jax.metrics import read_metrics
from longctx_jax.preemption import Preempted
from longctx_jax.train import train
from longctx_jax.train_step import init_state
from tests import small
from tests.train_test import assert_equal_bits, one_device


@pytest.fixture(autouse=True)
def listening(monkeypatch):
  """As `longctx train` does, undone after the test."""
  monkeypatch.setattr(preemption, '_request', preemption._Request())
  before = signal.getsignal(signal.SIGTERM)
  with preemption.listening():
    yield
  assert signal.getsignal(signal.SIGTERM) == before


def send_sigterm():
  os.kill(os.getpid(), signal.SIGTERM)


def test_outside_of_the_loop_sigterm_ends_the_run():
  with pytest.raises(Preempted, match='stopped by SIGTERM'):
    send_sigterm()


def test_inside_of_the_loop_it_waits_for_the_step():
  with preemption.stopping_after_steps():
    assert not preemption.stops_after(1)
    send_sigterm()
    assert preemption.stops_after(2)
  with pytest.raises(Preempted, match='stopped by SIGTERM'):
    preemption.stop_if_asked()


def test_the_same_signal_twice_at_once_is_one():
  with preemption.stopping_after_steps():
    send_sigterm()
    send_sigterm()
    assert preemption.stops_after(1)


def test_a_second_sigterm_ends_the_process_at_once(monkeypatch):
  ended = []
  monkeypatch.setattr(preemption, '_SAME_S', -1.0)
  with preemption.stopping_after_steps():
    send_sigterm()
    kill = os.kill
    monkeypatch.setattr(preemption.os, 'kill', lambda *how: ended.append(how))
    kill(os.getpid(), signal.SIGTERM)
  assert ended == [(os.getpid(), signal.SIGTERM)]
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_sigterm_saves_and_the_same_call_ends_in_the_same_weights(
  corpus, tmp_path, monkeypatch
):
  config = small.stage_config(checkpoint={'every_steps': 4})
  mesh = one_device(config)
  whole = train(config, corpus, tmp_path / 'whole', mesh)
  stops_after = preemption.stops_after

  def sigterm_in_the_third_step(num_done):
    if num_done == 3:
      send_sigterm()
    return stops_after(num_done)

  with monkeypatch.context() as patch:
    patch.setattr(preemption, 'stops_after', sigterm_in_the_third_step)
    with pytest.raises(Preempted, match='small: stopped after 3 of 4 steps'):
      train(config, corpus, tmp_path / 'stopped', mesh)
  checkpoints = Checkpoints(tmp_path / 'stopped/checkpoints', keep=2)
  assert checkpoints.steps() == [3]
  _, data, clock = checkpoints.restore_latest(init_state(config, mesh))
  assert data.step == 3
  preemption._request.asked = ''
  again = train(config, corpus, tmp_path / 'stopped', mesh)
  assert_equal_bits(again.state, whole.state)
  metrics = read_metrics(tmp_path / 'stopped/metrics.jsonl')
  assert [m['step'] for m in metrics] == [0, 1, 2, 3]
  for each in metrics:
    assert each['step_s'] >= each['data_wait_s'] > 0
    assert each['tokens_per_s_per_chip'] == each['tokens_per_s']
    assert 0 <= each['goodput'] < 1
    assert each['host_peak_bytes'] > 1e8
  assert again.goodput['lost_restart_s'] > 0
  assert metrics[3]['lost_compile_s'] > metrics[2]['lost_compile_s']
  assert clock['step'] > 0


@contextlib.contextmanager
def metadata_server(answers):
  """Answers each path with the next of its answers, the last one for ever."""

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      texts = answers[self.path.rpartition('/')[2]]
      text = texts.pop(0) if len(texts) > 1 else texts[0]
      google = self.headers['Metadata-Flavor'] == 'Google'
      self.send_response(200 if google else 403)
      self.end_headers()
      self.wfile.write(text.encode())

    def log_message(self, *args):
      pass

  server = http.server.ThreadingHTTPServer(('localhost', 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    yield f'http://localhost:{server.server_port}/instance/'
  finally:
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
  ('event', 'text'),
  [
    ('maintenance-event', 'TERMINATE_ON_HOST_MAINTENANCE'),
    ('preempted', 'TRUE'),
  ],
)
def test_an_announced_end_of_the_machine_is_a_sigterm(event, text, caplog):
  answers = {'maintenance-event': ['NONE'], 'preempted': ['FALSE']}
  answers[event] = [*answers[event] * 2, text]
  with (
    preemption.stopping_after_steps(),
    metadata_server(answers) as url,
  ):
    preemption.watch_metadata(url, poll_s=0.01)
    assert preemption.stops_after(1)
  assert answers[event] == [text]
  assert f'this machine announces {event}={text}' in caplog.text
