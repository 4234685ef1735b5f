"""Grain pipeline: stored documents and synthetic sources to Batches.

Everything is random access down to the row, so the batch of step s is a pure
function of (config, corpus, seed, s). A pipeline that starts at step s makes
the batches that one started at 0 would have made from there on; the data state
in a checkpoint is the step, the seed and a fingerprint of all that decides.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np

from longctx_jax.batch import Batch, check_segment_ids
from longctx_jax.data.mixture import Mixture
from longctx_jax.data.prepare import Corpus
from longctx_jax.data.row_sources import (
  Row,
  RowSource,
  StoredRows,
  SyntheticTableRows,
)
from longctx_jax.data_config import (
  ConversationRows,
  DataConfig,
  DocumentRows,
  TableRows,
)


class DataState(NamedTuple):
  """What a checkpoint keeps of the data side."""

  step: int
  seed: int
  fingerprint: str


class BatchSource:
  """The rows of every step, by number; Grain's random-access source."""

  def __init__(
    self, config: DataConfig, corpus: Corpus, *, seed: int, num_steps: int
  ):
    weights = {name: s.weight for name, s in config.mixture.items()}
    self._config = config
    self._mixture = Mixture(weights, seed)
    self._sources = {
      name: _row_source(source, config, corpus, (seed, k))
      for k, (name, source) in enumerate(sorted(config.mixture.items()))
    }
    self._num_rows = num_steps * config.batch_size
    described = json.dumps(
      {
        'data': dataclasses.asdict(config),
        'seed': seed,
        'tokenizer': corpus.tokenizer.fingerprint,
        'sources': {n: s.fingerprint for n, s in self._sources.items()},
      },
      sort_keys=True,
    )
    self.fingerprint = hashlib.sha256(described.encode()).hexdigest()[:12]

  def __len__(self) -> int:
    return self._num_rows

  def __getitem__(self, i: int) -> Batch:
    """Row i of the run, as a Batch of [T] fields."""
    name, k = self._mixture.source_of_example(i)
    return batch_fields(self._sources[name].row(k), self._config)


def _row_source(source, config, corpus, seed) -> RowSource:
  if isinstance(source, TableRows):
    return SyntheticTableRows(source, corpus.chat, config.seq_len, seed)
  if isinstance(source, ConversationRows):
    store = corpus.conversations
    return StoredRows.of_conversations(store, source, config.seq_len, seed)
  assert isinstance(source, DocumentRows)
  return StoredRows.of_documents(corpus.documents, source, config.seq_len, seed)


def batch_fields(row: Row, config: DataConfig) -> Batch:
  """The five fields of a Batch, each [T], from a row's tokens and slices.

  With a document mask each slice is a segment; without, the whole row is one,
  and the last token of a document is trained to predict the next document.
  """
  T = config.seq_len
  used = len(row.tokens)
  slice_ids = np.repeat(np.arange(len(row.slice_lens)), row.slice_lens)

  def padded(values, dtype):
    return np.pad(np.asarray(values, dtype), (0, T - used))

  segments = slice_ids + 1 if config.document_mask else np.ones(used)
  positions = np.arange(used)
  if config.restart_positions:
    slice_starts = np.cumsum(row.slice_lens) - row.slice_lens
    positions = positions - slice_starts[slice_ids]
  # Position t predicts token t + 1; the last one of the row predicts nothing.
  targets = np.append(row.tokens[1:], 0)
  trained = np.append(row.loss_mask[1:], False)
  if config.document_mask:
    trained[:-1] &= segments[1:] == segments[:-1]
  weights = trained.astype(np.float32)
  if config.loss_normalizer == 'sequence':
    trained_per_slice = np.bincount(slice_ids, weights)
    weights /= np.maximum(trained_per_slice, 1)[slice_ids]
  return Batch(
    tokens=padded(row.tokens, np.int32),
    targets=padded(targets, np.int32),
    loss_weights=padded(weights, np.float32),
    segment_ids=padded(segments, np.int32),
    positions=padded(positions, np.int32),
  )


def make_pipeline(
  source: BatchSource, batch_size: int, *, start_step: int = 0
) -> Iterator[Batch]:
  """Batches of [B, T] fields from `start_step` on, read ahead in threads."""
  dataset = grain.MapDataset.source(source)[start_step * batch_size :]
  dataset = dataset.batch(batch_size, batch_fn=stack_rows)
  # ours: a few threads hide the reading; more only fight over the interpreter.
  options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
  return iter(dataset.to_iter_dataset(options))


def stack_rows(rows: list[Batch]) -> Batch:
  """Batches of [T] fields to one Batch of [B, T] fields."""
  batch = Batch(*(np.stack(field) for field in zip(*rows, strict=True)))
  check_segment_ids(batch.segment_ids)
  return batch
