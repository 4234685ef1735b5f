"""One clear line where the runtime below Python aborts the process.

XLA's distributed runtime ends a process that lost the coordinator by abort(),
with a stack trace and a code that looks like a bug. Handlers of the signal
module never run then: Python calls them later, and there is no later. So this
one is C's own; Python runs in it because another thread does, or none.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
_kept = []  # a handler must outlive its installation


def on_abort(explain: Callable[[], str | None], code: int) -> None:
  """Has abort() print the line of `explain` and end with `code`.

  Where `explain` gives None the abort takes its course.
  """

  def handle(number: int) -> None:
    line = explain()
    if line is not None:
      os.write(2, f'longctx: {line}\n'.encode())
      os._exit(code)
    del number

  if sys.platform == 'win32':
    return
  handler = _HANDLER(handle)
  _kept.append(handler)
  install = ctypes.CDLL(None).signal
  install.argtypes = [ctypes.c_int, _HANDLER]
  install.restype = ctypes.c_void_p
  install(signal.SIGABRT, handler)
