"""Archives of a package index, pinned by hash and read without installing.

pip downloads them, so a user's mirrors, proxies and credentials apply. Nothing
in an archive is ever executed or extracted to disk.
"""

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# pip runs the setup.py of a source archive to learn its metadata, even when it
# only downloads. This stand-in build backend, found before the real one,
# answers from the archive's PKG-INFO instead.
_BUILD_BACKEND = """
import pathlib
import shutil

class __legacy__:
  @staticmethod
  def prepare_metadata_for_build_wheel(directory, config_settings=None):
    folder = pathlib.Path(directory, '{stem}.dist-info')
    folder.mkdir()
    shutil.copy('PKG-INFO', folder / 'METADATA')
    return folder.name
"""


class ArchiveError(OSError):
  """An archive that cannot be had; the message says which and why."""


class PinnedArchive(NamedTuple):
  """A wheel or source archive (.whl or .tar.gz) of a package index."""

  package: str
  version: str
  filename: str
  sha256: str


def fetch_archive(archive: PinnedArchive, cache_dir: Path) -> Path:
  """Path of the verified archive in `cache_dir`, downloaded if need be.

  A cached file with another hash counts as damaged and is downloaded again.

  Raises:
    ArchiveError: pip could not download it, or `cache_dir` is not writable.
  """
  path = cache_dir / archive.filename
  try:
    if path.is_file() and _sha256(path) == archive.sha256:
      return path
    cache_dir.mkdir(parents=True, exist_ok=True)
    # Inside the cache, so that the final rename stays on one file system.
    with tempfile.TemporaryDirectory(dir=cache_dir) as scratch:
      _pip_download(archive, Path(scratch))
      os.replace(Path(scratch, archive.filename), path)
  except OSError as error:
    raise ArchiveError(f'cannot get {archive.filename}: {error}') from error
  return path


def read_members(path: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
  """Yields (name, content) of the files that match `pattern`, by name.

  The name is the pattern's first group; the rest of a member's path is not
  looked at further.
  """
  if path.suffix == '.whl':
    with zipfile.ZipFile(path) as wheel:
      for member in sorted(wheel.namelist()):
        if match := re.fullmatch(pattern, member):
          yield match[1], wheel.read(member)
  else:
    with tarfile.open(path) as sdist:
      files = {m.name: m for m in sdist.getmembers() if m.isfile()}
      for member in sorted(files):
        if match := re.fullmatch(pattern, member):
          yield match[1], sdist.extractfile(files[member]).read()


def _pip_download(archive, directory):
  """Leaves the archive in `directory`, or raises OSError."""
  backend = directory / 'backend' / 'setuptools'
  backend.mkdir(parents=True)
  (backend / '__init__.py').touch()
  stem = archive.filename.removesuffix('.tar.gz')
  (backend / 'build_meta.py').write_text(_BUILD_BACKEND.format(stem=stem))
  requirements = directory / 'requirements.txt'
  requirements.write_text(
    f'{archive.package}=={archive.version} --hash=sha256:{archive.sha256}\n'
  )
  wheel = archive.filename.endswith('.whl')
  kind = '--only-binary' if wheel else '--no-binary'
  search_path = [str(backend.parent), os.environ.get('PYTHONPATH', '')]
  try:
    done = subprocess.run(
      [
        *(sys.executable, '-m', 'pip', 'download', '--quiet', '--no-input'),
        *('--no-deps', '--require-hashes', kind, archive.package),
        *('--no-build-isolation', '--disable-pip-version-check'),
        # ours: a machine without network gives up in seconds.
        *('--retries', '1', '--timeout', '15'),
        *('--dest', str(directory), '--requirement', str(requirements)),
      ],
      env=os.environ
      | {
        'PYTHONPATH': os.pathsep.join(filter(None, search_path)),
        'PIP_USE_PEP517': '1',
      },
      capture_output=True,
      text=True,
      timeout=600,  # ours: 5 MB over a line of 10 kB/s
      check=False,
    )
  except subprocess.TimeoutExpired as error:
    raise OSError(f'pip was still busy after {error.timeout:.0f} s') from error
  if done.returncode:
    reasons = [
      line.removeprefix('ERROR: ')
      for line in done.stderr.splitlines()
      if line.startswith('ERROR: ')
    ] or done.stderr.strip().splitlines()
    raise OSError(reasons[-1] if reasons else 'pip failed without a word')
  if not (directory / archive.filename).is_file():
    raise OSError('pip downloaded a file of another name')


def _sha256(path):
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
