"""Text files, one document each, and source trees, one document per tree."""

import os
from collections.abc import Iterator
from pathlib import Path

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.corpus_config import TextSource
from longctx_jax.data.parts import (
  BadRecord,
  Document,
  Part,
  Problem,
  printable,
  read_item,
  text_from,
  too_large,
)
from longctx_jax.data.source_files import find_files, matches, walk_files

_TEXTS = ('.txt', '.md')
# ours: what people write and read; data, markup of pages and what programs
# generate (.json, .csv, .svg, .lock) would drown it.
_SOURCES = (
  *('.c', '.cc', '.cpp', '.cs', '.cu', '.cuh', '.go', '.h', '.hpp', '.hs'),
  *('.java', '.jl', '.js', '.jsx', '.kt', '.lua', '.m', '.md', '.ml', '.php'),
  *('.pl', '.proto', '.py', '.pyi', '.pyx', '.r', '.rb', '.rs', '.rst'),
  *('.scala', '.sh', '.sql', '.swift', '.tex', '.toml', '.ts', '.tsx', '.txt'),
  *('.vue', '.yaml', '.yml', '.zig'),
)
# As git decides it: by a NUL in the first bytes (xdiff-interface.c).
_BINARY_CHECK_BYTES = 8_000


def list_files(source: TextSource, domain: str) -> list[Part]:
  """A part for each file; *.txt and *.md, unless the source says otherwise."""
  return [
    Part(source, domain, f'text_files/{name}', str(path))
    for name, path in find_files(source, source.suffixes or _TEXTS)
  ]


def read_file(part: Part) -> Iterator[Document | Problem]:
  """The one document of a text file."""
  yield read_item(
    part,
    part.name,
    lambda: (None, read_text_file(part)),
    lambda: part.path,
  )


def read_text_file(part: Part) -> str:
  """The text of the file `part.path`.

  Raises:
    BadRecord: it cannot be read, or is no text.
  """
  return _file_text(Path(part.path), part.source, binary_too=True)


def list_repositories(source: TextSource, domain: str) -> list[Part]:
  """A part for each source tree.

      path        the documents
      repos/one   one, if it holds .git
      repos       one of each directory in it, if it does not
      repos/*/*   one of each directory that matches

  Raises:
    ConfigError: there are none.
  """
  root, found = matches(source)
  if found == [root] and not (root / '.git').exists():
    found = [path for path in root.iterdir() if not path.name.startswith('.')]
  folders = sorted(path for path in found if path.is_dir())
  if not folders:
    raise ConfigError(
      f'path={source.path!r} has no directories in it: a source of kind'
      ' repositories reads each as one document'
    )
  return [
    Part(source, domain, f'repositories/{_tree_name(root, path)}', str(path))
    for path in folders
  ]


def _tree_name(root, path):
  return printable(
    path.relative_to(root).as_posix() if path != root else path.resolve().name
  )


def read_repository(part: Part) -> Iterator[Document | Problem]:
  """The one document of a tree, and the problems of files left out of it."""
  suffixes = part.source.suffixes or _SOURCES
  root = Path(part.path)
  files = {
    printable(path.relative_to(root).as_posix()): path
    for path in walk_files(root)
    if path.name.lower().endswith(suffixes)
  }
  yield from read_concatenated(part, files)


def read_concatenated(
  part: Part, files: dict[str, Path]
) -> Iterator[Document | Problem]:
  """Files in the order of their names as one document, each below its name.

      # tale/__init__.py
      ...

      # tale/b.py
      ...

  Not in the order of who imports whom, on purpose (ProLong, sec. 3.1). A file
  that cannot be read, or is binary, is left out of the document, and is a
  problem of its own.
  """
  texts, length = [], 0
  for name in sorted(files):
    try:
      text = _file_text(files[name], part.source, binary_too=False)
    except BadRecord as bad:
      if bad.kind != 'empty':
        yield Problem(f'{part.name}/{name}', bad.kind, f'{files[name]}: {bad}')
        continue
      text = ''  # packages have many such, and their names say something
    texts.append(f'# {name}\n{text.rstrip()}\n\n')
    length += len(texts[-1])
    # Before the rest is read, as it may be any number of gigabytes.
    if length > part.source.max_document_chars:
      yield Problem(
        part.name,
        'too_large',
        f'{part.path or part.name}: {too_large(part.source)}',
      )
      return
  yield read_item(
    part,
    part.name,
    lambda: (None, text_from(''.join(texts), part.source)),
    lambda: part.path or part.name,
  )


def _file_text(path, source, *, binary_too):
  try:
    with path.open('rb') as file:
      if os.fstat(file.fileno()).st_size > 4 * source.max_document_chars:
        raise too_large(source)
      content = file.read(_BINARY_CHECK_BYTES)
      if b'\0' in content and not binary_too:
        raise BadRecord(
          'binary', 'it has NUL bytes, as programs and UTF-16 have, not sources'
        )
      content += file.read()
  except OSError as error:
    raise BadRecord('unreadable', error.strerror) from None
  return text_from(content, source)
