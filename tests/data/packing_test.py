"""Packing: drawn rows, the slow definitions, and who is cut where.

What holds of every planner is in `planners_test.py`.
"""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks import planners
from longctx_jax.config import ConfigError
from longctx_jax.data.packing import (
  best_fit,
  best_fit_rows,
  bucket_rows,
  concat_and_drop_rows,
  concat_rows,
  whole_document_rows,
)
from tests.row_plans import drawn, runs, tokens_of

LENGTHS = st.lists(st.integers(0, 30), max_size=20)
SEEDS = st.integers(0, 99)


def plan_of(planner, lengths, row_len, seed=0, **options):
  rng = np.random.default_rng(seed)
  return planner(np.array(lengths, np.int64), row_len, rng, **options)


def test_concat_cuts_documents_where_a_row_ends():
  assert drawn(concat_rows, ['abc', 'defg', 'hi'], 4) == ['abcd', 'efgh', 'i']


def test_concat_and_drop_begins_each_row_with_a_beginning():
  texts = ['abc', 'defg', 'hi']
  assert drawn(concat_and_drop_rows, texts, 4) == ['abcd', 'hi']


def test_whole_starts_a_row_with_what_does_not_fit():
  assert drawn(whole_document_rows, ['abc', 'defg', 'h'], 5) == ['abc', 'defgh']


def test_buckets_drop_what_is_not_a_whole_piece():
  rows = plan_of(bucket_rows, [5, 1, 2], 4, bucket_len=2)
  pieces = [row[i : i + 2] for row in tokens_of(rows) for i in (0, 2)]
  assert sorted(piece for piece in pieces if piece) == [
    [(0, 0), (0, 1)],
    [(0, 2), (0, 3)],
    [(2, 0), (2, 1)],
  ]
  assert [len(row) for row in tokens_of(rows)] == [4, 2]


def test_best_fit_packs_as_the_paper_draws():
  # "Fewer Truncations", arXiv:2404.10830, Figure 1.
  plan = plan_of(best_fit_rows, [14, 7, 5, 2, 3], 8)
  assert sorted(sorted(plan.row(i)) for i in range(len(plan))) == [
    [(0, 0, 8)],
    [(0, 8, 14), (3, 0, 2)],
    [(1, 0, 7)],
    [(2, 0, 5), (4, 0, 3)],
  ]


def test_best_fit_leaves_nothing_sorted():
  rows = {
    tuple(map(tuple, tokens_of(plan_of(best_fit_rows, [8, 5, 3], 8, seed))))
    for seed in range(50)
  }
  a, b, c = ([(d, t) for t in range(n)] for d, n in enumerate([8, 5, 3]))
  assert rows == {
    (tuple(first), tuple(second))
    for first, second in [(a, b + c), (a, c + b), (b + c, a), (c + b, a)]
  }


def slow_best_fit(lengths, row_len):
  """Room left in each row: one document after the other, all rows tried."""
  rooms = []
  for length in lengths:
    fitting = [i for i, room in enumerate(rooms) if room >= length]
    if not fitting:
      rooms.append(row_len)
      fitting = [len(rooms) - 1]
    rooms[min(fitting, key=lambda i: rooms[i])] -= length
  return rooms


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(40, 60))
@example([20] * 7 + [10] * 9 + [3] * 30, 40)
@example([40, 40, 1], 40)
def test_best_fit_fills_rows_as_one_by_one_does(lengths, row_len):
  lengths = np.sort(np.array(lengths, np.int64))[::-1]
  rows = best_fit(lengths, row_len)
  rooms = slow_best_fit(lengths.tolist(), row_len)
  assert len(rows) == len(lengths)
  # Rows with equal room are interchangeable, so only their fill is compared.
  filled = np.bincount(rows, lengths)
  assert sorted(filled) == sorted(row_len - room for room in rooms)


@given(LENGTHS, st.integers(1, 40), SEEDS)
def test_best_fit_cuts_only_what_is_longer_than_a_row(lengths, row_len, seed):
  plan = plan_of(best_fit_rows, lengths, row_len, seed)
  slices = sorted(s for i in range(len(plan)) for s in plan.row(i))
  assert slices == [
    (document, start, min(start + row_len, length))
    for document, length in enumerate(lengths)
    for start in range(0, length, row_len)
  ]


@given(LENGTHS, st.integers(1, 40), SEEDS)
@example([], 4, 0)
@example([0], 4, 0)
@example([0, 0, 3, 0], 4, 0)
@example([7], 3, 0)
@example([8], 4, 0)
def test_concat_reads_end_to_end_as_shuffled_documents(lengths, row_len, seed):
  rows = tokens_of(plan_of(concat_rows, lengths, row_len, seed))
  assert all(len(row) == row_len for row in rows[:-1])
  order = list(dict.fromkeys(d for row in rows for d, _ in row))
  assert [token for row in rows for token in row] == [
    (document, t) for document in order for t in range(lengths[document])
  ]
  assert sorted(order) == np.flatnonzero(lengths).tolist()


@given(LENGTHS, st.integers(1, 40), SEEDS)
@example([4, 4], 4, 0)
@example([30], 4, 0)
def test_concat_and_drop_drops_the_ends_of_rows_alone(lengths, row_len, seed):
  rows = tokens_of(plan_of(concat_and_drop_rows, lengths, row_len, seed))
  # Every document is begun, and only the last of a full row is cut short.
  kept = [
    (d, len(positions)) for row in rows for d, positions in runs(row).items()
  ]
  assert sorted(d for d, _ in kept) == np.flatnonzero(lengths).tolist()
  for row in rows:
    positions = runs(row)
    for document, begun in positions.items():
      assert begun == list(range(len(begun)))
      if len(begun) < lengths[document]:
        assert document == list(positions)[-1]
        assert len(row) == row_len
  assert all(len(row) == row_len for row in rows[:-1])


@given(LENGTHS, st.integers(0, 10), SEEDS)
@example([], 4, 0)
@example([0], 4, 0)
@example([0, 0, 3, 0], 4, 0)
@example([7], 0, 0)
def test_whole_cuts_no_document_and_leaves_none_out(lengths, spare, seed):
  row_len = max([1, *lengths]) + spare
  plan = plan_of(whole_document_rows, lengths, row_len, seed)
  rows = [plan.row(i) for i in range(len(plan))]
  assert sorted(part for row in rows for part in row) == [
    (document, 0, length) for document, length in enumerate(lengths) if length
  ]
  sizes = [sum(stop for _, _, stop in row) for row in rows]
  assert max(sizes, default=0) <= row_len
  # No row begins before the one above it is too full for its first document.
  for size, row in zip(sizes, rows[1:], strict=False):
    assert size + row[0][2] > row_len


def test_a_document_too_long_to_stay_whole_is_named_with_both_lengths():
  with pytest.raises(ConfigError, match=r'document 1 has 9 tokens.* row of 8'):
    plan_of(whole_document_rows, [3, 9, 5], 8)


@pytest.mark.slow
def test_a_million_documents_are_planned_in_seconds():
  rows = planners.measure_all(1_000_000, 65_536)
  assert {row['planner'] for row in rows} == set(planners.PLANS)
  assert max(row['seconds'] for row in rows) < 20
  assert max(row['peak_MB'] for row in rows) < 1000
