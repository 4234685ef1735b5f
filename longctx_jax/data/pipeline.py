"""Grain pipeline: stored documents and synthetic sources to Batches.

Everything is random access down to the row, so the batch of step s is a pure
function of (config, corpus, seed, s). A pipeline that starts at step s makes
the batches that one started at 0 would have made from there on; the data state
in a checkpoint is the step, the seed and a fingerprint of all that decides. On
how many hosts, by how many threads or processes the rows are read decides
nothing.
"""

import dataclasses
import hashlib
import json
import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import grain

from longctx_jax.batch import Batch, check_segment_ids
from longctx_jax.config_from_dict import ConfigError
from longctx_jax.data.batch_fields import batch_fields, empty_batch
from longctx_jax.data.late_batches import warn_when_late
from longctx_jax.data.mixture import ORDER, Mixture
from longctx_jax.data.prepare import Corpus
from longctx_jax.data.retrieval_conversations import RetrievalConversations
from longctx_jax.data.row_sources import (
  Origin,
  RowSource,
  StoredRows,
  select_documents,
)
from longctx_jax.data.stored_text import StoredText
from longctx_jax.data.synthetic_rows import Conversations, SyntheticRows
from longctx_jax.data.table_conversations import TableConversations
from longctx_jax.data_config import (
  READING,
  ConversationRows,
  DataConfig,
  DocumentRows,
  SyntheticSource,
  TableRows,
)

log = logging.getLogger(__name__)

# Keeps the streams of random numbers apart that one seed is drawn into.
_FIELDS_STREAM = 3
# ours: short rows are read this many tokens at a time, which spares most calls
# of each; what they are cut from is in memory twice, and stays some megabytes.
_TOKENS_TOGETHER = 524_288


class DataState(NamedTuple):
  """What a checkpoint keeps of the data side."""

  step: int
  seed: int
  fingerprint: str


class RowOrigin(NamedTuple):
  """Where a row of the run comes from, for people to read."""

  source: str  # by its name in the mixture
  number: int  # of the row, among those of its source
  epoch_len: int | None  # rows of an epoch of that source; None: has no end
  slices: list[Origin]


class BatchSource:
  """The rows of every step, by number; Grain's random-access source.

  Attributes:
    epochs: how often the run reads each source that has an end.
    fingerprint: 12 hex digits that change with any row.
    num_threads: that read it fastest.
  """

  def __init__(
    self, config: DataConfig, corpus: Corpus, *, seed: int, num_steps: int
  ):
    """Plans all rows, and says in the log how often each source is read.

    Raises:
      ConfigError: a source would be read again, and may not be.
    """
    self._config, self._seed = config, seed
    self._num_rows = num_steps * config.batch_size
    # A config file's names are sorted, those of a dictionary need not be.
    self._sources = {
      name: _row_source(name, source, config, corpus, (seed, k))
      for k, (name, source) in enumerate(sorted(config.mixture.items()))
    }
    weights = {name: config.mixture[name].weight for name in self._sources}
    self._mixture = Mixture(
      self._shares_of_rows(weights),
      seed,
      self._num_rows,
      later=[
        (entry.step * config.batch_size, self._shares_of_rows(entry.weights))
        for entry in config.weight_schedule
      ],
    )
    self.epochs = self._count_epochs()
    self.num_threads = max(s.num_threads for s in self._sources.values())
    fields = dataclasses.asdict(config)
    described = json.dumps(
      {
        'data': {k: v for k, v in fields.items() if k not in READING},
        'seed': seed,
        'order': ORDER,
        'tokenizer': corpus.tokenizer.fingerprint,
        'sources': {n: s.fingerprint for n, s in self._sources.items()},
      },
      sort_keys=True,
    )
    self.fingerprint = hashlib.sha256(described.encode()).hexdigest()[:12]

  def __len__(self) -> int:
    return self._num_rows

  def origin(self, i: int) -> RowOrigin:
    """Which source row i of the run is of, and which documents it is cut from.

    Slices are those of the row, in order.
    """
    name, k = self._mixture.source_of_example(i)
    source = self._sources[name]
    return RowOrigin(name, k, source.epoch_len, source.origins(k))

  def shares_wanted(self, first: int, stop: int) -> dict[str, float]:
    """Each source's share of the tokens of rows [first, stop) by weights."""
    rows = self._mixture.shares_wanted(first, stop)
    tokens = {name: rows[name] * s.fill for name, s in self._sources.items()}
    return {name: n / sum(tokens.values()) for name, n in tokens.items()}

  def _shares_of_rows(self, weights: Mapping[str, float]) -> dict[str, float]:
    """Shares of rows in which sources have `weights` as shares of tokens.

    A source whose rows are half empty serves twice as many.
    """
    rows = {name: weights[name] / s.fill for name, s in self._sources.items()}
    return {name: n / sum(rows.values()) for name, n in rows.items()}

  def __getitem__(self, i: int) -> Batch:
    """Row i of the run, as a Batch of [T] fields."""
    return Batch(*(field[0] for field in self.rows(i, i + 1)))

  def rows(self, first: int, stop: int) -> Batch:
    """Rows [first, stop) of the run, as a Batch of [stop - first, T] fields."""
    batch = empty_batch(stop - first, self._config.seq_len)
    together = max(1, _TOKENS_TOGETHER // self._config.seq_len)
    for begin in range(first, stop, together):
      numbers: dict[str, list[tuple[int, int]]] = {}  # in run, in source
      for i in range(begin, min(begin + together, stop)):
        name, k = self._mixture.source_of_example(i)
        numbers.setdefault(name, []).append((i, k))
      for name, pairs in numbers.items():
        rows = self._sources[name].rows([k for _, k in pairs])
        for (i, _), row in zip(pairs, rows, strict=True):
          batch_fields(
            row,
            self._config,
            step=i // self._config.batch_size,
            seed=(self._seed, _FIELDS_STREAM, i),
            out=Batch(*(field[i - first] for field in batch)),
          )
    return batch

  def _count_epochs(self):
    """Epochs of each source that has an end; logs what all serve."""
    epochs = {}
    for name, served in self._mixture.num_served().items():
      there = self._sources[name].epoch_len
      text = (
        f'data: {name} serves {served:,} rows,'
        f' at most {served * self._config.seq_len:,} tokens'
      )
      if there is None:
        log.info('%s, made as they are read', text)
        continue
      epochs[name] = served / there
      text += f', {epochs[name]:.2f} epochs of {there:,} rows'
      if served <= there:
        log.info('%s', text)
      elif self._config.on_repeat == 'warn':
        log.warning('%s: shuffled again for each epoch', text)
      else:
        raise ConfigError(
          f'data.mixture.{name} has {there:,} rows and would serve {served:,}:'
          ' add documents, lower its weight or the steps, or set'
          ' data.on_repeat=warn'
        )
    return epochs


def _row_source(name, source, config, corpus, seed) -> RowSource:
  try:
    return _make_row_source(source, config, corpus, seed)
  except ConfigError as error:
    raise ConfigError(f'data.mixture.{name}: {error}') from error


def _make_row_source(source, config, corpus, seed) -> RowSource:
  if isinstance(source, SyntheticSource):
    made = _conversations(source, corpus)
    lens = source.min_len, source.max_len
    return SyntheticRows(made, lens, config.seq_len, seed)
  if isinstance(source, ConversationRows):
    store = corpus.conversations
    return StoredRows.of_conversations(store, source, config.seq_len, seed)
  assert isinstance(source, DocumentRows)
  return StoredRows.of_documents(corpus.documents, source, config.seq_len, seed)


def _conversations(source, corpus) -> Conversations:
  """What makes the conversations of a synthetic source."""
  if isinstance(source, TableRows):
    return TableConversations(source, corpus.chat)
  text = None
  if source.reads_documents:
    documents, _ = select_documents(corpus.documents, source.domains)
    text = StoredText(corpus.documents, documents, corpus.tokenizer)
  return RetrievalConversations(source, corpus.chat, text)


class HostBatches:
  """One host's rows of every global batch, by step; for Grain.

  A host has one block of each batch, because a batch lies on the mesh so: its
  rows are split over `data` and `fsdp`, whose devices are in order of hosts.

      batch_size 4, 2 hosts      step 0      step 1
      rows of host 0             0  1        4  5
      rows of host 1                  2  3        6  7
  """

  def __init__(
    self, source: BatchSource, batch_size: int, host: tuple[int, int]
  ):
    """`host` is (index, number of hosts)."""
    self._source, self._batch_size, self._host = source, batch_size, host

  def __len__(self) -> int:
    return len(self._source) // self._batch_size

  def __getitem__(self, step: int) -> Batch:
    """The host's rows of a step, a Batch of [B / hosts, T] fields."""
    index, num_hosts = self._host
    num_rows = self._batch_size // num_hosts
    first = step * self._batch_size + index * num_rows
    batch = self._source.rows(first, first + num_rows)
    check_segment_ids(batch.segment_ids)
    return batch


def make_pipeline(
  source: BatchSource,
  batch_size: int,
  *,
  start_step: int = 0,
  host: tuple[int, int] = (0, 1),
  num_workers: int = 0,
) -> Iterator[Batch]:
  """This host's rows of each global batch from `start_step` on, read ahead.

  Args:
    source: the rows of the run.
    batch_size: rows of the global batch.
    start_step: the first step to make.
    host: (index, number of hosts); batches are [B / hosts, T].
    num_workers: processes that read, whole batches each; 0 reads in threads.
      Grain then wants absl's flags parsed, as `__main__` says they are.

  Raises:
    ConfigError: the batch does not divide over the hosts.
  """
  if batch_size % host[1]:
    raise ConfigError(
      f'data.batch_size={batch_size} does not divide over {host[1]} hosts, each'
      ' of which reads as many rows of a batch'
    )
  dataset = grain.MapDataset.source(HostBatches(source, batch_size, host))
  dataset = dataset[start_step:]
  dataset = dataset.to_iter_dataset(
    grain.ReadOptions(num_threads=source.num_threads, prefetch_buffer_size=4)
  )
  if not num_workers:
    return iter(dataset)
  options = grain.MultiprocessingOptions(num_workers=num_workers)
  return _read_in_processes(
    iter(dataset.mp_prefetch(options, worker_init_fn=_end_with_parent))
  )


def _end_with_parent(index: int, count: int) -> None:
  """Ends this reading process when its parent is killed.

  Grain only ends the processes of an iterator that is closed.
  """
  del index, count

  def wait():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def _read_in_processes(batches):
  """What `batches` gives; ends its processes, and names one that was killed."""
  try:
    yield from warn_when_late(batches)
  except RuntimeError as error:
    if 'terminated unexpectedly' not in str(error):
      raise
    raise ChildProcessError(
      'a process that reads training rows was killed, likely for want of'
      f' memory: lower data.num_workers. The same command goes on ({error})'
    ) from error
  finally:
    batches.close()
