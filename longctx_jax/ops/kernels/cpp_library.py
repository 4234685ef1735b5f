"""The C++ kernel as a library: compiled once for this CPU, and kept.

Nothing compiled is shipped, so that the kernel has the vector registers of the
machine it runs on. What is kept goes by a hash of all that it was made from and
for; a library is whole or not there, whoever else compiles it just now.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jaxlib

from longctx_jax.cache_dir import cache_dir

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / 'cpp'
TILE_LEN = 64  # ours: scores of a tile are 16 KB, a third of an L1 cache
# XLA's name of a function, and the name that it has in the library.
FORWARD, BACKWARD = 'longctx_attention_forward', 'longctx_attention_backward'
_TARGETS = {FORWARD: 'AttentionForward', BACKWARD: 'AttentionBackward'}
_COMPILERS = ('c++', 'g++', 'clang++')
_FLAGS = (
  '-std=c++17',
  '-O3',
  '-ffp-contract=fast',
  '-fPIC',
  '-shared',
  '-Wno-psabi',  # vectors are passed within the library alone
  f'-DTILE_LEN={TILE_LEN}',
)
# Of old compilers, some know only the one, some only the other.
_THIS_CPU = ('-march=native', '-mcpu=native')


@functools.cache
def why_unavailable() -> str:
  """'' if XLA has the kernel's functions now, else why it can't have them."""
  try:
    library = _load(_library_path())
  except _NoLibraryError as error:
    return str(error)
  for target, name in _TARGETS.items():
    capsule = jax.ffi.pycapsule(getattr(library, name))
    jax.ffi.register_ffi_target(target, capsule, platform='cpu')
  return ''


class _NoLibraryError(Exception):
  """Says why there is no library."""


def _library_path() -> Path:
  """Where the library is, compiled if it was not there."""
  compiler = _find_compiler()
  path = cache_dir() / f'attention_{_fingerprint(compiler)}.so'
  if not path.exists():
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      _compile(compiler, path)
    except OSError as error:
      raise _NoLibraryError(f'cannot write {path}: {error.strerror}') from error
  return path


def _find_compiler() -> str:
  wanted = os.environ.get('CXX')
  for name in (wanted,) if wanted else _COMPILERS:
    if found := shutil.which(name):
      return found
  tried = f'CXX={wanted}' if wanted else ', '.join(_COMPILERS)
  raise _NoLibraryError(f'finds no C++ compiler ({tried})')


def _fingerprint(compiler: str) -> str:
  sources = sorted(SOURCES.iterdir())
  made_from = [
    jaxlib.__version__,  # its headers
    compiler,
    *_FLAGS,
    _describe_cpu(),
    *(path.read_text() for path in sources),
  ]
  return hashlib.sha256('\0'.join(made_from).encode()).hexdigest()[:12]


def _describe_cpu() -> str:
  # A home directory may be shared by machines with other registers.
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    lines = []
  told = [x for x in lines if x.startswith(('flags', 'Features', 'model name'))]
  return '\n'.join(sorted(set(told))) or platform.processor()


def _compile(compiler: str, path: Path) -> None:
  log.info('compiling the attention kernel for this CPU, once: %s', path)
  command = [
    compiler,
    *_FLAGS,
    *('-isystem', jax.ffi.include_dir()),
    str(SOURCES / 'attention.cc'),
  ]
  with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
    made = Path(scratch) / path.name
    for this_cpu in _THIS_CPU:
      done = subprocess.run(
        [*command, this_cpu, '-o', str(made)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors='replace',
        check=False,
      )
      if done.returncode == 0:
        made.replace(path)
        return
  errors = [x for x in done.stderr.splitlines() if 'error' in x]
  why = errors[0] if errors else f'exit code {done.returncode}'
  raise _NoLibraryError(f'cannot compile it by {compiler} ({why})')


def _load(path: Path) -> ctypes.CDLL:
  try:
    return ctypes.CDLL(str(path))
  except OSError as error:
    raise _NoLibraryError(
      f'cannot load {path} ({error}): delete it to compile it again'
    ) from error
