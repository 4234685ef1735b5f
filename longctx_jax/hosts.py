"""Several processes, one run: how they start, and what they agree on.

Process 0 decides and writes: it makes the corpus, the reports and the metrics,
and what it finds on disk is told to the others, whose view of a network disk
may be older. All of that goes through the key-value store of jax.distributed;
with one process nothing is started, and each function here answers at once.
"""

import contextlib
import itertools
import json
import logging
import os
import socket
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax._src import clusters, distributed

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.host_watch import RESTART_CODE, Watch
from longctx_jax.last_words import on_abort

log = logging.getLogger(__name__)

# Waiting for process 0 has no limit of its own: it may make a corpus of days,
# and a process that is gone is found by its missing heartbeat.
_WEEK_MS = 7 * 24 * 3600 * 1000

_HEARTBEAT_S = 600  # ours: for when the watch itself is at fault

_calls = itertools.count()
_watch: Watch | None = None


class UnreachableError(RuntimeError):
  """Process 0 does not answer; it may only be late."""


class Start(NamedTuple):
  """How the processes of a run find each other; empty: by the environment.

  TPU pods, Slurm, Open MPI and Kubernetes jobs say it in ways that JAX knows.
  """

  coordinator: str = ''  # HOST:PORT of process 0
  num_processes: int | None = None
  process_id: int | None = None
  timeout_s: int = 300  # jax.distributed's own


def start(where: Start, *, hang_s: float = 600.0) -> None:
  """Joins the other processes of the run, before anything is computed.

  Args:
    where: the others.
    hang_s: after so long without the end of a step, process 0 says who lags.

  Raises:
    ConfigError: it is not said where the processes are.
    UnreachableError: process 0 is not there.
  """
  global _watch
  address, count, index, devices = _find(where)
  if count in (None, 1):
    return
  if index:
    _reach(address, where.timeout_s)
  joined = []

  def why_aborted() -> str | None:
    # XLA's runtime aborts in both cases, and takes no hook of Python's.
    if not joined:
      return (
        f'process {index} of {count}: the run did not start in'
        f' {where.timeout_s} s: not every process came to {address}. Start'
        ' the same command on all hosts, each with its own --process_id'
      )
    if index and not _answers(address):
      return _lost_first(index, address)
    return None

  on_abort(why_aborted, RESTART_CODE)
  # SIGTERM is ours: see preemption.py.
  jax.config.update('jax_enable_preemption_service', False)
  jax.distributed.initialize(
    address,
    count,
    index,
    local_device_ids=devices,
    initialization_timeout=where.timeout_s,
    # The watch is quicker, and knows when it was stopped itself.
    heartbeat_timeout_seconds=_HEARTBEAT_S,
  )
  joined.append(True)
  _watch = Watch(_store(), index, count, hang_s=hang_s)
  _watch.start()
  log.info('process %d of %d: joined at %s', index, count, address)


def _find(where: Start):
  """(address, number of processes, own number, local devices), or all None."""
  given = (where.coordinator, where.num_processes, where.process_id)
  if any(x in ('', None) for x in given) and any(
    x not in ('', None) for x in given
  ):
    raise ConfigError(
      'give --coordinator=HOST:PORT, --num_processes=N and --process_id=I'
      ' together, or none of them'
    )
  if where.coordinator:
    host, colon, port = where.coordinator.rpartition(':')
    if not host or not colon or not port.isdigit():
      raise ConfigError(f'--coordinator={where.coordinator} is not HOST:PORT')
    if not 0 <= where.process_id < where.num_processes:
      raise ConfigError(
        f'--process_id={where.process_id} is none of the'
        f' --num_processes={where.num_processes}, which count from 0'
      )
    return *given, None
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    try:
      found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, where.timeout_s
      )
    except (RuntimeError, OSError, ValueError, KeyError) as error:
      reason = ' '.join(str(error).split())
      raise ConfigError(
        f'cannot find the other processes of this run ({reason}): give'
        ' --coordinator=HOST:PORT, --num_processes=N and --process_id=I'
      ) from error
  # In any pod of Kubernetes JAX asks for its package; we in indexed jobs alone.
  if caught and 'JOB_COMPLETION_INDEX' in os.environ:
    raise ConfigError(
      'a Kubernetes job: the processes find each other with'
      " `pip install 'jax[k8s]'`, or by --coordinator=HOST:PORT,"
      ' --num_processes=N and --process_id=I'
    )
  return found


def _reach(address: str, timeout_s: float) -> None:
  """Waits for process 0 to listen.

  Raises:
    UnreachableError: it does not, in `timeout_s`.
  """
  deadline = time.monotonic() + timeout_s
  while True:
    try:
      _connect(address)
    except OSError as error:
      if time.monotonic() > deadline:
        raise UnreachableError(
          f'cannot reach process 0 at {address} in {timeout_s} s ({error}): is'
          ' it started, is the address right, is the port open?'
        ) from error
      time.sleep(0.2)
    else:
      return


def _connect(address: str) -> None:
  host, _, port = address.rpartition(':')
  socket.create_connection((host.strip('[]'), int(port)), timeout=2).close()


def _answers(address: str) -> bool:
  try:
    _connect(address)
  except OSError:
    return False
  return True


def _lost_first(index: int, address: str) -> str:
  return (
    f'process {index}: lost process 0 at {address}: it was killed, or its host'
    ' is gone; its own log says more. The same command goes on from the newest'
    ' checkpoint'
  )


def _store():
  # As Orbax does; there is no public name for it.
  return distributed.global_state.client


def index() -> int:
  """The number of this process, from 0; known before devices are."""
  return distributed.global_state.process_id


def count() -> int:
  """How many processes the run has."""
  return distributed.global_state.num_processes


def is_first() -> bool:
  """Whether this process is the one that writes."""
  return index() == 0


def told(find: Callable[[], Any]) -> Any:
  """What `find` gives on process 0, on all; JSON. The others wait for it."""
  if count() == 1:
    return find()
  key = f'longctx/told/{next(_calls)}'
  if is_first():
    found = find()
    _store().key_value_set(key, json.dumps(found))
    return found
  return json.loads(_store().blocking_key_value_get(key, _WEEK_MS))


def all_succeeded(succeeded: bool) -> bool:
  """Whether it succeeded on all processes, which wait for each other."""
  if count() == 1:
    return succeeded
  key = f'longctx/succeeded/{next(_calls)}'
  _store().key_value_set(f'{key}/{index()}', json.dumps(succeeded))
  answers = (
    _store().blocking_key_value_get(f'{key}/{i}', _WEEK_MS)
    for i in range(count())
  )
  return all(json.loads(answer) for answer in answers)


def agree_on_stop(asked: bool, now: int) -> bool:
  """Whether all processes stop at `now`, which counts up alike on all.

  The first that is `asked` to says when: 2 from now, as no other process is
  ahead by more than 1.
  """
  if count() == 1:
    return asked
  if asked:
    # Another one may have said it already.
    with contextlib.suppress(RuntimeError):
      _store().key_value_set('longctx/stop', str(now + 2))
  try:
    return now >= int(_store().key_value_try_get('longctx/stop'))
  except RuntimeError:  # nobody has
    return False


def check_same(mine: str, what: str) -> None:
  """Raises ConfigError where `mine` is not that of process 0."""
  first = told(lambda: mine)
  if mine != first:
    raise ConfigError(
      f'process {index()} has {what} {mine}, process 0 has {first}: all must'
      ' be given the same'
    )


def now_doing(what: str, step: int | None = None) -> None:
  """Tells the watch what this process does, for the line about who lags."""
  if _watch:
    _watch.tell(what, step)


def wait_for_verdict() -> None:
  """After an error in a collective: ends this process if another one is gone.

  Returns if all are there: then the error is this process's own.
  """
  if _watch:
    _watch.wait_for_verdict()


def leave(line: str, code: int) -> None:
  """Ends all processes because this one failed; of one process, does nothing.

  Without it the others would wait for this one in their next collective.
  """
  if _watch:
    _watch.leave(line, code)


def finish() -> None:
  """Ends the run on all processes, when each has come here."""
  global _watch
  if _watch is None:
    return
  _store().wait_at_barrier('longctx/end', _WEEK_MS)
  _watch.stop()
  _watch = None
  jax.distributed.shutdown()
