"""The store: tokenised documents in ArrayRecord, with a manifest.

One record is one document, little-endian: its tokens, 4 bytes each, and, where
not every token is trained on, its loss mask, 1 byte each. The manifest holds
what planners need, so that making a row plan reads no document.
"""

import collections
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

_FORMAT_VERSION = 1
_MANIFEST = 'manifest.json'
_RECORDS = 'documents.array_record'
# What a manifest holds besides its format version; the first three are lists
# with one entry a document.
_FIELDS = (
  *('names', 'domains', 'lengths'),
  *('fingerprint', 'tokenizer_fingerprint', 'settings'),
)


class StoreError(ValueError):
  """A store that cannot be read or replaced; the message names the file."""


class StoredDocument(NamedTuple):
  """A tokenised document or conversation."""

  name: str
  domain: str
  tokens: np.ndarray  # [T] int32
  loss_mask: np.ndarray | None  # [T], 0 = not trained on; None: all are


def write_store(
  directory: Path,
  documents: Iterable[StoredDocument],
  *,
  tokenizer_fingerprint: str,
  settings: dict,
) -> None:
  """Writes a store, which replaces the one that `directory` may hold.

  It grows in a neighbour named `directory` + '.partial' and is renamed at the
  end: a run that is killed leaves no store, or the old one. `settings` is what
  the documents were made from, for the manifest.

  Raises:
    ValueError: there are no documents, or one is malformed.
    StoreError: `directory` holds something other than a store.
    OSError: the disk is full, or the like; nothing is left behind.
  """
  directory = Path(directory)
  partial = directory.with_name(directory.name + '.partial')
  if directory.exists() and not _may_replace(directory):
    raise StoreError(
      f'{directory} is not a store; move it away, or choose another directory'
    )
  try:
    if partial.exists():
      shutil.rmtree(partial)
    partial.mkdir(parents=True)
    manifest = _write_records(partial / _RECORDS, documents)
    manifest |= {
      'format_version': _FORMAT_VERSION,
      'tokenizer_fingerprint': tokenizer_fingerprint,
      'settings': settings,
    }
    (partial / _MANIFEST).write_text(json.dumps(manifest), encoding='utf-8')
    if directory.exists():
      shutil.rmtree(directory)
    os.replace(partial, directory)
  except OSError as error:
    raise OSError(f'cannot write the store {directory}: {error}') from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _may_replace(directory):
  return directory.is_dir() and (
    (directory / _MANIFEST).is_file() or not any(directory.iterdir())
  )


def _write_records(path, documents) -> dict:
  """Writes all records and returns the manifest's account of them."""
  names, domains, lengths = [], [], []
  content = hashlib.sha256()
  writer = _open_writer(path)
  try:
    for document in documents:
      tokens, record = _record_from_document(document)
      writer.write(record)
      names.append(document.name)
      domains.append(document.domain)
      lengths.append(len(tokens))
      header = [document.name, document.domain, len(tokens), len(record)]
      content.update(json.dumps(header).encode() + record)
  finally:
    try:
      writer.close()
    except RuntimeError as error:
      # The writer's threads report a full disk here, and as a RuntimeError.
      raise OSError(str(error)) from error
  if not names:
    raise ValueError(
      'there are no documents to store: the corpus is empty. Look at the'
      ' sources, their max_chars, and the warnings above'
    )
  return {
    'fingerprint': content.hexdigest()[:12],
    'names': names,
    'domains': domains,
    'lengths': lengths,
  }


def _open_writer(path):
  try:
    # One document per group: reading one decompresses no others.
    return ArrayRecordWriter(str(path), 'group_size:1')
  except RuntimeError as error:
    raise OSError(str(error)) from error


def _record_from_document(document):
  tokens = np.asarray(document.tokens).astype('<i4', casting='same_kind')
  if tokens.ndim != 1 or not len(tokens):
    raise ValueError(
      f'document {document.name!r} has tokens of shape {tokens.shape};'
      ' expected one or more in a row'
    )
  if document.loss_mask is None:
    return tokens, tokens.tobytes()
  mask = np.asarray(document.loss_mask).astype(bool)
  if mask.shape != tokens.shape:
    raise ValueError(
      f'document {document.name!r} has {len(tokens)} tokens and a loss mask of'
      f' shape {mask.shape}'
    )
  return tokens, tokens.tobytes() + mask.tobytes()


class DocumentStore:
  """Random access to a store; may be pickled, and shared by threads.

  A child may go on using it after a fork, if no thread is reading just then.

  Attributes:
    lengths: tokens of each document, int64 [number of documents].
    domains: domain of each document.
    names: name of each document.
    settings: what the documents were made from.
    fingerprint: 12 hex digits that change with any document.
    tokenizer_fingerprint: 12 hex digits of the tokenizer that made them.

  Raises:
    StoreError: a file is missing, damaged, or of another format version.
  """

  # ours: a hundred documents of 128K tokens, which is more than the rows in
  # work at one time are cut from.
  def __init__(self, directory: Path | str, *, cache_bytes: int = 64 << 20):
    self._path = Path(directory, _RECORDS)
    self._cache_bytes = cache_bytes
    manifest = _read_manifest(Path(directory, _MANIFEST))
    self.lengths = np.asarray(manifest['lengths'], np.int64)
    self.domains: list[str] = manifest['domains']
    self.names: list[str] = manifest['names']
    self.settings: dict = manifest['settings']
    self.fingerprint: str = manifest['fingerprint']
    self.tokenizer_fingerprint: str = manifest['tokenizer_fingerprint']
    self._open()

  def read(
    self, document: int, start: int, stop: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (int32) and loss mask (bool) of [start, stop), not writable.

    Raises:
      IndexError: there is no such document, or it is shorter than that.
      StoreError: the record is damaged.
    """
    if not 0 <= document < len(self.lengths):
      raise IndexError(
        f'document {document} of a store of {len(self.lengths)} documents'
      )
    if not 0 <= start <= stop <= self.lengths[document]:
      raise IndexError(
        f'tokens [{start}, {stop}) of document {document}, which has'
        f' {self.lengths[document]}'
      )
    tokens, mask = self._document(document)
    return tokens[start:stop], mask[start:stop]

  def __getstate__(self):
    state = self.__dict__.copy()
    for name in ('_source', '_cache', '_cached_bytes', '_lock', '_pid'):
      del state[name]
    return state

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._open()

  def _open(self):
    # Told the number of records, the source does not open the file to count.
    self._source = ArrayRecordDataSource(f'{self._path}[0:{len(self.lengths)}]')
    self._start_cache()
    # Any read makes the source open the file. That shows whether it is whole,
    # and must happen before a fork: ArrayRecord crashes where a child opens a
    # file after its parent wrote one.
    self._read_record(int(self.lengths.argmin()))

  def _start_cache(self):
    self._cache = collections.OrderedDict()
    self._cached_bytes = 0
    self._lock = threading.Lock()
    self._pid = os.getpid()

  def _document(self, document):
    """(tokens, mask) of a whole document, from the cache where it is there."""
    if self._pid != os.getpid():
      # A thread that held the lock does not exist in a forked child.
      self._start_cache()
    with self._lock:
      if document in self._cache:
        self._cache.move_to_end(document)
        return self._cache[document]
    # Outside the lock, so that threads decompress side by side.
    arrays = self._read_record(document)
    with self._lock:
      if document not in self._cache:
        self._cache[document] = arrays
        self._cached_bytes += _num_bytes(arrays)
      while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
        _, oldest = self._cache.popitem(last=False)
        self._cached_bytes -= _num_bytes(oldest)
    return arrays

  def _read_record(self, document):
    length = int(self.lengths[document])
    try:
      record = self._source[document]
    except RuntimeError as error:
      raise StoreError(
        f'{self._path}: document {document} cannot be read ({error}). Prepare'
        ' the corpus again'
      ) from error
    if len(record) not in (4 * length, 5 * length):
      raise StoreError(
        f'{self._path} is damaged: document {document} has {len(record)} bytes,'
        f' and {length} tokens in the manifest. Prepare the corpus again'
      )
    tokens = np.frombuffer(record, '<i4', length)
    if len(record) == 4 * length:
      # Every element is the same one byte: a mask of ones takes no memory.
      return tokens, np.broadcast_to(np.True_, length)
    return tokens, np.frombuffer(record, bool, length, offset=4 * length)


def _num_bytes(arrays):
  tokens, mask = arrays
  return tokens.nbytes + mask.nbytes


def _read_manifest(path) -> dict:
  try:
    text = path.read_text(encoding='utf-8')
  except OSError as error:
    raise StoreError(
      f'cannot read the store {path}: {error.strerror}'
    ) from error
  except UnicodeDecodeError as error:
    raise StoreError(f'{path} is damaged: {error}') from error
  try:
    manifest = json.loads(text)
    version = manifest['format_version']
  except (json.JSONDecodeError, KeyError, TypeError) as error:
    raise StoreError(
      f'{path} is damaged: it is no manifest ({error!r}). Prepare the corpus'
      ' again'
    ) from error
  if version != _FORMAT_VERSION:
    raise StoreError(
      f'{path} has format version {version}, and this program reads'
      f' {_FORMAT_VERSION}. Prepare the corpus again'
    )
  absent = [field for field in _FIELDS if field not in manifest]
  per_document = {len(manifest.get(f, ())) for f in _FIELDS[:3]}
  if absent or len(per_document) != 1 or 0 in per_document:
    raise StoreError(
      f'{path} is damaged: it lacks {", ".join(absent) or "some documents"}.'
      ' Prepare the corpus again'
    )
  return manifest
