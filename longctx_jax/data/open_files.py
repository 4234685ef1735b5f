"""More files than a process may hold open: those used last stay open."""

import collections
import contextlib
import logging
from collections.abc import Callable
from typing import Any

try:
  import resource
except ImportError:  # Windows has none
  resource = None

log = logging.getLogger(__name__)

# ours: a run has three stores open, and needs some files beside.
_STORES = 4
_USUAL_LIMIT = 1024


def max_open_files() -> int:
  """How many files a store may hold open; `ulimit -n` says it of a process."""
  limit = _USUAL_LIMIT
  if resource:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
      limit = 1 << 20
  return max(limit // _STORES, 1)


class OpenFiles:
  """Files by number, opened with `open_file`; may be shared by threads.

  All are opened once to begin with, so that one that is missing comes up then.
  """

  def __init__(self, open_file: Callable[[int], Any], number: int, what: str):
    self._open_file, self._limit = open_file, max_open_files()
    # Its methods are atomic: no lock that a forked child could find taken.
    self._files = collections.OrderedDict()
    if number > self._limit:
      log.warning(
        '%s has %d shards, of which %d are kept open at a time; raise the limit'
        ' of open files (ulimit -n) to %d for faster reading',
        *(what, number, self._limit, _STORES * number),
      )
    for i in range(number):
      self[i]

  def __getitem__(self, i: int) -> Any:
    """The file, which stays open at least until whoever has it lets go."""
    file = self._files.get(i)
    if file is None:
      file = self._files[i] = self._open_file(i)
    # Another thread may have closed any of them just now.
    with contextlib.suppress(KeyError):
      self._files.move_to_end(i)
      while len(self._files) > self._limit:
        self._files.popitem(last=False)
    return file
