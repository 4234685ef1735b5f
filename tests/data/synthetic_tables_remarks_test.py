"""Properties of remarks: they fill lines, and no question is about them."""

import collections
import re
import subprocess
import sys

import numpy as np
import pytest

from longctx_jax.data import synthetic_tables as tables
from longctx_jax.data import table_values

# Another process, in which today is a day long after this one's.
SCRIPT = """
import datetime
now = datetime.datetime

class Later(now):
  @classmethod
  def now(cls, tz=None):
    return now.now(tz) + datetime.timedelta(days=500)

datetime.datetime = Later
from faker.providers import date_time
from longctx_jax.data import synthetic_tables
assert date_time.datetime is Later
print(synthetic_tables.fingerprint())
"""


def make(seed, num_rows=60, layout='annotated'):
  return tables.make_table(
    np.random.default_rng(seed),
    num_rows=num_rows,
    layout=layout,
    num_columns=2,
  )


def remarks_of(table):
  """What follows the cells on each line: '' or text after a space."""
  lines = (' ' + table.text).split('\n')
  cells = [f' {key} {value}' for key, value in table.rows]
  assert all(a.startswith(b) for a, b in zip(lines, cells, strict=True))
  return [a.removeprefix(b) for a, b in zip(lines, cells, strict=True)]


def count_remarks(text):
  """The least number of remarks of the pool that make up a line's end."""
  if not text:
    return 0
  starts = (
    r for r in table_values.remarks() if f'{text} '.startswith(f' {r} ')
  )
  return 1 + min(count_remarks(text[1 + len(r) :]) for r in starts)


def test_remarks_hold_no_key_no_newline_and_no_separator():
  keys = {key.casefold() for key in table_values.word_lists()['name']}
  pool = table_values.remarks()
  assert len(set(pool)) == len(pool) == 1_000
  for remark in pool:
    assert not re.search(r'[|;=\n]', remark)
    assert remark == ' '.join(remark.split()) != ''
    assert not keys & set(re.split(r'[^a-z]+', remark.casefold()))


def test_lines_have_none_to_as_many_remarks_as_their_table_has_at_most():
  mosts = collections.Counter()
  for seed in range(30):
    counts = {count_remarks(remark) for remark in remarks_of(make(seed))}
    assert counts == set(range(max(counts) + 1))
    mosts[max(counts)] += 1
  assert set(mosts) == {1, 2, 3}
  assert min(mosts.values()) >= 5


def test_a_table_of_another_size_from_the_same_seed_has_as_long_lines():
  for seed in range(20):
    few, many = (len(make(seed, n).text) / n for n in (2_000, 4_000))
    assert few == pytest.approx(many, rel=0.1)


def test_tables_and_remarks_do_not_change_overnight():
  run = subprocess.run(
    [sys.executable, '-c', SCRIPT],
    env={'PYTHONPATH': ':'.join(sys.path)},
    capture_output=True,
    text=True,
    check=True,
  )
  assert run.stdout.strip() == tables.fingerprint()


@pytest.mark.parametrize('layout', ['plain', 'annotated'])
def test_a_retrieval_is_answered_with_key_and_value_alone(layout):
  table = make(0, 192, layout)
  for row, (key, value) in enumerate(table.rows):
    question = tables.ask(np.random.default_rng(row), table, 'retrieve', row)
    assert question == ('retrieve', key, f'{key} {value}', row)
