"""The store: tokenised documents on disk, any slice of which can be read.

How they lie there is said in `store_format.py`; `store_writer.py` writes them.
"""

import bisect
import collections
import itertools
import json
import os
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from longctx_jax.data.open_files import OpenFiles
from longctx_jax.data.store_format import (
  AGAIN,
  NAMES_PER_RECORD,
  READER_OPTIONS,
  ShardCounts,
  StoreError,
  num_records,
  page_from_record,
  read_index,
  shard_name,
)


class DocumentStore:
  """Random access to a store; may be pickled, and shared by threads.

  A child may go on using it after a fork, if no thread is reading just then.

  Attributes:
    directory: where it lies.
    lengths: tokens of each document, int64 [number of documents].
    domain_ids: domain of each document, an index into domain_names.
    domain_names: names of domains, in order.
    settings: what the documents were made from.
    accounts: what became of the documents of each domain, if that was counted.
    fingerprint: 12 hex digits that change with any document.
    tokenizer_fingerprint: 12 hex digits of the tokenizer that made them.

  Raises:
    StoreError: a file is missing, damaged, or of another format version.
  """

  # ours: four thousand pages, which is more than the rows in work at one time
  # are cut from; a corpus for a laptop fits as a whole.
  def __init__(self, directory: Path | str, *, cache_bytes: int = 64 << 20):
    self._cache_bytes = cache_bytes
    self._open(Path(directory))

  def __len__(self) -> int:
    """Number of documents."""
    return len(self.domain_ids)

  def read(
    self, document: int, start: int, stop: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (int32) and loss mask (bool) of [start, stop), both copies.

    Raises:
      IndexError: there is no such document, or it is shorter than that.
      StoreError: a page is damaged.
    """
    shard = self._shard_of(document)
    if not 0 <= start <= stop <= self.lengths[document]:
      raise IndexError(
        f'tokens [{start}, {stop}) of document {document}, which has'
        f' {self.lengths[document]}'
      )
    # From here on, places are counted from the start of the shard.
    first = int(self._offsets[document]) - self._first_tokens[shard]
    start, stop = start + first, stop + first
    tokens = np.empty(stop - start, np.int32)
    mask = np.ones(stop - start, bool)
    P = self._page_tokens
    for page in range(start // P, -(-stop // P)):
      page_start = page * P
      from_page = slice(max(start - page_start, 0), stop - page_start)
      page_tokens, page_mask = self._record(shard, page, document)
      part = page_tokens[from_page]
      into = max(page_start - start, 0)
      tokens[into : into + len(part)] = part
      if page_mask is not None:
        mask[into : into + len(part)] = page_mask[from_page]
    return tokens, mask

  def name(self, document: int) -> str:
    """Name of a document, read from the disk.

    Raises:
      IndexError: there is no such document.
      StoreError: the record is damaged.
    """
    shard = self._shard_of(document)
    k = document - self._first_documents[shard]
    record = self._num_pages(shard) + k // NAMES_PER_RECORD
    return self._record(shard, record, document)[k % NAMES_PER_RECORD]

  def __getstate__(self):
    return self.directory, self._cache_bytes, self.fingerprint

  def __setstate__(self, state):
    directory, self._cache_bytes, fingerprint = state
    self._open(directory)
    if self.fingerprint != fingerprint:
      raise StoreError(
        f'{directory} was replaced while in use: it is {self.fingerprint} now,'
        f' and was {fingerprint}. Start the run again'
      )

  def _open(self, directory):
    self.directory = directory
    index = read_index(directory)
    self.settings: dict[str, Any] = index.settings
    self.accounts = index.accounts
    self.fingerprint = index.fingerprint
    self.tokenizer_fingerprint = index.tokenizer_fingerprint
    self.domain_names, self.domain_ids = index.domain_names, index.domain_ids
    self.lengths = np.diff(index.offsets)
    self._offsets, self._checksums = index.offsets, index.checksums
    self._page_tokens, self._shards = index.page_tokens, index.shards
    self._first_documents, self._first_tokens, self._first_records = (
      [0, *itertools.accumulate(counts)]
      for counts in zip(*(shard[:3] for shard in self._shards), strict=True)
    )
    self._paths = [
      directory / shard_name(i, len(self._shards))
      for i in range(len(self._shards))
    ]
    # All at once, which takes microseconds each: a shard that is missing or
    # truncated comes up at the start of a run, and not in the midst of it.
    self._readers = OpenFiles(
      lambda i: open_shard(self._paths[i], self._shards[i]),
      len(self._shards),
      str(directory),
    )
    self._start_cache()

  def _start_cache(self):
    self._cache = collections.OrderedDict()
    self._cached_bytes = 0
    self._lock = threading.Lock()
    self._pid = os.getpid()

  def _shard_of(self, document):
    if not 0 <= document < len(self):
      raise IndexError(
        f'document {document} of a store of {len(self)} documents'
      )
    return bisect.bisect_right(self._first_documents, document) - 1

  def _num_pages(self, shard):
    return num_records(0, self._shards[shard].tokens, self._page_tokens)

  def _record(self, shard, record, document):
    """A page as (tokens, mask), or a list of names, from the cache if there.

    It is `document` that asks for it, which is for messages.
    """
    if self._pid != os.getpid():
      # A thread that held the lock does not exist in a forked child.
      self._start_cache()
    key = self._first_records[shard] + record
    with self._lock:
      if key in self._cache:
        self._cache.move_to_end(key)
        return self._cache[key][0]
    # Outside the lock, so that threads decompress side by side.
    try:
      value, num_bytes = self._read_record(shard, record, key)
    except (RuntimeError, ValueError) as error:
      raise StoreError(
        f'{self._paths[shard]}: document {document} cannot be read (record'
        f' {record}: {error}). verify_store lists all the damage. {AGAIN}'
      ) from error
    with self._lock:
      if key not in self._cache:
        self._cache[key] = value, num_bytes
        self._cached_bytes += num_bytes
      while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
        _, (_, num_bytes) = self._cache.popitem(last=False)
        self._cached_bytes -= num_bytes
    return value

  def _read_record(self, shard, record, key):
    content = read_checked(
      self._readers[shard], record, int(self._checksums[key])
    )
    if record >= self._num_pages(shard):
      return json.loads(content), len(content)
    start = record * self._page_tokens
    length = min(self._page_tokens, self._shards[shard].tokens - start)
    tokens, mask = page_from_record(content, length)
    return (tokens, mask), tokens.nbytes + (0 if mask is None else mask.nbytes)


def open_shard(path: Path, counts: ShardCounts) -> ArrayRecordReader:
  """Opens a shard, and compares it to what the index says of it.

  Raises:
    StoreError: it is missing, truncated, or not as it was written.
  """
  try:
    num_bytes = path.stat().st_size
    if num_bytes != counts.bytes:
      raise StoreError(
        f'{path} is damaged: it has {num_bytes} bytes, and {counts.bytes} were'
        f' written. {AGAIN}'
      )
    reader = ArrayRecordReader(
      str(path), options=READER_OPTIONS, file_reader_buffer_size=32_768
    )
    found = reader.num_records()
  except OSError as error:
    raise StoreError(
      f'cannot read the store {path}: {error.strerror}. {AGAIN}'
    ) from error
  except RuntimeError as error:
    raise StoreError(
      f'{path} cannot be opened by ArrayRecord ({error}). {AGAIN}'
    ) from error
  if found != counts.records:
    # A damaged footer reads as a file without records.
    raise StoreError(
      f'{path} is damaged: it has {found} records, and {counts.records} were'
      f' written. {AGAIN}'
    )
  return reader


def read_checked(
  reader: ArrayRecordReader, record: int, checksum: int
) -> bytes:
  """One record, compared to its checksum.

  Raises:
    RuntimeError: ArrayRecord cannot read it.
    ValueError: it is not what was written.
  """
  # A range of one: `read([record])` costs a copy of the whole index, 3 ms in a
  # file of a million records. A range of many is no faster than one by one.
  (content,) = reader.read(record, record + 1)
  if (found := zlib.crc32(content)) != checksum:
    raise ValueError(f'its checksum is {found}, and {checksum} in the index')
  return content
