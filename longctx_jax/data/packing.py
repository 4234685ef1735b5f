"""Planners that keep documents in one piece, or cut them where a row ends."""

import numpy as np

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.data.row_plan import RowPlan, plan_from_rows


def concat_rows(
  lengths: np.ndarray, row_len: int, rng: np.random.Generator
) -> RowPlan:
  """Shuffled documents end to end, cut every `row_len` tokens.

  What a row cuts off starts the next row (ProLong, arXiv:2410.02660, A.2, short
  data). Only the last row may be short.

      a b c | d e f g | h i     row_len 4     a b c d
                                              e f g h
                                              i . . .
  """
  order = rng.permutation(len(lengths))
  ends = np.cumsum(lengths[order])
  total = int(ends[-1]) if len(ends) else 0
  row_starts = np.arange(0, total, row_len)
  # Slices begin wherever a document or a row does.
  begins = np.union1d(row_starts, ends[:-1]).astype(np.int64)
  stops = np.append(begins[1:], total)
  nonempty = stops > begins
  begins, stops = begins[nonempty], stops[nonempty]
  at = np.searchsorted(ends, begins, side='right')
  document_starts = ends[at] - lengths[order][at]
  row_offsets = np.searchsorted(begins, np.append(row_starts, total))
  return RowPlan(
    row_len,
    documents=order[at],
    starts=begins - document_starts,
    stops=stops - document_starts,
    row_offsets=row_offsets.astype(np.int64),
  )


def whole_document_rows(
  lengths: np.ndarray, row_len: int, rng: np.random.Generator
) -> RowPlan:
  """Shuffled documents, never cut: one that doesn't fit starts the next row.

  For conversations, whose question must not be parted from its answer.

      a b c | d e f g | h     row_len 5     a b c . .
                                            d e f g h

  Raises:
    ConfigError: if a document is longer than a row.
  """
  if len(lengths) and lengths.max() > row_len:
    worst = int(lengths.argmax())
    raise ConfigError(
      f'document {worst} has {lengths[worst]} tokens and does not fit whole'
      f' into a row of {row_len}: raise data.seq_len or lower'
      ' corpus.max_conversation_len'
    )
  rows, used = [], row_len
  for document in rng.permutation(len(lengths)).tolist():
    length = int(lengths[document])
    if not length:
      continue  # would be a slice of nothing, and a segment without tokens
    if used + length > row_len:
      rows.append([])
      used = 0
    rows[-1].append((document, 0, length))
    used += length
  return plan_from_rows(rows, row_len)
