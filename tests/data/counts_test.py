"""Counts: nothing is lost, whoever counted it."""

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx_jax.data.counts import Counts

KINDS = ['kept', 'bad_json', 'too_short', 'cut']
EVENTS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 99)))


def count(events):
  counts = Counts()
  for kind, chars in events:
    counts.see(chars)
    if kind == 'kept':
      counts.keep(chars)
    elif kind == 'cut':
      counts.keep(chars - chars // 3)
      counts.trim('cut', chars // 3)
    else:
      counts.drop(kind, chars)
  return counts


@given(st.lists(EVENTS, max_size=4))
def test_the_sum_of_parts_is_the_account_of_the_whole(parts):
  total = Counts()
  for part in parts:
    total = total + pickle.loads(pickle.dumps(count(part)))
  whole = count([event for part in parts for event in part])
  assert total == whole
  total.check()
  assert json.loads(json.dumps(total.as_dict())) == whole.as_dict()


def test_kinds_of_drop_are_listed_by_how_many():
  counts = count([('kept', 5), ('bad_json', 0), *[('too_short', 3)] * 2])
  assert list(counts.dropped().items()) == [('too_short', 2), ('bad_json', 1)]
  assert counts.as_dict() == {
    'documents': {'bad_json': 1, 'kept': 1, 'seen': 4, 'too_short': 2},
    'chars': {'kept': 5, 'seen': 11, 'too_short': 6},
  }


def test_adding_changes_neither_side():
  one, other = count([('kept', 5)]), count([('kept', 7)])
  assert (one + other).chars['kept'] == 12
  assert (one, other) == (count([('kept', 5)]), count([('kept', 7)]))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda counts: counts.see(), '2 documents were seen, and 1 kept or drop'),
    (lambda counts: counts.drop('empty'), '1 documents were seen, and 2 kept'),
    (lambda counts: counts.trim('cut', 2), '5 chars were seen, and 7 kept'),
  ],
)
def test_a_document_unaccounted_for_is_found(change, message):
  counts = count([('kept', 5)])
  change(counts)
  with pytest.raises(ValueError, match=message):
    counts.check()
