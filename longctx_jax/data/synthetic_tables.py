"""SynL: synthetic lengthy tables, and questions with one right answer.

LongSkywork (arXiv:2406.00605) trains long-context SFT on tables made with
Faker and asks for retrieval, reasoning and sorting. Its templates, columns and
mix of tasks are not public: all of them here are ours.

Everything is a pure function of the Generator it is given. A table comes first
and its questions follow, so that one long context is supervised many times: a
single short answer in a long row teaches a small model nothing.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from longctx_jax.data import table_values
from longctx_jax.data.draws import check_weights, draw_weighted
from longctx_jax.data.table_layouts import (
  KEY_COLUMN,
  LAYOUTS,
  LINKS,
  NUMBERS,
  PLAIN_COLUMNS,
  PLAIN_LAYOUTS,
  PLAIN_WORDS,
  REPEATED,
  Table,
  draw_keys,
  estimate_rows,
  make_table,
)

__all__ = [
  'LAYOUTS',
  'TASKS',
  'Question',
  'Table',
  'ask',
  'check_answer',
  'conversation_turns',
  'draw_layout',
  'estimate_rows',
  'fingerprint',
  'make_conversation',
  'make_table',
  'offered_tasks',
  'vocabulary_text',
]

ABSENT = 'none'
ANY_ORDER = 'in any order'
MAX_SORTED = 5  # ours: the most keys that a 'sort' asks for
DEFAULT_COLUMNS = 6  # ours: one column of each role, and two more words


class Question(NamedTuple):
  """A question about a table, and the answer."""

  task: str
  text: str
  answer: str
  row: int  # the row that holds a retrieved answer, from 0; -1: no single one


# Tasks: (rng, table, row to ask about) -> Question --------------------------


def _retrieve(rng: np.random.Generator, table: Table, row: int) -> Question:
  cells = table.rows[row]
  column = int(rng.integers(1, len(table.columns)))
  text = _cell_of(table, column, cells[0])
  # A line of PLAIN_LAYOUTS answers with its cells: a small model then finds
  # the value by what stands before it, in the table as in the answer.
  plain = table.layout in PLAIN_LAYOUTS
  answer = ' '.join(cells) if plain else cells[column]
  return Question('retrieve', text, answer, row)


def _retrieve_row(rng: np.random.Generator, table: Table, row: int) -> Question:
  """Two cells or more, in the order in which the question names them."""
  cells = table.rows[row]
  others = rng.permutation(np.arange(1, len(table.columns)))
  chosen = others[: rng.integers(2, len(others) + 1)].tolist()
  text = f'{"; ".join(table.columns[c] for c in chosen)} of {cells[0]}'
  answer = '; '.join(cells[c] for c in chosen)
  return Question('retrieve_row', text, answer, row)


def _filter(rng: np.random.Generator, table: Table, row: int) -> Question:
  del rng
  condition, rows = _repeated_value(table, row, table_values.MAX_LISTED)
  keys = _join_keys(table, [cells[0] for cells in rows])
  text = f'{KEY_COLUMN}s {ANY_ORDER} where {condition}'
  return Question('filter', text, keys, -1)


def _count(rng: np.random.Generator, table: Table, row: int) -> Question:
  del rng
  condition, rows = _repeated_value(table, row, table_values.MAX_REPEATS)
  return Question('count', f'count where {condition}', str(len(rows)), -1)


def _sum(rng: np.random.Generator, table: Table, row: int) -> Question:
  del rng
  condition, rows = _repeated_value(table, row, table_values.MAX_REPEATS)
  number = _column_among(table, NUMBERS)
  total = sum(int(cells[number]) for cells in rows)
  text = f'sum of {table.columns[number]} where {condition}'
  return Question('sum', text, str(total), -1)


def _join(rng: np.random.Generator, table: Table, row: int) -> Question:
  key = table.rows[row][0]
  link = _column_among(table, LINKS)
  target = next(r for r in table.rows if r[0] == table.rows[row][link])
  column = int(rng.integers(1, len(table.columns)))
  text = f'{table.columns[column]} of the {table.columns[link]} of {key}'
  return Question('join', text, target[column], -1)


def _sort(rng: np.random.Generator, table: Table, row: int) -> Question:
  del row
  count = int(rng.integers(1, min(MAX_SORTED, len(table.rows)) + 1))
  number = _column_among(table, NUMBERS)
  largest = bool(rng.integers(2))
  ordered = sorted(
    table.rows, key=lambda cells: int(cells[number]), reverse=largest
  )
  text = f'{count} {"largest" if largest else "smallest"}'
  if table.layout not in PLAIN_LAYOUTS:
    text = f'{KEY_COLUMN}s of the {text} {table.columns[number]}'
  keys = _join_keys(table, [cells[0] for cells in ordered[:count]])
  return Question('sort', text, keys, -1)


def _position(rng: np.random.Generator, table: Table, row: int) -> Question:
  del rng
  text = f'row {row + 1}'
  if table.layout not in PLAIN_LAYOUTS:
    text = f'{KEY_COLUMN} in {text}'
  return Question('position', text, table.rows[row][0], row)


def _absent(rng: np.random.Generator, table: Table, row: int) -> Question:
  del row
  present = {cells[0] for cells in table.rows}
  key = None
  # At least a quarter of the keys is absent.
  while key is None or key in present:
    [key] = draw_keys(rng, table.layout, len(table.rows), count=1)
  column = int(rng.integers(1, len(table.columns)))
  return Question('absent', _cell_of(table, column, key), ABSENT, -1)


def _cell_of(table: Table, column: int, key: str) -> str:
  """The key ends the question: what follows it in the table is the answer."""
  plain = table.layout in PLAIN_LAYOUTS
  return key if plain else f'{table.columns[column]} of {key}'


def _repeated_value(
  table: Table, row: int, most: int
) -> tuple[str, list[tuple[str, ...]]]:
  """A condition that at most `most` rows meet, and these rows.

  Of the values that are rare enough, the first one found from `row` on.
  """
  column = _column_among(table, REPEATED)
  values = [cells[column] for cells in table.rows]
  counts = Counter(values)
  value = next(v for v in values[row:] + values[:row] if counts[v] <= most)
  matching = [cells for cells in table.rows if cells[column] == value]
  return f'{table.columns[column]} = {value}', matching


def _column_among(table: Table, names: Sequence[str]) -> int:
  return next(i for i, name in enumerate(table.columns) if name in names)


def _join_keys(table: Table, keys: Sequence[str]) -> str:
  return (' ' if table.layout in PLAIN_LAYOUTS else '; ').join(keys)


TASKS: dict[str, Callable[[np.random.Generator, Table, int], Question]] = {
  'retrieve': _retrieve,
  'retrieve_row': _retrieve_row,
  'filter': _filter,
  'count': _count,
  'sum': _sum,
  'join': _join,
  'sort': _sort,
  'position': _position,
  'absent': _absent,
}


def offered_tasks(columns: Sequence[str]) -> tuple[str, ...]:
  """The tasks for which a table of these columns has what it takes."""
  repeated, number, link = (
    any(column in names for column in columns)
    for names in (REPEATED, NUMBERS, LINKS)
  )
  needs = {
    'retrieve_row': len(columns) > 2,
    'filter': repeated,
    'count': repeated,
    'sum': repeated and number,
    'join': link,
    'sort': number,
  }
  return tuple(task for task in TASKS if needs.get(task, True))


def ask(
  rng: np.random.Generator, table: Table, task: str, row: int | None = None
) -> Question:
  """A question about `table`; about its row number `row`, where that applies.

  Raises:
    ValueError: if the task is unknown, or needs a column that is not there.
  """
  offered = offered_tasks(table.columns)
  if task not in offered:
    raise ValueError(
      f'a {table.layout!r} table with columns {", ".join(table.columns)} does'
      f' not offer the task {task!r}; it offers {", ".join(offered)}'
    )
  row = int(rng.integers(len(table.rows))) if row is None else row
  return TASKS[task](rng, table, row)


def check_answer(question: Question, response: str) -> bool:
  """Whether `response` is the answer, but for case and white space.

  The order of several keys counts, unless the question says 'in any order'.
  """
  expected, given = _answer_parts(question.answer), _answer_parts(response)
  if ANY_ORDER in question.text:
    expected, given = sorted(expected), sorted(given)
  return expected == given


def _answer_parts(text: str) -> list[str]:
  return [' '.join(part.split()).casefold() for part in text.split(';')]


# Conversations ---------------------------------------------------------------


def draw_layout(rng: np.random.Generator, layouts: dict[str, float]) -> str:
  """A layout by weight; the order of the dict does not matter.

  Raises:
    ValueError: for unknown layouts, and for weights that leave no choice.
  """
  check_weights(layouts, known=LAYOUTS, what='layouts')
  return draw_weighted(rng, layouts)


def make_conversation(
  rng: np.random.Generator,
  *,
  tasks: dict[str, float],
  layouts: dict[str, float],
  num_rows: int,
  num_questions: int,
  num_columns: int = DEFAULT_COLUMNS,
) -> tuple[Table, list[Question]]:
  """A table and questions about it, in rows of their own while rows last.

  Weights are relative. Of `tasks`, those that the table drawn offers take
  part; a table of PLAIN_LAYOUTS has two columns whatever `num_columns` says. To
  aim at a length, call `draw_layout` and `estimate_rows` first, and pass that
  layout alone.

  Raises:
    ValueError: for unknown tasks or layouts, for weights that leave no choice,
      and for a table that offers none of the tasks.
  """
  check_weights(tasks, known=TASKS, what='tasks')
  layout = draw_layout(rng, layouts)
  plain_numbers = False
  if layout in PLAIN_LAYOUTS:
    num_columns = PLAIN_COLUMNS
    plain_numbers = _plain_has_numbers(rng, tasks)
  table = make_table(
    rng,
    num_rows=num_rows,
    layout=layout,
    num_columns=num_columns,
    plain_numbers=plain_numbers,
  )
  offered = offered_tasks(table.columns)
  weights = {t: w for t, w in tasks.items() if t in offered}
  check_weights(weights, known=offered, what=f'tasks in a {layout!r} table')
  # Rows are asked about in random order, each once before any comes again.
  order = rng.permutation(num_rows).tolist()
  questions = [
    ask(rng, table, draw_weighted(rng, weights), order[i % num_rows])
    for i in range(num_questions)
  ]
  return table, questions


def _plain_has_numbers(
  rng: np.random.Generator, tasks: dict[str, float]
) -> bool:
  """Whether values in PLAIN_LAYOUTS are numbers, which 'sort' needs.

  ours: in half the tables, as a number is several tokens to retrieve; in all
  of them if none of the tasks can do without.
  """
  if not tasks.get('sort'):
    return False
  without = offered_tasks((KEY_COLUMN, PLAIN_WORDS[0]))
  return not any(tasks.get(t) for t in without) or bool(rng.integers(2))


def conversation_turns(
  table: Table, questions: Sequence[Question]
) -> list[tuple[str, str]]:
  """Pairs of user text and answer; the first user text starts with the table.

  user       Alice red        answer  Bob teal
              Bob teal
                                  (an empty line)
              Bob
  user       Alice            answer  Alice red
  """
  texts = [question.text for question in questions]
  # After a space, as a turn of its own is (chat.py): the same tokens.
  texts[0] = f'{table.text}\n\n {texts[0]}'
  return [
    (text, question.answer)
    for text, question in zip(texts, questions, strict=True)
  ]


def vocabulary_text() -> str:
  """Text to train a tokenizer on, so that 'plain' words become one piece.

  Holds each word of the cells of small 'plain' tables, and of their questions
  and answers, once, after a space, as all of them stand in a conversation.
  """
  lists = table_values.word_lists()
  words = [word for name in (KEY_COLUMN, *PLAIN_WORDS) for word in lists[name]]
  words += [ABSENT, 'row', 'largest', 'smallest']
  return ''.join([f' {word}\n' for word in dict.fromkeys(words)])


def fingerprint() -> str:
  """Changes when the text of tables does, as with another version of Faker."""
  lists = (table_values.word_lists(), table_values.remarks())
  text = json.dumps(lists, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]
