"""Which process of a run is gone, has failed, or lags: a thread in each.

Every process writes a beat into the key-value store of jax.distributed.
Process 0 reads them all and gives a verdict, which the others read: a star,
because all reading all would be 250,000 reads every two seconds for 500 hosts.
Silence is counted in its own looks, not in seconds: a process that was stopped
for a minute itself, as virtual machines are, has no right to call another one
lost. JAX's own heartbeat does not say what a process was doing.
"""

import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

log = logging.getLogger(__name__)

# EX_TEMPFAIL of sysexits.h, "try again later": launchers start the command
# again, which goes on from the newest checkpoint.
RESTART_CODE = 75
BEAT_S = 2.0  # ours: 250 reads a second at process 0 for 500 hosts
# ours: 15 beats. Compiling lets other threads run.
LOST_S = 30.0
# ours: where another process saw a broken connection, it is known that
# something is wrong, and 4 missing beats are enough.
LOST_WHEN_BROKEN_S = 8.0
# A process that ends because of a verdict lets the others read it first.
_LINGER_S = 2.5 * BEAT_S
# What a process does while it trains; all else may take its time.
TRAINING = ('reading data', 'in the step', 'writing a checkpoint')


class Store(Protocol):
  """What is used of jax.distributed's client."""

  def key_value_set(
    self, key: str, value: str, allow_overwrite: bool = False
  ) -> None:
    """Sets a value."""

  def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
    """All keys and values below a key."""

  def key_value_try_get(self, key: str) -> str:
    """A value, or RuntimeError."""


class Beat(NamedTuple):
  """What a process last said of itself."""

  host: str
  number: int  # counts up while the process lives
  doing: str
  step: int
  broken: bool = False  # a collective failed: here, or for want of another
  failed: str = ''  # why the process ends
  code: int = 0


class Verdict(NamedTuple):
  """Why all processes end."""

  line: str
  code: int


def _exit(line: str, code: int) -> None:
  if line:
    print(f'longctx: {line}', file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  # Not sys.exit: JAX would wait minutes for the others to shut down with it.
  os._exit(code)


class Watch:
  """The thread of one process; process 0 judges all."""

  def __init__(
    self,
    store: Store,
    index: int,
    count: int,
    *,
    hang_s: float,
    end: Callable[[str, int], Any] = _exit,
    now: Callable[[], float] = time.monotonic,
  ):
    self._store, self._index = store, index
    self._hang_s, self._end, self._now = hang_s, end, now
    self._beat = Beat(socket.gethostname(), 0, 'starting', 0)
    self._beats: dict[int, Beat] = {}
    self._silent = dict.fromkeys(range(count), 0)  # looks without a new beat
    self._unanswered = 0  # looks without the store
    self._progressed, self._lowest = now(), -1
    self._stopped = threading.Event()

  def start(self) -> None:
    """Beats and looks every `BEAT_S`, in a thread."""
    threading.Thread(target=self._run, daemon=True).start()

  def stop(self) -> None:
    """Ends the thread: the run is over."""
    self._stopped.set()

  def tell(self, doing: str, step: int | None = None) -> None:
    """What the process does from now on; the step stays if none is given."""
    step = self._beat.step if step is None else step
    self._beat = self._beat._replace(doing=doing, step=step)

  def wait_for_verdict(self) -> None:
    """After an error in a collective: ends by the verdict, if there is one."""
    self._beat = self._beat._replace(broken=True)
    # Process 0 lingers before it ends, so that all others have read why.
    self._stopped.wait(LOST_WHEN_BROKEN_S + 3 * BEAT_S + _LINGER_S)

  def leave(self, line: str, code: int) -> None:
    """Ends this process after its failure, and thereby the others."""
    self._beat = self._beat._replace(failed=line, code=code)
    # The thread ends the process as soon as process 0 has seen it.
    self._stopped.wait(LOST_S)
    self._end('', code)

  def _run(self) -> None:
    while not self._stopped.wait(BEAT_S):
      self.look()

  def look(self) -> None:
    """One beat, and one look at the others."""
    try:
      verdict = self._exchange()
      self._unanswered = 0
    except RuntimeError as error:  # of the store, which is in process 0
      self._unanswered += 1
      silent_s = self._unanswered * BEAT_S
      if silent_s < LOST_S or self._stopped.is_set():
        return
      reason = str(error).partition('\n')[0]
      verdict = Verdict(
        f'lost process 0: no answer for {silent_s:.0f} s ({reason}).'
        f' {_GOES_ON}',
        RESTART_CODE,
      )
    if verdict:
      if self._index == 0:
        self._stopped.wait(_LINGER_S)
      # One that failed has said so itself.
      line = f'process {self._index}: {verdict.line}'
      line = '' if self._beat.failed else line
      self._end(line, verdict.code)

  def _exchange(self) -> Verdict | None:
    self._beat = self._beat._replace(number=self._beat.number + 1)
    self._store.key_value_set(
      f'longctx/beat/{self._index}',
      json.dumps(self._beat),
      allow_overwrite=True,
    )
    if self._index:
      with contextlib.suppress(RuntimeError):  # there is none
        found = self._store.key_value_try_get('longctx/verdict')
        return Verdict(*json.loads(found))
      return None
    self._read_beats()
    verdict = self._judge()
    if verdict:
      self._store.key_value_set('longctx/verdict', json.dumps(verdict))
    else:
      self._say_who_lags()
    return verdict

  def _read_beats(self) -> None:
    for process in self._silent:
      self._silent[process] += 1
    for key, value in self._store.key_value_dir_get('longctx/beat'):
      process, beat = int(key.rpartition('/')[2]), Beat(*json.loads(value))
      if self._beats.get(process) != beat:
        self._beats[process], self._silent[process] = beat, 0

  def _judge(self) -> Verdict | None:
    limit_s = LOST_S
    if any(beat.broken for beat in self._beats.values()):
      limit_s = LOST_WHEN_BROKEN_S
    for process, looks in self._silent.items():
      beat = self._beats.get(process)
      name, was = f'process {process}', ''
      if beat:
        name += f' on {beat.host}'
        was = f', {beat.doing}, step {beat.step}'
        if beat.failed:
          return Verdict(f'{name} ended: {beat.failed}', beat.code)
      if looks * BEAT_S >= limit_s:
        return Verdict(
          f'lost {name}: no sign of it for {looks * BEAT_S:.0f} s{was}.'
          f' {_GOES_ON}',
          RESTART_CODE,
        )
    return None

  def _say_who_lags(self) -> None:
    beats = self._beats
    lowest = min(beat.step for beat in beats.values())
    training = any(beat.doing in TRAINING for beat in beats.values())
    if lowest != self._lowest or not training:
      self._lowest, self._progressed = lowest, self._now()
      return
    waited = self._now() - self._progressed
    if waited < self._hang_s:
      return
    self._progressed = self._now()  # and again after as long
    log.warning('no step has ended for %.0f s: %s', waited, who_lags(beats))


_GOES_ON = (
  'It was killed, or its host is gone; its own log says more. The same command'
  ' goes on from the newest checkpoint'
)


def who_lags(beats: dict[int, Beat]) -> str:
  """Which processes the others wait for, and what those do.

  The ones at the lowest step; of these, the ones that are not in a collective.
  """
  lowest = min(beat.step for beat in beats.values())
  behind = {p: beat for p, beat in beats.items() if beat.step == lowest}
  elsewhere = {p: b for p, b in behind.items() if b.doing != 'in the step'}
  if not elsewhere and len(behind) == len(beats):
    return (
      f'all {len(beats)} processes are in step {lowest}: it is slow, or their'
      ' devices hang'
    )
  named = [
    f'process {process} on {beat.host} ({beat.doing}, step {beat.step})'
    for process, beat in sorted((elsewhere or behind).items())
  ]
  shown = ', '.join(named[:8]) + (' ...' if len(named) > 8 else '')
  rest = len(beats) - len(named)
  return f'{rest} of {len(beats)} processes wait for {shown}'
