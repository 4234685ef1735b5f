"""One run at a time in a directory: a lock that dies with its process."""

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from longctx_jax.config_from_dict import ConfigError

try:
  import fcntl
except ImportError:  # Windows has none
  fcntl = None

log = logging.getLogger(__name__)


@contextlib.contextmanager
def directory_lock(directory: Path, file: Path, flag: str) -> Iterator[None]:
  """Keeps other processes out of `directory` meanwhile, by a lock on `file`.

  The system lets go of the lock when the process dies, however it does; the
  file that is left then locks nobody out. Where the file system has no locks, a
  warning says so, and nobody is kept out.

  Args:
    flag: what names `directory` on the command line, for the message.

  Raises:
    ConfigError: another process has the lock.
  """
  file.parent.mkdir(parents=True, exist_ok=True)
  descriptor = _open_locked(directory, file, flag)
  try:
    # For the message to whoever comes next.
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f'{os.getpid()} on {socket.gethostname()}'.encode())
    yield
  finally:
    # In this order: who opens the file in between finds it gone, and tries
    # again.
    file.unlink(missing_ok=True)
    os.close(descriptor)


def _open_locked(directory, file, flag) -> int:
  while True:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
      _lock(descriptor, directory, flag)
    except BaseException:
      os.close(descriptor)
      raise
    with contextlib.suppress(FileNotFoundError):
      # Whoever had the lock may have removed the file that was opened.
      if os.path.samestat(os.fstat(descriptor), file.stat()):
        return descriptor
    os.close(descriptor)


def _lock(descriptor, directory, flag):
  if fcntl is None:
    _warn(directory, flag, 'this system has none')
    return
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
      _warn(directory, flag, error.strerror)
      return
    holder = os.read(descriptor, 200).decode(errors='replace')
    raise ConfigError(
      f'{directory} is in use by another run (process {holder or "unknown"}):'
      f' wait for it, or give another {flag}'
    ) from error


def _warn(directory, flag, reason):
  log.warning(
    '%s cannot be locked (%s): do not start a second run with this %s',
    *(directory, reason, flag),
  )
