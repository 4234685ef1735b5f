"""Chunk interleaving: OLMo-core's golden vector, planner == definition."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from longctx_jax.config import ConfigError
from longctx_jax.data.interleave import (
  chunk_bounds,
  interleave_chunks,
  interleaved_rows,
  round_robin,
)

SPLITS = st.sampled_from(['equal', 'random'])
SEEDS = st.integers(0, 99)


def plan_of(lengths, row_len, seed=0, **options):
  rng = np.random.default_rng(seed)
  return interleaved_rows(np.array(lengths, np.int64), row_len, rng, **options)


def tokens_of(plan):
  """Rows of (document, position in it)."""
  return [
    [(d, t) for d, start, stop in plan.row(i) for t in range(start, stop)]
    for i in range(len(plan))
  ]


# allenai/OLMo-core, test of NumpyInterleavedFSLDataset (RECIPES 1.2).
GOLDEN = [21, 22, 11, 12, 23, 13, 14, 24, 15, 16, 25, 17, 18]


def test_definition_gives_the_golden_vector():
  documents = [[*range(21, 26)], [*range(11, 19)]]
  assert interleave_chunks(documents, 4) == GOLDEN


def test_planner_gives_the_golden_vector():
  # The documents in the order in which the shuffle takes them.
  order = np.random.default_rng(0).permutation(2).tolist()
  documents = dict(zip(order, [range(21, 26), range(11, 19)], strict=True))
  plan = plan_of(
    [len(documents[0]), len(documents[1])],
    16,
    docs_per_row=2,
    num_chunks=4,
    split='equal',
  )
  assert [[documents[d][t] for d, t in row] for row in tokens_of(plan)] == [
    GOLDEN
  ]


def test_round_robin_skips_what_has_run_out():
  chunks = [['a1', 'a2', 'a3'], ['b1'], [], ['c1', 'c2']]
  assert round_robin(chunks) == ['a1', 'b1', 'c1', 'a2', 'c2', 'a3']


@given(st.integers(0, 50), st.integers(1, 8), SPLITS, SEEDS)
def test_chunks_cover_a_document_and_none_is_empty(length, num, split, seed):
  bounds = chunk_bounds(length, num, split, np.random.default_rng(seed))
  assert len(bounds) == min(num, length)
  assert all(start < stop for start, stop in bounds)
  covered = [t for start, stop in bounds for t in range(start, stop)]
  assert covered == list(range(length))


@given(st.integers(1, 50), st.integers(1, 8))
def test_equal_chunks_differ_by_one_token_at_most(length, num):
  sizes = [stop - start for start, stop in chunk_bounds(length, num, 'equal')]
  assert sizes == sorted(sizes, reverse=True)
  assert sizes[0] - sizes[-1] <= 1


def test_random_chunks_are_cut_anywhere():
  rng = np.random.default_rng(0)
  cuts = {chunk_bounds(6, 2, 'random', rng)[0][1] for _ in range(200)}
  assert cuts == {1, 2, 3, 4, 5}


@given(
  st.lists(st.integers(0, 12), max_size=12),
  st.integers(1, 4),
  st.integers(1, 5),
  SPLITS,
  SEEDS,
)
@example([], 2, 2, 'equal', 0)
@example([0], 2, 2, 'random', 0)
def test_planner_interleaves_as_the_definition_does(
  lengths, docs_per_row, num_chunks, split, seed
):
  plan = plan_of(
    lengths,
    12 * docs_per_row,
    seed,
    docs_per_row=docs_per_row,
    num_chunks=num_chunks,
    split=split,
  )
  # The planner's own draws again: its shuffle, then the cuts of each document.
  rng = np.random.default_rng(seed)
  rng.permutation(np.count_nonzero(lengths))
  for row in tokens_of(plan):
    documents = [
      [(d, t) for t in range(lengths[d])]
      for d in dict.fromkeys(d for d, _ in row)
    ]
    expected = interleave_chunks(documents, num_chunks, split=split, rng=rng)
    assert row == expected


@given(
  st.lists(st.integers(0, 60), max_size=12),
  st.integers(1, 4),
  st.integers(1, 5),
  st.integers(4, 30),
  SPLITS,
  SEEDS,
)
def test_rows_are_full_of_documents_and_keep_every_token_once(
  lengths, docs_per_row, num_chunks, row_len, split, seed
):
  plan = plan_of(
    lengths,
    row_len,
    seed,
    docs_per_row=docs_per_row,
    num_chunks=num_chunks,
    split=split,
  )
  rows = tokens_of(plan)
  assert sorted(token for row in rows for token in row) == [
    (d, t) for d, length in enumerate(lengths) for t in range(length)
  ]
  assert all(0 < len(row) <= row_len for row in rows)
  # A document longer than its share of a row counts as several.
  piece_len = row_len // docs_per_row
  for i, row in enumerate(rows):
    pieces = {}
    for document, t in row:
      pieces.setdefault((document, t // piece_len), []).append(t)
    assert all(piece == sorted(piece) for piece in pieces.values())
    # Whole pieces: none is parted over two rows.
    for (document, k), piece in pieces.items():
      left = lengths[document] - k * piece_len
      assert len(piece) == min(piece_len, left)
    if i < len(rows) - 1:
      assert len(pieces) >= docs_per_row


@pytest.mark.parametrize(
  'options',
  [
    {'docs_per_row': 0, 'num_chunks': 2},
    {'docs_per_row': 2, 'num_chunks': 0},
    {'docs_per_row': 9, 'num_chunks': 2},
  ],
)
def test_numbers_that_make_no_sense_are_named(options):
  with pytest.raises(ConfigError) as error:
    plan_of([5, 8], 8, split='equal', **options)
  for name, value in options.items():
    assert f'{name}={value}' in str(error.value)
  assert 'row_len=8' in str(error.value)
