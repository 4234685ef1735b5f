"""Segment ids: what a row may hold, and what its faults are called."""

import itertools

import numpy as np
import pytest

from longctx_jax.batch import check_segment_ids


@pytest.mark.parametrize(
  'row', [[1, 1, 1, 1], [1, 2, 3, 4], [1, 1, 2, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
)
def test_rows_that_count_from_one_and_then_pad(row):
  check_segment_ids(np.array([[1, 1, 2, 2], row]))


@pytest.mark.parametrize(
  ('row', 'says'),
  [
    ([2, 2, 3, 3], 'row 1 has 2 at token 0, first'),
    ([1, 1, 3, 3], 'row 1 has 3 at token 2, after 1'),
    ([1, 2, 1, 1], 'row 1 has 1 at token 2, after 2'),
    ([1, 0, 2, 2], 'row 1 has 2 at token 2, after 0'),
    ([1, 0, 1, 1], 'row 1 has 1 at token 2, after 0'),
    ([0, 1, 1, 1], 'row 1 has 1 at token 1, after 0'),
    ([1, -1, 1, 1], 'row 1 has -1 at token 1, after 1'),
  ],
)
def test_other_rows_are_refused_by_number(row, says):
  with pytest.raises(ValueError, match=says) as error:
    check_segment_ids(np.array([[1, 1, 2, 2], row]))
  assert 'count from 1' in str(error.value)


def test_of_all_short_rows_those_that_count_token_by_token_pass():
  def is_good(row):
    allowed = {0, 1}
    for i in row:
      if i not in allowed:
        return False
      allowed = {i, i + 1, 0} if i else {0}
    return True

  good = 0
  for row in itertools.product(range(-1, 5), repeat=4):
    rows = np.array([[1, 1, 2, 2], row], np.int32)
    if is_good(row):
      good += 1
      check_segment_ids(rows)
    else:
      with pytest.raises(ValueError, match='row 1 '):
        check_segment_ids(rows)
  assert good == 1 + 1 + 2 + 4 + 8  # of 0, 1, 2, 3, 4 ids before the padding
