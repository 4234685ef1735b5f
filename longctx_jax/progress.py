"""Progress of long work: a bar on a terminal, plain lines in a log file."""

import logging
import sys
import time

from tqdm import tqdm

log = logging.getLogger(__name__)

LINE_EVERY_S = 10.0  # ours: a twenty-minute run fills two screens


class Progress:
  """Counts up to `total`; use as a context manager."""

  def __init__(self, label: str, total: int, start: int = 0):
    self._label, self._total = label, total
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm(
        total=total, initial=start, desc=label, dynamic_ncols=True
      )
    self._last_line = time.monotonic()

  def update(self, done: int, values: dict[str, float] | None = None) -> None:
    """Says that `done` of the total are done, and a few figures to go with."""
    shown = {name: f'{value:.4g}' for name, value in (values or {}).items()}
    if self._bar is not None:
      self._bar.set_postfix(shown, refresh=False)
      self._bar.update(done - self._bar.n)
      return
    now = time.monotonic()
    if done == self._total or now - self._last_line >= LINE_EVERY_S:
      self._last_line = now
      text = ' '.join(f'{name}={value}' for name, value in shown.items())
      log.info('%s %d/%d %s', self._label, done, self._total, text)

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *exc_info) -> None:
    if self._bar is not None:
      self._bar.close()
