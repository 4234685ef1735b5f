"""The picture of the mask against the mask itself."""

import io

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx_jax.inspection.mask import mask_cells, mask_png
from longctx_jax.ops.attention import attention_mask, places


def ids_of(lens, pad):
  return np.append(np.repeat(np.arange(len(lens)) + 1, lens), [0] * pad).astype(
    np.int32
  )


def test_cells_are_those_drawn():
  cells = mask_cells(np.array([1, 1, 1, 2, 2, 0]), 3)
  assert cells.edges.tolist() == [0, 2, 4, 6]
  assert cells.pairs.tolist() == [[3, 0, 0], [2, 2, 0], [0, 1, 1]]
  assert cells.shares.tolist() == [
    [0.75, 0, 0],
    [0.5, 0.5, 0],
    [0, 0.25, 0.25],
  ]
  assert (cells.num_pairs, cells.num_causal) == (9, 21)


@settings(deadline=None)
@given(
  lens=st.lists(st.integers(1, 9), min_size=1, max_size=6),
  max_cells=st.integers(1, 70),
  is_full=st.booleans(),
)
def test_shares_are_those_of_the_mask(lens, max_cells, is_full):
  T = 60
  rest = T - sum(lens)
  segment_ids = ids_of([*lens, rest] if is_full else lens, T - sum(lens))[:T]
  place = places(1, T, segment_ids[None], None)
  mask = np.asarray(attention_mask(place, place))[0]
  cells = mask_cells(segment_ids, max_cells)
  edges = cells.edges.tolist()
  assert len(edges) - 1 <= max_cells
  assert (edges[0], edges[-1]) == (0, T)
  for i, shares in enumerate(cells.shares):
    for j, share in enumerate(shares):
      block = mask[edges[i] : edges[i + 1], edges[j] : edges[j + 1]]
      assert share == block.mean()
  assert cells.num_pairs == mask.sum()


def test_counts_of_a_long_row_are_exact():
  """More pairs than a float32 holds, or an int32."""
  lens = [300_001, 200_000]
  cells = mask_cells(ids_of(lens, 24_287))
  assert cells.pairs.shape == (256, 256)
  assert cells.num_pairs == sum(n * (n + 1) // 2 for n in lens)
  assert cells.num_causal == 524_288 * 524_289 // 2


def test_the_picture_shows_a_single_pair_and_nothing_else():
  shares = np.zeros((3, 3))
  shares[1, 0], shares[2, 2] = 1e-9, 1
  image = matplotlib.image.imread(io.BytesIO(mask_png(shares)))
  white = (image[..., :3] == 1).all(axis=-1)
  assert white.tolist() == (shares == 0).tolist()
  assert image[2, 2, :3].sum() < image[1, 0, :3].sum() < 2.6


def test_segments_out_of_order_are_refused():
  with pytest.raises(ValueError, match='ids count from 1'):
    mask_cells(np.array([1, 2, 1]))
