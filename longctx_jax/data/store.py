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
from longctx_jax.data.record_places import (
  RecordError,
  RecordFile,
  read_records,
)
from longctx_jax.data.store_format import (
  AGAIN,
  NAMES_PER_RECORD,
  READER_OPTIONS,
  TOKEN_DTYPES,
  ShardCounts,
  StoreError,
  num_records,
  page_from_record,
  read_index,
  shard_name,
)

# ours: 16 MB or less that are in memory whatever the cache may hold.
_PAGES_TOGETHER = 1024


class DocumentStore:
  """Random access to a store; may be pickled, and shared by threads.

  A forked child may go on using it if it is uncompressed. To read compressed
  records ArrayRecord has locks and threads of its own, and a lock that one of
  them holds at the fork is taken for ever in the child: that is refused.

  Attributes:
    directory: where it lies.
    lengths: tokens of each document, int64 [number of documents].
    domain_ids: domain of each document, an index into domain_names.
    domain_names: names of domains, in order.
    is_compressed: whether records are, or may be.
    settings: what the documents were made from.
    accounts: what became of the documents of each domain, if that was counted.
    fingerprint: 12 hex digits that change with any document.
    tokenizer_fingerprint: 12 hex digits of the tokenizer that made them.

  Raises:
    StoreError: a file is missing, damaged, or of another format version.
  """

  # ours: sixteen thousand compressed pages. One of short documents is wanted
  # again for each of them: with a fourth of this, an epoch of 200M tokens in
  # rows of 64K took about 1.5 times as much of a processor. Uncompressed ones
  # are not kept: the kernel does.
  def __init__(self, directory: Path | str, *, cache_bytes: int = 256 << 20):
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
    return self.read_many(*np.array([[document], [start], [stop]]))

  def read_many(
    self, documents: np.ndarray, starts: np.ndarray, stops: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """What `read` gives of slice after slice, end to end; int64 [n] each.

    Raises:
      IndexError: there is no such document, or it is shorter than that.
      StoreError: a page is damaged.
    """
    documents, starts, stops = map(np.asarray, (documents, starts, stops))
    if len(documents) and not len(self):  # numpy has nothing to take from
      self._check_document(int(documents[0]))
    lengths = self.lengths.take(documents, mode='clip')
    good = (documents >= 0) & (documents < len(self))
    good &= (starts >= 0) & (starts <= stops) & (stops <= lengths)
    for i in np.flatnonzero(~good)[:1].tolist():
      self._check_slice(int(documents[i]), int(starts[i]), int(stops[i]))
    shards = np.searchsorted(self._first_documents, documents, 'right') - 1
    # From here on, starts and stops are counted from the start of the shard.
    firsts = self._offsets[documents] - self._first_tokens[shards]
    starts, stops = starts + firsts, stops + firsts
    P = self._page_tokens
    pages = starts // P
    counts = np.where(stops > starts, -(-stops // P) - pages, 0)
    # One entry for each page that a slice touches.
    at = np.repeat(np.arange(len(documents)), counts)
    pages = pages[at] + np.arange(len(at)) - (np.cumsum(counts) - counts)[at]
    begins = np.maximum(starts[at] - pages * P, 0)
    ends = np.minimum(stops[at] - pages * P, P)
    tokens = np.empty(int((ends - begins).sum()), np.int32)
    mask = np.ones(len(tokens), bool)
    read = self._cached_pages if self._places is None else self._placed_pages
    into = 0
    for k in range(0, len(at), _PAGES_TOGETHER):
      part = slice(k, k + _PAGES_TOGETHER)
      after = into + int((ends[part] - begins[part]).sum())
      read(
        (shards[at][part], pages[part], documents[at][part]),
        begins[part],
        ends[part],
        tokens[into:after],
        mask[into:after],
      )
      into = after
    return tokens, mask

  def name(self, document: int) -> str:
    """Name of a document, read from the disk.

    Raises:
      IndexError: there is no such document.
      StoreError: the record is damaged.
    """
    self._check_document(document)
    shard = bisect.bisect_right(self._first_documents, document) - 1
    k = document - int(self._first_documents[shard])
    record = self._num_pages[shard] + k // NAMES_PER_RECORD
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
    # Plain views of what is mapped: numpy's own class for it is slow to index.
    self._offsets = np.asarray(index.offsets)
    self._checksums = np.asarray(index.checksums)
    self._places = None if index.places is None else np.asarray(index.places)
    self.is_compressed = self._places is None
    self.lengths = np.diff(self._offsets)
    self._page_tokens, self._shards = index.page_tokens, index.shards
    self._first_documents, self._first_tokens, self._first_records = (
      np.array([0, *itertools.accumulate(counts)])
      for counts in zip(*(shard[:3] for shard in self._shards), strict=True)
    )
    self._shard_tokens = np.array([shard.tokens for shard in self._shards])
    self._num_pages = [
      num_records(0, shard.tokens, self._page_tokens) for shard in self._shards
    ]
    self._paths = [
      directory / shard_name(i, len(self._shards))
      for i in range(len(self._shards))
    ]
    # All at once, which takes microseconds each: a shard that is missing or
    # truncated comes up at the start of a run, and not in the midst of it.
    self._files = OpenFiles(self._open_shard, len(self._shards), str(directory))
    self._start_cache()

  def _open_shard(self, i):
    """ArrayRecord's reader, or the file if records are read where they lie."""
    reader = open_shard(self._paths[i], self._shards[i])
    if self._places is None:
      return reader
    reader.close()
    return RecordFile(self._paths[i])

  def _start_cache(self):
    self._cache = collections.OrderedDict()
    self._cached_bytes = 0
    self._lock = threading.Lock()
    self._pid = os.getpid()

  def _check_slice(self, document, start, stop):
    self._check_document(document)
    if not 0 <= start <= stop <= self.lengths[document]:
      raise IndexError(
        f'tokens [{start}, {stop}) of document {document}, which has'
        f' {self.lengths[document]}'
      )

  def _check_document(self, document):
    if not 0 <= document < len(self):
      raise IndexError(
        f'document {document} of a store of {len(self)} documents'
      )

  def _record(self, shard, record, document):
    """A page as (tokens, mask), or a list of names, from the cache if there.

    It is `document` that asks for it, which is for messages.
    """
    return self._records(*([value] for value in (shard, record, document)))[0]

  def _cached_pages(self, pages, begins, ends, tokens, mask):
    """Writes [begin, end) of each page to `tokens` and `mask`, end to end.

    `pages` are shards, records of them, and the documents that ask, as
    `_record` has them.
    """
    _write_pages(self._records(*pages), begins, ends, tokens, mask)

  def _placed_pages(self, pages, begins, ends, tokens, mask):
    """As `_cached_pages`, of pages that are read where they lie."""
    contents = self._contents(*pages)
    lengths = self._page_lengths(*pages[:2])
    sizes = np.array([len(content) for content in contents])
    for dtype in TOKEN_DTYPES:
      # Most pages are alike: converting them together takes half the time.
      width = dtype.itemsize
      if (sizes == width * lengths).all():
        parts = zip(
          contents,
          (width * begins).tolist(),
          (width * ends).tolist(),
          strict=True,
        )
        wanted = b''.join([c[begin:end] for c, begin, end in parts])
        tokens[:] = np.frombuffer(wanted, dtype)
        return
    found = map(page_from_record, contents, lengths.tolist())
    _write_pages(found, begins, ends, tokens, mask)

  def _page_lengths(self, shards, records):
    """Tokens of pages: the last one of a shard may not be full."""
    starts = np.multiply(records, self._page_tokens)
    return np.minimum(self._page_tokens, self._shard_tokens[shards] - starts)

  def _contents(self, shards, records, documents):
    """Records as they were written, read where they lie."""
    keys = self._first_records[shards] + records
    try:
      return read_records(
        self._files, shards, self._places[:, keys], self._checksums[keys]
      )
    except RecordError as error:
      i = error.number
      raise self._unreadable(shards[i], records[i], documents[i], error) from (
        error
      )

  def _unreadable(self, shard, record, document, reason):
    return StoreError(
      f'{self._paths[shard]}: document {document} cannot be read (record'
      f' {record}: {reason}). {AGAIN}'
    )

  def _records(self, shards, records, documents):
    """`_record` of each; those that are not in the cache are read together."""
    if self._pid != os.getpid():
      if self.is_compressed:
        raise StoreError(
          f'{self.directory} is compressed and was opened before a fork, after'
          ' which ArrayRecord may wait for ever: start processes by spawn, or'
          ' prepare the corpus with corpus.compression=none'
        )
      # A thread that held the lock does not exist in a forked child.
      self._start_cache()
    keys = (self._first_records[shards] + records).tolist()
    found, missing = {}, {}
    with self._lock:
      for i, key in enumerate(keys):
        if key in found or key in missing:
          continue
        if key in self._cache:
          self._cache.move_to_end(key)
          found[key] = self._cache[key][0]
        else:
          missing[key] = int(shards[i]), int(records[i]), int(documents[i])
    # Outside the lock, so that another thread finds its own meanwhile.
    read = {key: self._read_record(key, *of) for key, of in missing.items()}
    with self._lock:
      for key, (value, num_bytes) in read.items():
        found[key] = value
        if key not in self._cache:
          self._cache[key] = value, num_bytes
          self._cached_bytes += num_bytes
      while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
        _, (_, num_bytes) = self._cache.popitem(last=False)
        self._cached_bytes -= num_bytes
    return [found[key] for key in keys]

  def _read_record(self, key, shard, record, document):
    """What `_record` gives, and its bytes in memory."""
    try:
      if self._places is None:
        content = read_checked(
          self._files[shard], record, int(self._checksums[key])
        )
      else:
        part = np.array([[shard], [record], [document]])
        content = bytes(self._contents(*part)[0])
      if record >= self._num_pages[shard]:
        return json.loads(content), len(content)
      (length,) = self._page_lengths([shard], [record]).tolist()
      tokens, mask = page_from_record(content, length)
    except (RuntimeError, ValueError) as error:
      if isinstance(error, StoreError):
        raise
      raise self._unreadable(shard, record, document, error) from error
    return (tokens, mask), tokens.nbytes + (0 if mask is None else mask.nbytes)


def _write_pages(pages, begins, ends, tokens, mask):
  into = 0
  for (page_tokens, page_mask), begin, end in zip(
    pages, begins.tolist(), ends.tolist(), strict=True
  ):
    after = into + end - begin
    tokens[into:after] = page_tokens[begin:end]
    if page_mask is not None:
      mask[into:after] = page_mask[begin:end]
    into = after


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
