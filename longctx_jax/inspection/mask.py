"""The attention mask of a row, small enough to look at.

A row of 512K tokens has 137 billion causal pairs. Each cell of the picture is
a block of queries against a block of keys, and shows the share of its pairs
that attend, counted exactly and without making the mask.
"""

import io
import itertools
from typing import NamedTuple

import matplotlib
import matplotlib.image
import numpy as np

from longctx_jax.batch import check_segment_ids


class MaskCells(NamedTuple):
  """A row's mask by blocks of tokens: those of queries, by those of keys."""

  edges: np.ndarray  # int64 [n + 1], where the blocks begin and end
  pairs: np.ndarray  # int64 [n, n], how many attend

  @property
  def shares(self) -> np.ndarray:
    """Share of each cell's pairs that attend: float64 [n, n]."""
    lens = np.diff(self.edges)
    return self.pairs / np.outer(lens, lens)

  @property
  def num_pairs(self) -> int:
    """Pairs of the row that attend."""
    return int(self.pairs.sum())

  @property
  def num_causal(self) -> int:
    """Pairs that would attend if the row were one document, without padding."""
    T = int(self.edges[-1])
    return T * (T + 1) // 2


def mask_cells(segment_ids: np.ndarray, max_cells: int = 256) -> MaskCells:
  """Counts the pairs that attend in at most `max_cells` x `max_cells` cells.

      segment_ids   1 1 1 2 2 0      mask     1 . . . . .
      max_cells 3                             1 1 . . . .
      pairs         3 . .                     1 1 1 . . .
                    2 2 .                     . . . 1 . .
                    . 1 1                     . . . 1 1 .
                                              . . . . . .

  Args:
    segment_ids: [T] of one row.
    max_cells: along either side.

  Raises:
    ValueError: segment ids do not count from 1 in steps of 1.
  """
  segment_ids = np.asarray(segment_ids)
  check_segment_ids(segment_ids[None])
  T = len(segment_ids)
  block_len = -(-T // max_cells)
  edges = np.append(np.arange(0, T, block_len), T)
  index = np.arange(T)
  begins = np.diff(segment_ids, prepend=-1) != 0
  # A query attends to keys [first, last), which are its segment up to itself.
  first = np.maximum.accumulate(np.where(begins, index, 0))
  last = np.where(segment_ids > 0, index + 1, first)
  pairs = np.empty((len(edges) - 1, len(edges) - 1), np.int64)
  for i, (start, stop) in enumerate(itertools.pairwise(edges)):
    low, high = first[start:stop, None], last[start:stop, None]
    # Keys before each edge that a query attends to, added up over queries.
    before_edge = (np.clip(edges, low, high) - low).sum(axis=0)
    pairs[i] = np.diff(before_edge)
  return MaskCells(edges, pairs)


def mask_png(shares: np.ndarray) -> bytes:
  """A picture of one pixel a cell: white where nothing attends, else blue.

  Even a single pair shows: the faintest blue is no white.
  """
  colours = matplotlib.colormaps['Blues'](0.3 + 0.7 * shares, bytes=True)
  colours[shares == 0] = 255
  out = io.BytesIO()
  matplotlib.image.imsave(
    out, colours[..., :3].copy(), format='png', metadata={'Software': None}
  )
  return out.getvalue()
