"""Answers recomputed from text alone: a parser per layout, a solver per task.

Neither uses the package. The parser sees a table's text, the solver what was
parsed and a question's text.
"""

import csv
import io
import json
import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx_jax.data import synthetic_tables as tables

SIZES = st.one_of(st.integers(1, 12), st.sampled_from([191, 192, 193, 300]))
SEEDS = st.integers(0, 2**32)
LISTS = ('plain', 'annotated')


@st.composite
def any_table(draw):
  layout = draw(st.sampled_from(sorted(tables.LAYOUTS)))
  return tables.make_table(
    np.random.default_rng(draw(SEEDS)),
    num_rows=draw(SIZES),
    layout=layout,
    num_columns=2 if layout in LISTS else draw(st.integers(2, 9)),
    plain_numbers=draw(st.booleans()),
  )


# An independent reader of each layout: text -> (columns or None, rows).


def read_markdown(text):
  header, rule, *lines = text.split('\n')
  assert set(rule) <= set('| -')
  split = [
    tuple(cell.strip() for cell in line.strip('|').split('|'))
    for line in (header, *lines)
  ]
  return split[0], split[1:]


def read_csv(text):
  header, *rows = (tuple(row) for row in csv.reader(io.StringIO(text)))
  return header, rows


def read_json(text):
  rows = json.loads(text)
  return tuple(rows[0]), [tuple(map(str, row.values())) for row in rows]


def read_plain(text):
  return None, [tuple(line.split()) for line in text.splitlines()]


def read_annotated(text):
  """A key and a value, and after them whatever is on the line."""
  lines = [line.strip().split(' ', 2) for line in text.split('\n')]
  return None, [(key, value) for key, value, *_ in lines]


READERS = {
  'markdown': read_markdown,
  'csv': read_csv,
  'json': read_json,
  'plain': read_plain,
  'annotated': read_annotated,
}


# An independent solver: sees the rows that were read and the question's text.


def solve(columns, rows, text):
  if columns is None:
    return solve_plain(dict(rows), rows, text)
  records = [dict(zip(columns, row, strict=True)) for row in rows]
  by_name = {record['name']: record for record in records}

  if m := re.fullmatch(r'name in row (\d+)', text):
    return records[int(m[1]) - 1]['name']
  if m := re.fullmatch(r'names of the (\d+) (largest|smallest) (\w+)', text):
    ordered = sorted(records, key=lambda record: int(record[m[3]]))
    if m[2] == 'largest':
      ordered.reverse()
    return '; '.join(record['name'] for record in ordered[: int(m[1])])
  if m := re.fullmatch(r'(.+) where (\w+) = (.+)', text):
    chosen = [record for record in records if record[m[2]] == m[3]]
    if m[1] == 'count':
      return str(len(chosen))
    if total := re.fullmatch(r'sum of (\w+)', m[1]):
      return str(sum(int(record[total[1]]) for record in chosen))
    assert m[1] == 'names in any order'
    return '; '.join(record['name'] for record in chosen)
  if m := re.fullmatch(r'(\w+) of the (\w+) of (.+)', text):
    return by_name[by_name[m[3]][m[2]]][m[1]]
  m = re.fullmatch(r'([\w; ]+) of (.+)', text)
  if m[2] not in by_name:
    return 'none'
  return '; '.join(by_name[m[2]][column] for column in m[1].split('; '))


def solve_plain(values, rows, text):
  if m := re.fullmatch(r'row (\d+)', text):
    return rows[int(m[1]) - 1][0]
  if m := re.fullmatch(r'(\d+) (largest|smallest)', text):
    ordered = sorted(rows, key=lambda row: int(row[1]))
    if m[2] == 'largest':
      ordered.reverse()
    return ' '.join(key for key, _ in ordered[: int(m[1])])
  return f'{text} {values[text]}' if text in values else 'none'


@settings(max_examples=150, deadline=None)
@given(table=any_table())
def test_a_parser_recovers_the_table_from_its_text(table):
  columns, rows = READERS[table.layout](table.text)
  assert rows == list(table.rows)
  assert columns in (table.columns, None)
  assert len(table.columns) == len(set(table.columns))


@settings(max_examples=150, deadline=None)
@given(table=any_table(), seed=SEEDS)
def test_a_solver_that_sees_only_text_agrees_on_every_task(table, seed):
  columns, rows = READERS[table.layout](table.text)
  rng = np.random.default_rng(seed)
  for task in tables.offered_tasks(table.columns):
    question = tables.ask(rng, table, task)
    assert question.task == task
    assert solve(columns, rows, question.text) == question.answer


@settings(max_examples=100, deadline=None)
@given(num_rows=SIZES, seed=SEEDS, numbers=st.booleans())
def test_a_search_for_any_key_finds_its_own_line_alone(num_rows, seed, numbers):
  table = tables.make_table(
    np.random.default_rng(seed),
    num_rows=num_rows,
    layout='annotated',
    num_columns=2,
    plain_numbers=numbers,
  )
  text = ' ' + table.text.casefold()
  for key, value in table.rows:
    [line] = re.findall(rf'\b{key.casefold()}\b.*', text)
    assert f'{line} '.startswith(f'{key} {value} '.casefold())
  absent = tables.ask(np.random.default_rng(seed), table, 'absent').text
  assert not re.search(rf'\b{absent.casefold()}\b', text)
