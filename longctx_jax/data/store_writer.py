"""Writing a store: shards, side by side or one after another, then the index.

`write_store` does it all in one process. A pipeline over many does the same in
three steps:

    partial = begin_store(directory)
    shards = [write_shard(partial / f'{i}', documents), ...]   # anywhere
    finish_store(directory, shards, ...)
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from longctx_jax.data import store_format
from longctx_jax.data.counts import Counts
from longctx_jax.data.disk import publish, sync_file
from longctx_jax.data.record_places import RecordFile, find_places
from longctx_jax.data.store_format import (
  NAMES_PER_RECORD,
  PAGE_TOKENS,
  ShardCounts,
  StoreError,
  StoreIndex,
)

log = logging.getLogger(__name__)

# ours: 2 GB or less, so that a shard is copied again in minutes, and 40 billion
# tokens are 40 files to hold open.
SHARD_TOKENS = 1_000_000_000
MAX_DOMAINS = 65_536  # what domains.npy can tell apart
Compression = Literal['none', 'zstd']


class StoredDocument(NamedTuple):
  """A tokenised document or conversation."""

  name: str
  domain: str
  tokens: np.ndarray  # [T] int32
  loss_mask: np.ndarray | None  # [T], 0 = not trained on; None: all are


class Shard(NamedTuple):
  """A shard that is written: its file, and its part of the index."""

  path: Path
  counts: ShardCounts
  lengths: np.ndarray  # int64 [documents], tokens
  domain_ids: np.ndarray  # int64 [documents], into domain_names
  domain_names: tuple[str, ...]
  checksums: np.ndarray  # uint32 [records]
  page_tokens: int
  # int64 [2, records], see `record_places.py`; None: only ArrayRecord knows.
  places: np.ndarray | None = None


def write_store(
  directory: Path,
  documents: Iterable[StoredDocument],
  *,
  tokenizer_fingerprint: str,
  settings: dict[str, Any],
  accounts: Mapping[str, Counts] | None = None,
  compression: Compression = 'none',
  page_tokens: int | None = None,
  shard_tokens: int = SHARD_TOKENS,
) -> None:
  """Writes a store, which replaces the one that `directory` may hold.

  It grows in a neighbour named `directory` + '.partial' and is renamed at the
  end: a run that is killed leaves no store, or the old one. A shard ends with
  the document that brings it to `shard_tokens`. A store of no documents has one
  shard, which is empty.

  Args:
    settings: what the documents were made from, for the manifest.
    accounts: what became of the documents of each domain, for the manifest;
      looked at when the last document has been taken.
    compression: how pages are packed; zstd takes half the room, or less.
    page_tokens: None takes what suits the compression.

  Raises:
    ValueError: a document is malformed.
    StoreError: `directory` holds something other than a store.
    OSError: the disk is full, or the like; nothing is left behind.
  """
  directory = Path(directory)
  try:
    partial = begin_store(directory)
    rest, shards = iter(documents), []

    def write(part):
      path = partial / str(len(shards))
      shards.append(
        write_shard(
          path, part, compression=compression, page_tokens=page_tokens
        )
      )

    for first in rest:
      write(_until_full(first, rest, shard_tokens))
    if not shards:
      write(())
    finish_store(
      directory,
      shards,
      tokenizer_fingerprint=tokenizer_fingerprint,
      settings=settings,
      accounts=accounts,
    )
  except OSError as error:
    raise OSError(f'cannot write the store {directory}: {error}') from error
  finally:
    shutil.rmtree(_neighbour(directory, 'partial'), ignore_errors=True)


def _until_full(first, rest, shard_tokens) -> Iterator[StoredDocument]:
  yield first
  total = len(first.tokens)
  while total < shard_tokens:
    try:
      document = next(rest)
    except StopIteration:
      return
    yield document
    total += len(document.tokens)


def begin_store(directory: Path) -> Path:
  """Makes an empty directory for the shards of a store, and returns it.

  Raises:
    StoreError: `directory` holds something other than a store.
  """
  if directory.exists() and not _may_replace(directory):
    raise StoreError(
      f'{directory} is not a store; move it away, or choose another directory'
    )
  partial = _neighbour(directory, 'partial')
  replaced = _neighbour(directory, 'replaced')
  if replaced.exists() and not directory.exists():
    # A run was killed between its two renames: this is all there is.
    os.replace(replaced, directory)
  for left_over in (partial, replaced):
    if left_over.exists():
      shutil.rmtree(left_over)
  partial.mkdir(parents=True)
  return partial


def finish_store(
  directory: Path,
  shards: Sequence[Shard],
  *,
  tokenizer_fingerprint: str,
  settings: dict[str, Any],
  accounts: Mapping[str, Counts] | None = None,
) -> None:
  """Makes a store of `shards`, which lie where `begin_store` said.

  Documents are numbered in the order of `shards`, and the fingerprint depends
  on it, and on how documents fall into shards. Shards that are empty are left
  out, unless all are. Files of no shard, such as those of a failed attempt at
  one, are removed.

  Raises:
    ValueError: there are no shards, or other documents than `accounts` say.
  """
  partial = _neighbour(directory, 'partial')
  if not shards:
    raise ValueError('there are no shards, not even an empty one')
  # One that is empty spares whoever reads a store the case of none.
  shards = [s for s in shards if s.counts.documents] or [shards[0]]
  index = _join(shards, tokenizer_fingerprint, settings, accounts or {})
  for file in set(partial.iterdir()) - {shard.path for shard in shards}:
    file.unlink()
  for i, shard in enumerate(shards):
    name = store_format.shard_name(i, len(shards))
    os.replace(shard.path, partial / name)
  store_format.write_index(partial, index)
  if directory.exists():
    # Removing takes a while; a run killed meanwhile would leave half a store.
    replaced = _neighbour(directory, 'replaced')
    os.replace(directory, replaced)
    publish(partial, directory)
    shutil.rmtree(replaced)
  else:
    publish(partial, directory)


def _neighbour(directory, suffix) -> Path:
  return directory.with_name(f'{directory.name}.{suffix}')


def _may_replace(directory):
  return directory.is_dir() and (
    (directory / store_format.MANIFEST).is_file()
    or not any(directory.iterdir())
  )


def _join(shards, tokenizer_fingerprint, settings, accounts) -> StoreIndex:
  """One index of all shards; their domains are numbered in order of names."""
  domain_names = sorted({name for s in shards for name in s.domain_names})
  if len(domain_names) > MAX_DOMAINS:
    raise ValueError(
      f'{len(domain_names)} domains are more than the {MAX_DOMAINS} that a'
      ' store tells apart: give fewer documents a domain of their own'
    )
  page_tokens = {shard.page_tokens for shard in shards}
  if len(page_tokens) > 1:
    raise ValueError(f'shards have pages of different sizes: {page_tokens}')
  number = {name: i for i, name in enumerate(domain_names)}
  domain_ids = [
    np.array([number[name] for name in s.domain_names])[s.domain_ids]
    for s in shards
  ]
  lengths = np.concatenate([shard.lengths for shard in shards])
  content = hashlib.sha256(''.join(s.counts.sha256 for s in shards).encode())
  places = [shard.places for shard in shards if shard.places is not None]
  return StoreIndex(
    offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    domain_ids=np.concatenate(domain_ids).astype(np.uint16),
    checksums=np.concatenate([shard.checksums for shard in shards]),
    # Of all records or of none, so that there are not two ways within a store.
    places=np.hstack(places) if len(places) == len(shards) else None,
    domain_names=tuple(domain_names),
    shards=tuple(shard.counts for shard in shards),
    page_tokens=page_tokens.pop(),
    settings=settings,
    fingerprint=content.hexdigest()[:12],
    tokenizer_fingerprint=tokenizer_fingerprint,
    accounts=dict(accounts),
  )


def write_shard(
  path: Path,
  documents: Iterable[StoredDocument],
  *,
  compression: Compression = 'none',
  page_tokens: int | None = None,
) -> Shard:
  """Writes documents to `path`; memory holds their names, and one of them.

  Arguments are those of `write_store`.

  Raises:
    ValueError: a document is malformed.
    OSError: the disk is full, or the like.
  """
  names, lengths, domain_ids, domain_names = [], [], [], {}
  page_tokens = page_tokens or PAGE_TOKENS[compression]
  records = _Records(path, compression)
  try:
    pages = _Pages(records, page_tokens)
    for document in documents:
      lengths.append(pages.add(document))
      names.append(document.name)
      domain_ids.append(
        domain_names.setdefault(document.domain, len(domain_names))
      )
    pages.flush()
    for i in range(0, len(names), NAMES_PER_RECORD):
      records.write(json.dumps(names[i : i + NAMES_PER_RECORD]).encode())
    records.close()
  except BaseException:
    # Half a shard must not take the room that a full disk lacks.
    with contextlib.suppress(OSError):
      records.close()
    path.unlink(missing_ok=True)
    raise
  # Whoever goes on after a power failure takes the shard for written.
  sync_file(path)
  places = None
  if compression == 'none':
    places = find_places(RecordFile(path), records.checksums)
    if places is None:
      log.warning('%s: ArrayRecord wrote it in a way of its own', path)
  lengths, domain_ids = np.array([lengths, domain_ids], np.int64)
  records.content.update(lengths.tobytes() + domain_ids.tobytes())
  records.content.update(json.dumps(list(domain_names)).encode())
  counts = ShardCounts(
    documents=len(names),
    tokens=int(lengths.sum()),
    records=len(records.checksums),
    bytes=path.stat().st_size,
    sha256=records.content.hexdigest(),
  )
  return Shard(
    path,
    counts,
    lengths,
    domain_ids,
    tuple(domain_names),
    np.array(records.checksums, np.uint32),
    page_tokens,
    places,
  )


class _Records:
  """An ArrayRecord file, with the checksum of each record and a hash of all."""

  def __init__(self, path, compression):
    options = store_format.WRITER_OPTIONS[compression]
    try:
      self._writer = ArrayRecordWriter(str(path), options)
    except RuntimeError as error:
      raise OSError(str(error)) from error
    self.checksums = []
    self.content = hashlib.sha256()

  def write(self, record):
    self._writer.write(record)
    self.checksums.append(zlib.crc32(record))
    self.content.update(len(record).to_bytes(8, 'little') + record)

  def close(self):
    try:
      self._writer.close()
    except RuntimeError as error:
      # The writer's threads report a full disk here, and as a RuntimeError.
      raise OSError(str(error)) from error


class _Pages:
  """Cuts documents that lie end to end into pages."""

  def __init__(self, records, page_tokens):
    self._records, self._page_tokens = records, page_tokens
    self._tokens, self._masks, self._used = [], [], 0

  def add(self, document) -> int:
    """Takes a document, and returns its number of tokens."""
    tokens, mask = _checked(document)
    start = 0
    while start < len(tokens):
      part = slice(start, start + self._page_tokens - self._used)
      self._tokens.append(tokens[part])
      self._masks.append(mask[part])
      self._used += len(self._tokens[-1])
      start = part.stop
      if self._used == self._page_tokens:
        self.flush()
    return len(tokens)

  def flush(self):
    """Writes what there is of a page, if anything."""
    if self._used:
      tokens, masks = np.concatenate(self._tokens), np.concatenate(self._masks)
      self._records.write(store_format.page_record(tokens, masks))
    self._tokens, self._masks, self._used = [], [], 0


def _checked(document):
  """Tokens (int32) and mask (bool) of a document, all of its own."""
  tokens = np.asarray(document.tokens).astype(np.int32, casting='same_kind')
  if tokens.ndim != 1 or not len(tokens):
    raise ValueError(
      f'document {document.name!r} has tokens of shape {tokens.shape};'
      ' expected one or more in a row'
    )
  if tokens.min() < 0 or (tokens != document.tokens).any():
    raise ValueError(
      f'document {document.name!r} has tokens outside [0, 2^31):'
      f' {np.min(document.tokens)} to {np.max(document.tokens)}'
    )
  if document.loss_mask is None:
    # Every element is the same one byte: a mask of ones takes no memory.
    return tokens, np.broadcast_to(np.True_, tokens.shape)
  mask = np.asarray(document.loss_mask).astype(bool)
  if mask.shape != tokens.shape:
    raise ValueError(
      f'document {document.name!r} has {len(tokens)} tokens and a loss mask of'
      f' shape {mask.shape}'
    )
  return tokens, mask
