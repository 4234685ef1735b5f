"""Packing: drawn rows, and no token lost, doubled or out of its document."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from longctx_jax.config import ConfigError
from longctx_jax.data.packing import concat_rows, whole_document_rows

LENGTHS = st.lists(st.integers(0, 30), max_size=20)


def plan_of(planner, lengths, row_len, seed=0):
  rng = np.random.default_rng(seed)
  return planner(np.array(lengths, np.int64), row_len, rng)


def tokens_of(plan):
  """Rows of (document, position in it)."""
  return [
    [(d, t) for d, start, stop in plan.row(i) for t in range(start, stop)]
    for i in range(len(plan))
  ]


def drawn(planner, texts, row_len):
  """Rows as text, of documents that the shuffle brings into this order."""
  order = np.random.default_rng(0).permutation(len(texts)).tolist()
  text_of = dict(zip(order, texts, strict=True))
  lengths = [len(text_of[d]) for d in range(len(texts))]
  rows = tokens_of(plan_of(planner, lengths, row_len))
  return [''.join(text_of[d][t] for d, t in row) for row in rows]


def test_concat_cuts_documents_where_a_row_ends():
  assert drawn(concat_rows, ['abc', 'defg', 'hi'], 4) == ['abcd', 'efgh', 'i']


def test_whole_starts_a_row_with_what_does_not_fit():
  assert drawn(whole_document_rows, ['abc', 'defg', 'h'], 5) == ['abc', 'defgh']


@given(LENGTHS, st.integers(1, 40), st.integers(0, 99))
@example([], 4, 0)
@example([0], 4, 0)
@example([0, 0, 3, 0], 4, 0)
@example([7], 3, 0)
@example([8], 4, 0)
def test_concat_keeps_every_token_once_and_in_order(lengths, row_len, seed):
  plan = plan_of(concat_rows, lengths, row_len, seed)
  rows = tokens_of(plan)
  assert all(len(row) == row_len for row in rows[:-1])
  assert all(0 < len(row) <= row_len for row in rows)
  assert (plan.stops > plan.starts).all()
  # Read end to end, each document is there once, whole and in one piece.
  order = list(dict.fromkeys(plan.documents.tolist()))
  assert [token for row in rows for token in row] == [
    (document, t) for document in order for t in range(lengths[document])
  ]
  assert sorted(order) == np.flatnonzero(lengths).tolist()


@given(LENGTHS, st.integers(0, 10), st.integers(0, 99))
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


@pytest.mark.parametrize('planner', [concat_rows, whole_document_rows])
def test_the_seed_decides_the_order(planner):
  lengths = list(range(1, 30))
  plans = [plan_of(planner, lengths, 32, seed).fingerprint() for seed in (0, 1)]
  assert plans[0] != plans[1]
  assert plan_of(planner, lengths, 32, 0).fingerprint() == plans[0]
