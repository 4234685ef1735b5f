"""RowPlan: drawn example, and a fingerprint that nothing escapes."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx_jax.data.row_plan import (
  Slices,
  dropped_tokens,
  join_plans,
  plan_from_slices,
)
from tests.row_plans import plan_from_rows

SLICES = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))


def test_rows_read_as_drawn():
  # 0: a b c d e     1: x y
  rows = [
    [(0, 0, 4)],  #             a b c d
    [(0, 4, 5), (1, 0, 2)],  #  e x y .
  ]
  plan = plan_from_rows(rows, row_len=4)
  assert plan.documents.tolist() == [0, 0, 1]
  assert plan.starts.tolist() == [0, 4, 0]
  assert plan.stops.tolist() == [4, 5, 2]
  assert plan.row_offsets.tolist() == [0, 1, 3]
  assert [plan.row(i) for i in range(len(plan))] == rows


@given(st.lists(st.lists(SLICES, max_size=4), max_size=5))
def test_rows_come_back_as_they_were_given(rows):
  plan = plan_from_rows(rows, row_len=9)
  assert [plan.row(i) for i in range(len(plan))] == rows


@given(st.lists(st.lists(SLICES, min_size=1, max_size=4), max_size=5))
def test_flat_slices_and_offsets_make_the_same_plan(rows):
  flat = np.array([s for row in rows for s in row], np.int32).reshape(-1, 3)
  offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
  plan = plan_from_slices(Slices(*flat.T), offsets, 9)
  assert plan.fingerprint() == plan_from_rows(rows, 9).fingerprint()
  for field in (plan.documents, plan.starts, plan.stops, plan.row_offsets):
    assert field.dtype == np.int64


ROWS = st.lists(st.lists(SLICES, max_size=4), max_size=5)


@given(ROWS, ROWS)
def test_joined_plans_have_the_rows_of_both(first, second):
  plans = plan_from_rows(first, 9), plan_from_rows(second, 9)
  joined = plan_from_rows(first + second, 9)
  assert join_plans(*plans).fingerprint() == joined.fingerprint()


def test_what_no_row_holds_is_counted():
  plan = plan_from_rows([[(0, 0, 4)], [(0, 4, 5), (2, 1, 3)]], row_len=4)
  assert plan.num_tokens == 7
  assert dropped_tokens(plan, np.array([5, 6, 3])) == 7


@pytest.mark.parametrize('field', ['documents', 'starts', 'stops'])
@pytest.mark.parametrize('at', [0, 1, 2])
def test_fingerprint_changes_with_any_number_of_any_slice(field, at):
  plan = plan_from_rows([[(0, 0, 4)], [(0, 4, 5), (1, 0, 2)]], row_len=4)
  numbers = getattr(plan, field).copy()
  numbers[at] += 1
  other = dataclasses.replace(plan, **{field: numbers})
  assert other.fingerprint() != plan.fingerprint()


def test_fingerprint_changes_with_row_ends_and_row_length():
  slices = [(0, 0, 1), (1, 0, 1), (2, 0, 1)]
  plans = [
    plan_from_rows([slices], row_len=4),
    plan_from_rows([slices], row_len=5),
    plan_from_rows([slices[:1], slices[1:]], row_len=4),
    plan_from_rows([slices[:2], slices[2:]], row_len=4),
  ]
  assert len({plan.fingerprint() for plan in plans}) == len(plans)


def test_fingerprint_is_of_the_numbers_and_not_of_their_storage():
  plan = plan_from_rows([[(0, 0, 4)], [(0, 4, 5), (1, 0, 2)]], row_len=4)
  other = dataclasses.replace(
    plan,
    documents=plan.documents.astype(np.int32),
    starts=np.ascontiguousarray(plan.starts),
  )
  assert other.fingerprint() == plan.fingerprint()
