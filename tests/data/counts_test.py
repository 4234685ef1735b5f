"""Counts: nothing is lost, whoever counted it."""

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx_jax.data.counts import Counts, check_accounts

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


def test_both_stores_tell_the_same_of_all_documents():
  training = count([('kept', 5), ('kept', 8), ('kept', 7), ('empty', 0)])
  training.move('heldout', 7)
  training.move('double', 8)
  assert training.as_dict()['documents'] == {
    **{'seen': 4, 'kept': 1, 'heldout': 1, 'double': 1, 'empty': 1},
  }
  assert training.of_heldout().as_dict() == {
    'documents': {'double': 1, 'empty': 1, 'kept': 1, 'seen': 4, 'training': 1},
    'chars': {'double': 8, 'kept': 7, 'seen': 20, 'training': 5},
  }
  both = training.of_both()
  assert both.chars == {'seen': 20, 'kept': 12, 'double': 8, 'empty': 0}
  for counts in (training, training.of_heldout(), both):
    counts.check()
    assert Counts.from_dict(json.loads(json.dumps(counts.as_dict()))) == counts


@pytest.mark.parametrize(
  ('accounts', 'stored', 'message'),
  [
    ({'web': [('kept', 5)]}, {'web': 2}, 'of web, .* 1 .* kept, and 2 are sto'),
    ({'web': [('kept', 5)]}, {}, 'of web, .* 1 .* kept, and 0 are stored'),
    ({'web': []}, {'code': 1}, 'of code, .* 0 .* kept, and 1 are stored'),
  ],
)
def test_a_store_of_other_documents_than_were_kept_is_found(
  accounts, stored, message
):
  accounts = {name: count(events) for name, events in accounts.items()}
  with pytest.raises(ValueError, match=message):
    check_accounts(accounts, stored)
  accounts['web'].see()
  with pytest.raises(ValueError, match='of web, the counts do not add up: '):
    check_accounts(accounts, {'web': accounts['web'].documents['kept']})
