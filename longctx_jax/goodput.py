"""Where the wall time of a stage goes, over all its interruptions.

At every moment a stage is in one of `KINDS`, so the seconds of all kinds add up
to the time since it was first started. Goodput is the share of the steps: what
is left after start-up, compiling, waiting for data, checkpoints, and restarts,
which is the time between the checkpoint that a run goes on from and its start:
the steps that were lost, and the machines that were waited for.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

KINDS = ('step', 'start_up', 'compile', 'data_wait', 'checkpoint', 'restart')
# Time that a stage without interruptions would have spent training too.
_TRAINING = ('step', 'compile', 'data_wait', 'checkpoint')


class Goodput:
  """The clock of one stage; `enter` says what it does from now on."""

  def __init__(
    self,
    started_unix: float,
    saved: Mapping[str, float],
    now: Callable[[], float] = time.time,
  ):
    """Starts in `start_up`.

    Args:
      started_unix: when this process began with the stage.
      saved: what `saved` gave at the step from which the stage goes on, or
        `never_saved`.
      now: seconds since 1970: clocks that stand still while a machine does
        cannot tell how long that was.
    """
    self._now = now
    self._kind, self._since = 'start_up', started_unix
    self.seconds = {kind: saved[kind] for kind in KINDS}
    self.seconds['restart'] += max(started_unix - saved['unix'], 0.0)

  def enter(self, kind: str) -> None:
    """The time from now on is of this kind."""
    now = self._now()
    # A clock that was set back takes nothing away.
    self.seconds[self._kind] += max(now - self._since, 0.0)
    self._kind, self._since = kind, now

  def training_s(self) -> float:
    """Seconds of training, start-up and interruptions left out."""
    self.enter(self._kind)
    return sum(self.seconds[kind] for kind in _TRAINING)

  def saved(self) -> dict[str, float]:
    """What a checkpoint keeps."""
    self.enter(self._kind)
    return {**self.seconds, 'unix': self._since}

  def metrics(self) -> dict[str, float]:
    """Seconds lost by kind since the stage was first started, and goodput."""
    self.enter(self._kind)
    lost = {f'lost_{k}_s': s for k, s in self.seconds.items() if k != 'step'}
    total = sum(self.seconds.values())
    return {**lost, 'goodput': self.seconds['step'] / max(total, 1e-9)}


def never_saved(path: Path, started_unix: float, *, write: bool) -> dict:
  """What `Goodput.saved` would have given when the stage was first started.

  Its time is kept in the file `path`: a run that is killed before its first
  checkpoint has lost all of its time since then.
  """
  if path.exists():
    started_unix = json.loads(path.read_text())['unix']
  elif write:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({'unix': started_unix}))
  return {**dict.fromkeys(KINDS, 0.0), 'unix': started_unix}
