"""What disks do wrong: they fill up, and they forget what is not yet written.

A rename may be on the disk before the content of what is renamed: after a power
failure a store would be there under its name, with holes in it. So content is
written through first.
"""

import contextlib
import errno
import os
from pathlib import Path

# Full, over a quota, over the size that a file may have.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sync_file(path: Path) -> None:
  """Waits until the content of a file, or the names in a folder, are stored."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def publish(partial: Path, directory: Path) -> None:
  """Renames a folder to `directory` once all that is in it is stored."""
  for folder, _, files in os.walk(partial):
    for name in files:
      sync_file(Path(folder, name))
    _sync_folder(Path(folder))
  os.replace(partial, directory)
  _sync_folder(directory.parent)


def full_disk(error: Exception, advice: str) -> OSError | None:
  """One line about a full disk if that is what `error` tells of, else None.

  Libraries of C++, and runners of other processes, tell of it in words alone.
  """
  for code in _FULL:
    if getattr(error, 'errno', None) == code or os.strerror(code) in str(error):
      return OSError(code, f'{os.strerror(code)}: {advice}')
  return None


def _sync_folder(folder):
  # Some systems cannot open folders, and need not.
  with contextlib.suppress(OSError):
    sync_file(folder)
