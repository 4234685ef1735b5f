"""A profile of a few steps, for TensorBoard and xprof."""

import logging
from pathlib import Path

import jax

log = logging.getLogger(__name__)


class ProfileWindow:
  """Profiles the steps [first, stop); use as a context manager.

  Written to plugins/profile/ in `directory`, where TensorBoard looks for it.
  """

  def __init__(self, steps: tuple[int, int] | None, directory: Path):
    """`steps` None profiles nothing."""
    self._steps, self._directory = steps, directory
    self._running = False

  def begin(self, step: int) -> None:
    """To be called before a step is dispatched."""
    if self._steps and not self._running and step in range(*self._steps):
      jax.profiler.start_trace(str(self._directory))
      self._running = True

  def end(self, step: int, result: jax.Array) -> None:
    """To be called when `result` of a step is on its way."""
    if self._running and step + 1 == self._steps[1]:
      result.block_until_ready()
      self._stop()

  def _stop(self):
    jax.profiler.stop_trace()
    self._running = False
    log.info('profile of steps %d to %d: %s', *self._steps, self._directory)

  def __enter__(self) -> 'ProfileWindow':
    return self

  def __exit__(self, *exc_info) -> None:
    if self._running:  # the run ends inside the window
      self._stop()
