"""Rows written out by hand, as the data side would give them."""

import numpy as np

from longctx_jax.batch import Batch
from longctx_jax.data.pipeline import RowOrigin
from longctx_jax.data.row_sources import Origin
from longctx_jax.inspection.counts import Counts, SourceCounts
from longctx_jax.inspection.rows import Inspection, RowView, view_row


def batch_of(tokens, segment_ids, positions=None, loss_weights=None) -> Batch:
  """A row of these tokens, the last of each segment without a target."""
  tokens = np.asarray(tokens, np.int32)
  segment_ids = np.asarray(segment_ids, np.int32)
  if positions is None:
    positions = np.arange(len(tokens))
  if loss_weights is None:
    loss_weights = np.append(segment_ids[1:] == segment_ids[:-1], False)
    loss_weights &= segment_ids > 0
  return Batch(
    tokens=tokens,
    targets=np.append(tokens[1:], 0).astype(np.int32),
    loss_weights=np.asarray(loss_weights, np.float32),
    segment_ids=segment_ids,
    positions=np.asarray(positions, np.int32),
  )


def row_of(batch, *slices, source='text') -> RowView:
  """A row whose slices are (name, domain, start, stop)."""
  origins = [Origin(*fields) for fields in slices]
  return view_row(0, RowOrigin(source, 0, 10, origins), batch)


def row_of_texts(tokenizer, texts: dict[str, str], seq_len: int = 0) -> RowView:
  """One whole document after the other, each a segment; padded."""
  parts = [tokenizer.encode(text) for text in texts.values()]
  lens = [len(part) for part in parts]
  pad = max(seq_len - sum(lens), 0)
  ids = np.repeat(np.arange(len(lens)) + 1, lens)
  return row_of(
    batch_of(
      np.pad(np.concatenate(parts), (0, pad)),
      np.pad(ids, (0, pad)),
      np.pad(np.concatenate([np.arange(n) for n in lens]), (0, pad)),
    ),
    *((name, 'd', 0, n) for name, n in zip(texts, lens, strict=True)),
  )


def inspection_of(stage, *rows: RowView) -> Inspection:
  """An inspection of these rows, with counts of nothing."""
  counts = SourceCounts('text', 'of <i>texts</i>', 1.0)
  counts = Counts(0, 1, [counts], counts, [])
  return Inspection(stage, '0123456789ab', 0, list(rows), counts, [])
