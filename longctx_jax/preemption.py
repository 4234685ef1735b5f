"""Stopping in time: SIGTERM and maintenance events save, and end with a code.

Slurm, Kubernetes and Google's virtual machines send SIGTERM some tens of
seconds before they kill. Spot machines and planned maintenance are also
announced by the metadata server, earlier. While a stage trains, the step that
runs is finished and saved; at any other time there is nothing to save.
"""

import contextlib
import logging
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from longctx_jax import hosts

log = logging.getLogger(__name__)

# https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice
# and .../instances/spot: NONE and FALSE while nothing is planned.
METADATA = 'http://metadata.google.internal/computeMetadata/v1/instance/'
_EVENTS = {'maintenance-event': 'NONE', 'preempted': 'FALSE'}
# ours: Slurm signals a script and what it runs, and the script passes it on.
_SAME_S = 3.0
_POLL_S = 5.0  # ours: a spot machine has 30 s
# https://cloud.google.com/compute/docs/instances/detect-compute-engine
_PRODUCT_NAME = Path('/sys/class/dmi/id/product_name')


class Preempted(BaseException):
  """The run was asked to stop, and has saved what there was to save."""


class _Request:
  """Whether this process was asked to stop, and whether a loop will see it."""

  asked = ''
  asked_at = 0.0
  in_loop = False


_request = _Request()


@contextlib.contextmanager
def listening() -> Iterator[None]:
  """Turns SIGTERM and announced maintenance into a stop with a checkpoint.

  Another SIGTERM, `_SAME_S` later, ends the process at once.
  """
  before = signal.signal(signal.SIGTERM, _on_signal)
  with contextlib.suppress(OSError):
    if _PRODUCT_NAME.read_text().startswith('Google'):
      threading.Thread(target=watch_metadata, daemon=True).start()
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def _on_signal(number, frame):
  del frame
  if _request.asked:
    if time.monotonic() - _request.asked_at > _SAME_S:
      signal.signal(number, signal.SIG_DFL)
      os.kill(os.getpid(), number)
    return
  _request.asked_at = time.monotonic()
  _request.asked = signal.Signals(number).name
  if not _request.in_loop:
    raise Preempted(f'stopped by {_request.asked}')


def watch_metadata(url: str = METADATA, poll_s: float = _POLL_S) -> None:
  """Sends this process SIGTERM when its machine is about to go away."""
  pause = threading.Event()
  while not pause.wait(poll_s):
    for name, usual in _EVENTS.items():
      request = urllib.request.Request(
        url + name, headers={'Metadata-Flavor': 'Google'}
      )
      try:
        with urllib.request.urlopen(request, timeout=poll_s) as response:
          event = response.read().decode().strip()
      except OSError:  # the server is away for a moment; SIGTERM comes anyway
        continue
      if event != usual:
        log.warning('this machine announces %s=%s: stopping', name, event)
        os.kill(os.getpid(), signal.SIGTERM)
        return


@contextlib.contextmanager
def stopping_after_steps() -> Iterator[None]:
  """While it lasts, a request to stop waits for `stops_after`."""
  _request.in_loop = True
  try:
    yield
  finally:
    _request.in_loop = False


def stop_if_asked() -> None:
  """Raises Preempted if this process was asked to stop and no step saw it."""
  if _request.asked:
    raise Preempted(f'stopped by {_request.asked}')


def stops_after(num_done: int) -> bool:
  """Whether all processes stop when `num_done` steps are done.

  To be asked when the last of these steps is on its way to the devices, by all
  processes for each step. If one of them was asked to stop, all stop after the
  same step:

      asked here, which dispatched step 7     stops_after(8): says 10
      a process that is ahead                 stops_after(9): has not seen it
      the same one, a step later              stops_after(10): True

  No process is further ahead: before it dispatches a step it reads the metrics
  of the step before last, and those need the work of all.
  """
  return hosts.agree_on_stop(bool(_request.asked), num_done)
