"""Reading a whole store to list what is damaged in it."""

import concurrent.futures
import functools
import itertools
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from longctx_jax.data.store import open_shard, read_checked
from longctx_jax.data.store_format import (
  NAMES_PER_RECORD,
  StoreError,
  num_records,
  read_index,
  shard_name,
)

# ours: a few milliseconds of work, against which starting it costs nothing.
_RECORDS_PER_TASK = 256


class Damage(NamedTuple):
  """A record, or a whole shard, that cannot be read."""

  path: Path
  record: int | None  # None: all of the shard
  documents: range  # that lose tokens by it, or their names
  reason: str


class StoreReport(NamedTuple):
  """What a store should hold, and what of it is damaged."""

  documents: int
  tokens: int
  records: int
  damage: tuple[Damage, ...]

  def damaged_documents(self) -> list[int]:
    """Numbers of all documents that lose tokens or their names."""
    return sorted({d for damage in self.damage for d in damage.documents})


def verify_store(
  directory: Path | str, *, num_threads: int | None = None
) -> StoreReport:
  """Reads every record and compares it to its checksum.

  Raises:
    StoreError: the index is damaged, so that nothing can be said of the rest.
  """
  directory = Path(directory)
  index = read_index(directory)
  damage = []
  documents = tokens = records = 0
  with concurrent.futures.ThreadPoolExecutor(
    num_threads or os.cpu_count()
  ) as pool:
    # A shard at a time: there may be more of them than files may be open.
    for i, counts in enumerate(index.shards):
      path = directory / shard_name(i, len(index.shards))
      after = documents + counts.documents
      ends = index.offsets[documents : after + 1] - tokens
      shard = _Shard(path, documents, ends, index.page_tokens)
      checksums = index.checksums[records : records + counts.records]
      try:
        reader = open_shard(path, counts)
      except StoreError as error:
        everything = range(documents, after)
        damage.append(Damage(path, None, everything, str(error)))
      else:
        starts = range(0, counts.records, _RECORDS_PER_TASK)
        found = pool.map(
          functools.partial(_verify_records, shard, reader),
          starts,
          [checksums[start : start + _RECORDS_PER_TASK] for start in starts],
        )
        damage += itertools.chain.from_iterable(found)
      documents = after
      tokens += counts.tokens
      records += counts.records
  return StoreReport(documents, tokens, records, tuple(damage))


class _Shard(NamedTuple):
  path: Path
  first_document: int
  offsets: np.ndarray  # int64 [documents + 1], from the start of the shard
  page_tokens: int

  def documents_in(self, record) -> range:
    """Documents that have tokens in a page, or names in a record of names."""
    num_documents = len(self.offsets) - 1
    num_pages = num_records(0, int(self.offsets[-1]), self.page_tokens)
    if record >= num_pages:
      first = (record - num_pages) * NAMES_PER_RECORD
      last = min(first + NAMES_PER_RECORD, num_documents) - 1
    else:
      start = record * self.page_tokens
      end = min(start + self.page_tokens, self.offsets[-1]) - 1
      first, last = np.searchsorted(self.offsets, [start, end], 'right') - 1
    return range(
      self.first_document + int(first), self.first_document + int(last) + 1
    )


def _verify_records(shard, reader, start, checksums) -> list[Damage]:
  damage = []
  for record, checksum in enumerate(checksums.tolist(), start):
    try:
      read_checked(reader, record, checksum)
    except (RuntimeError, ValueError) as error:
      documents = shard.documents_in(record)
      damage.append(Damage(shard.path, record, documents, str(error)))
  return damage
