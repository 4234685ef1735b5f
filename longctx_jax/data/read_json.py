"""JSONL, plain or compressed by gzip or Zstandard: one document a line.

No line is ever held that is longer than a document may be, and no file is
decompressed to the end that expands beyond reason.
"""

import contextlib
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from longctx_jax.corpus_config import TextSource
from longctx_jax.data.parts import (
  BadRecord,
  Document,
  Part,
  Problem,
  import_optional,
  name_from,
  read_item,
  text_from,
  too_large,
)
from longctx_jax.data.source_files import find_files

_PLAIN = ('.jsonl', '.ndjson')
_COMPRESSED = tuple(s + c for s in _PLAIN for c in ('.gz', '.zst'))
# A file may hold this many times its compressed bytes. ours: text takes 3 to
# 30; gzip can do 1,000 and Zstandard 30,000, with nothing but repetition.
MAX_EXPANSION = 200
# ours: what any file may expand to, as small ones are no danger.
FREE_BYTES = 64 << 20
_BUFFER_BYTES = 1 << 20
# ours: what a record may hold beside its text.
_OTHER_FIELDS_BYTES = 1 << 20


def list_jsonl(source: TextSource, domain: str, part_bytes: int) -> list[Part]:
  """Plain files in ranges of bytes; compressed ones as a whole."""
  parts = []
  for name, path in find_files(source, (*_PLAIN, *_COMPRESSED)):
    name = f'jsonl/{name}'
    if path.name.lower().endswith('.zst'):
      _zstd_module()
    if path.name.lower().endswith(('.gz', '.zst')):
      parts.append(Part(source, domain, name, str(path), 0, sys.maxsize))
      continue
    size = path.stat().st_size
    parts += [
      Part(source, domain, name, str(path), start, start + part_bytes)
      for start in range(0, size, part_bytes)
    ]
  return parts


def read_jsonl(part: Part) -> Iterator[Document | Problem]:
  """The documents of the lines that begin in the part's bytes.

  Blank lines are no records. Names end in the (decompressed) byte at which a
  line begins: unlike its number, it is known without reading what is before.
  """
  # Any character may be escaped as \\u and four digits.
  max_bytes = 6 * part.source.max_document_chars + _OTHER_FIELDS_BYTES
  offset = part.start
  try:
    with open_expanded(part.path) as file:
      for offset, line in _lines(file, part.start, part.stop, max_bytes):
        if line is None or line.strip():
          yield _item(part, offset, line)
  except (BadRecord, OSError) as error:
    yield Problem(
      f'{part.name}@{offset}',
      getattr(error, 'kind', 'unreadable'),
      f'{_where(part, offset)}: {getattr(error, "strerror", error)}. The rest'
      ' of the file is left out',
    )


class _Line(NamedTuple):
  """A line and the byte at which it begins; None: it is too long to hold."""

  offset: int
  content: bytes | None


def _lines(
  file: BinaryIO, start: int, stop: int, max_bytes: int
) -> Iterator[_Line]:
  offset = start
  if start:
    # The line that holds the byte before `start` belongs to the part before,
    # and so does one that ends there; what follows begins in this part.
    file.seek(start - 1)
    offset += _skip_line(file) - 1
  while offset < stop:
    line = file.readline(max_bytes + 1)
    if not line:
      return
    length = len(line)
    if length > max_bytes and not line.endswith(b'\n'):
      line = None
      length += _skip_line(file)
    yield _Line(offset, line)
    offset += length


def _skip_line(file):
  """Reads to the end of a line and returns how many bytes that took."""
  skipped = 0
  while piece := file.readline(_BUFFER_BYTES):
    skipped += len(piece)
    if piece.endswith(b'\n'):
      break
  return skipped


def _item(part, offset, line):
  source = part.source

  def load():
    if line is None:
      raise too_large(source)
    record = object_from_json(line.strip(), source)
    text = text_from(record.get(source.text_field), source)
    return name_from(record.get(source.name_field), source), text

  return read_item(
    part, f'{part.name}@{offset}', load, lambda: _where(part, offset)
  )


def object_from_json(line: bytes, source: TextSource) -> dict:
  """The object that a line or record of JSON holds.

  Raises:
    BadRecord: it holds none, or bytes that are not UTF-8.
  """
  # Where files were put together, marks of byte order stand inside.
  line = line.removeprefix(b'\xef\xbb\xbf')
  try:
    decoded = line.decode(
      'utf-8', 'strict' if source.errors == 'problem' else 'replace'
    )
  except UnicodeDecodeError as error:
    raise BadRecord(
      'bad_utf8',
      f'byte {error.start} of the line is not UTF-8 ({error.reason});'
      " errors='replace' puts U+FFFD in its place",
    ) from None
  try:
    record = json.loads(decoded)
  # A line of a million brackets is too deep to parse.
  except (ValueError, RecursionError) as error:
    raise BadRecord('bad_json', f'not JSON: {error}') from None
  if not isinstance(record, dict):
    raise BadRecord(
      'bad_json', f'expected an object, got {type(record).__name__}'
    )
  return record


def _where(part, offset):
  if part.source.on_problem == 'skip':
    return f'{part.path}, byte {offset}'
  # Once, as reading stops here: counting lines takes a pass over the file.
  number, left = 1, offset
  with (
    contextlib.suppress(BadRecord, OSError),
    open_expanded(part.path) as file,
  ):
    while left > 0 and (block := file.read1(min(left, _BUFFER_BYTES))):
      number += block.count(b'\n')
      left -= len(block)
  return f'{part.path}, line {number}'


class _Counted(io.RawIOBase):
  """A file that knows how many of its bytes were read."""

  def __init__(self, path):
    self._file = open(path, 'rb', buffering=0)  # noqa: SIM115
    self.num_bytes = 0

  def readable(self):
    return True

  def readinto(self, buffer):
    count = self._file.readinto(buffer)
    self.num_bytes += count
    return count

  def close(self):
    self._file.close()
    super().close()


class _Expanded(io.RawIOBase):
  """A compressed file's content, as long as it does not expand too much."""

  def __init__(self, compressed, content, errors):
    self._compressed = compressed
    self._content = content
    self._errors = errors  # that `content` raises where it is damaged
    self._num_bytes = 0

  def readable(self):
    return True

  def readinto(self, buffer):
    try:
      piece = self._content.read1(len(buffer))
    except self._errors as error:
      raise BadRecord('damaged', str(error)) from error
    buffer[: len(piece)] = piece
    self._num_bytes += len(piece)
    if (
      self._num_bytes > FREE_BYTES + MAX_EXPANSION * self._compressed.num_bytes
    ):
      raise BadRecord(
        'expands_too_much',
        f'it expands to more than {MAX_EXPANSION} times its size, as'
        ' decompression bombs do',
      )
    return len(piece)

  def close(self):
    self._content.close()
    self._compressed.close()
    super().close()


def _is_compressed(path):
  return path.lower().endswith(('.gz', '.zst'))


def open_expanded(path: str) -> BinaryIO:
  """The content of a plain file, or of a compressed one, to be read once.

  Raises:
    BadRecord: here or as it is read, what is wrong with a compressed file.
    OSError: it cannot be read.
  """
  if not _is_compressed(path):
    return open(path, 'rb', buffering=_BUFFER_BYTES)
  if not os.path.getsize(path):
    raise BadRecord('damaged', 'it is empty, and lacks its header')
  compressed = _Counted(path)
  if path.lower().endswith('.gz'):
    content = gzip.GzipFile(fileobj=compressed)
    errors = (EOFError, gzip.BadGzipFile, zlib.error)
  else:
    zstd = _zstd_module()
    content = zstd.ZstdFile(compressed)
    errors = (EOFError, zstd.ZstdError)
  return io.BufferedReader(
    _Expanded(compressed, content, errors), _BUFFER_BYTES
  )


def _zstd_module():
  # The `zstandard` package takes the first half of a file for a whole one.
  name = 'backports.zstd' if sys.version_info < (3, 14) else 'compression.zstd'
  return import_optional(name, 'jsonl')
