"""A line in the log while a batch is late: what hangs says nothing."""

import logging
import multiprocessing
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar('T')

log = logging.getLogger(__name__)

# ours: a batch of the longest rows from a cold network disk takes seconds.
LATE_S = 300.0


def warn_when_late(batches: Iterable[T], late_s: float = LATE_S) -> Iterator[T]:
  """What `batches` gives, with a warning every `late_s` that one takes."""
  iterator, end = iter(batches), object()
  while True:
    came = threading.Event()
    threading.Thread(target=_watch, args=(came, late_s), daemon=True).start()
    try:
      batch = next(iterator, end)
    finally:
      came.set()
    if batch is end:
      return
    yield batch


def _watch(came, late_s):
  waited = 0.0
  while not came.wait(late_s):
    waited += late_s
    pids = [str(child.pid) for child in multiprocessing.active_children()]
    log.warning(
      'data: no batch for %.0f s: a process that reads training rows hangs, or'
      ' the disk that it reads from (processes %s). Ending one by `kill` stops'
      ' the run, and the same command goes on from its newest checkpoint',
      waited,
      ', '.join(pids) or 'unknown',
    )
