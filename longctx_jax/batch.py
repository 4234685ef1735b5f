"""Batch: the one contract between the data pipeline and the model."""

from typing import Any, NamedTuple

import numpy as np


class Batch(NamedTuple):
  """What a training step reads, and all that it reads; every field is [B, T].

  Numpy on the host, `jax.Array` on the mesh. One row that packs the documents
  `11 12 13` and `21 22`, with a document mask and restarting positions:

      tokens        11 12 13 21 22  0     int32
      targets       12 13 21 22  0  0     int32, already shifted
      loss_weights   1  1  0  1  0  0     float32, 0 = not trained on
      segment_ids    1  1  1  2  2  0     int32, 1-based, 0 = padding
      positions      0  1  2  0  1  0     int32, what RoPE rotates by

  A query may attend to a key iff both have the same non-zero segment id and
  the key is not in the future. Rows of one segment (CIP) attend causally.
  """

  tokens: Any
  targets: Any
  loss_weights: Any
  segment_ids: Any
  positions: Any


def check_segment_ids(segment_ids: np.ndarray) -> None:
  """Raises ValueError unless each row counts 1 1 1 2 2 3 ..., then pads with 0.

  Attention rules out whole tiles by the extremes of their ids. Ids in any other
  order give the same result, only later: nearly every tile would be needed.
  """
  if all(map(_counts_and_pads, segment_ids)):
    return
  real = segment_ids > 0
  before = np.pad(segment_ids, ((0, 0), (1, 0)))[:, :-1]
  counts_on = (segment_ids == before) | (segment_ids == before + 1)
  # The first id is 1, and after padding there is only padding.
  starts = np.zeros_like(real)
  starts[:, 0] = True
  good = np.where(real, counts_on & ((before > 0) | starts), segment_ids == 0)
  row, t = np.argwhere(~good)[0].tolist()
  came = f'after {before[row, t]}' if t else 'first'
  raise ValueError(
    f'segment_ids: row {row} has {segment_ids[row, t]} at token {t}, {came};'
    ' ids count from 1 in steps of 1, and 0 is padding at the end'
  )


def _counts_and_pads(row):
  """Whether a row [T] is as it must be; it does not tell where it is not."""
  # Ids that begin with 1 and never fall have no 0 among them: if they are as
  # many as the row has that are not 0, then only 0 comes after them.
  used = row[: np.count_nonzero(row)]
  steps = used[1:] - used[:-1]
  rises = steps.min(initial=0) >= 0 and steps.max(initial=0) <= 1
  return rises and (not len(used) or used[0] == 1)
