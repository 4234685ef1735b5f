"""Tables of made-up people, and the text that shows them.

One column is the key; the others have roles, which decide the questions that a
table can answer (`synthetic_tables.offered_tasks`).
"""

import csv
import functools
import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from longctx_jax.data import table_values

KEY_COLUMN = 'name'
# A key and a value on each line; in 'annotated' remarks follow them.
PLAIN_LAYOUTS = ('plain', 'annotated')
PLAIN_COLUMNS = 2

# What a column is for, and the names it goes by. One is drawn for each table.
REPEATED = ('city', 'company', 'street')
NUMBERS = ('units', 'points', 'price')
LINKS = ('manager', 'deputy', 'mentor')  # a cell is the key of another row
WORDS = ('colour', 'month', 'job', 'country', 'language')
PLAIN_WORDS = ('colour', 'month', 'word')
MAX_COLUMNS = 4 + len(WORDS)


class Table(NamedTuple):
  """Cells, and the text that shows them. The first column is the key.

  The remarks of 'annotated' are in the text alone: no task asks about them.
  """

  columns: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]
  layout: str
  text: str


# Layouts: (columns, rows) -> text ---------------------------------------------

Rows = Iterable[Sequence[str]]


def _print_markdown(columns: Sequence[str], rows: Rows) -> str:
  # No cell holds a bar or a newline (table_values.RESERVED).
  lines = [columns, ['---'] * len(columns), *rows]
  return '\n'.join([f'| {" | ".join(cells)} |' for cells in lines])


def _print_csv(columns: Sequence[str], rows: Rows) -> str:
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(columns)
  writer.writerows(rows)
  return out.getvalue().rstrip('\n')


def _print_json(columns: Sequence[str], rows: Rows) -> str:
  encode = json.JSONEncoder(ensure_ascii=False).encode
  number = next((i for i, c in enumerate(columns) if c in NUMBERS), None)
  lines = []
  for row in rows:
    cells = dict(zip(columns, row, strict=True))
    if number is not None:
      cells[columns[number]] = int(row[number])
    lines.append(encode(cells))
  return '[' + ',\n'.join(lines) + ']'


def _print_plain(columns: Sequence[str], rows: Rows) -> str:
  del columns
  # The space makes a key the same token here as in a question, since a turn
  # of a conversation begins with one (chat.py).
  return '\n '.join([' '.join(cells) for cells in rows])


LAYOUTS: dict[str, Callable[[Sequence[str], Rows], str]] = {
  'markdown': _print_markdown,
  'csv': _print_csv,
  'json': _print_json,
  'plain': _print_plain,
  'annotated': _print_plain,
}


# Tables ----------------------------------------------------------------------


def make_table(
  rng: np.random.Generator,
  *,
  num_rows: int,
  layout: str,
  num_columns: int,
  plain_numbers: bool = False,
) -> Table:
  """A table with distinct keys.

  With its columns a table gains tasks: a repeated column comes second, a
  number third, a link fourth, then words; all but the key are shuffled.

      markdown           csv          json                             plain
      | name | city |    name,city    [{"name": "Al", "city": "Ayr"},  Al red
      | --- | --- |      Al,Ayr       {"name": "Bo", "city": "Rye"}]   Bo teal
      | Al | Ayr |       Bo,Rye
      | Bo | Rye |

  In 'plain' the value is a word, or a number if `plain_numbers`. 'annotated'
  is 'plain' with remarks of varying length, as in prose and code there is more
  than what is asked for:

      Al red Sense peace economy travel. /good/one/baby.gif
      Bo teal

  Raises:
    ValueError: for an unknown layout, or sizes that it cannot have.
  """
  _check_layout(layout)
  # Before what depends on num_rows: a table of another size, drawn from the
  # same seed, has lines of about the same length.
  annotated = layout == 'annotated'
  most = int(rng.integers(1, table_values.MAX_REMARKS + 1)) if annotated else 0
  keys = draw_keys(rng, layout, num_rows, count=num_rows)
  columns = _draw_columns(rng, layout, num_columns, plain_numbers)
  cells = [keys]
  for column in columns[1:]:
    if column in REPEATED:
      cells.append(table_values.draw_repeated(rng, column, num_rows))
    elif column in NUMBERS:
      cells.append(table_values.draw_numbers(rng, num_rows))
    elif column in LINKS:
      # A jump of 1 to num_rows - 1 never ends where it starts.
      jumps = rng.integers(1, max(num_rows, 2), size=num_rows)
      targets = (np.arange(num_rows) + jumps) % num_rows
      cells.append([keys[i] for i in targets.tolist()])
    else:
      cells.append(table_values.draw_words(rng, column, num_rows))
  rows = tuple(zip(*cells, strict=True))
  lines = rows
  if annotated:
    remarks = table_values.draw_remarks(rng, num_rows, most=most)
    lines = [(*row, *more) for row, more in zip(rows, remarks, strict=True)]
  return Table(columns, rows, layout, LAYOUTS[layout](columns, lines))


def _check_layout(layout: str) -> None:
  if layout not in LAYOUTS:
    raise ValueError(f'unknown layout {layout!r}; there are {sorted(LAYOUTS)}')


def _draw_columns(
  rng: np.random.Generator, layout: str, num_columns: int, plain_numbers: bool
) -> tuple[str, ...]:
  if layout in PLAIN_LAYOUTS:
    if num_columns != PLAIN_COLUMNS:
      raise ValueError(
        f'a {layout!r} table has {PLAIN_COLUMNS} columns, got {num_columns}'
      )
    values = NUMBERS if plain_numbers else PLAIN_WORDS
    return KEY_COLUMN, str(rng.choice(values))
  if not 2 <= num_columns <= MAX_COLUMNS:
    raise ValueError(
      f'a {layout!r} table has 2 to {MAX_COLUMNS} columns, got {num_columns}'
    )
  roles = [str(rng.choice(names)) for names in (REPEATED, NUMBERS, LINKS)]
  others = [*roles, *rng.permutation(WORDS).tolist()][: num_columns - 1]
  return KEY_COLUMN, *rng.permutation(others).tolist()


def draw_keys(
  rng: np.random.Generator, layout: str, num_rows: int, *, count: int
) -> list[str]:
  """`count` distinct keys of those that a table of `num_rows` rows draws."""
  size = table_values.num_keys(num_rows)
  numbers = rng.choice(size, size=count, replace=False).tolist()
  # In PLAIN_LAYOUTS a space ends the key.
  joint = '-' if layout in PLAIN_LAYOUTS else ' '
  return table_values.key_names(numbers, num_rows=num_rows, joint=joint)


def estimate_rows(layout: str, num_columns: int, chars: int) -> int:
  """How many rows print to about `chars` characters; at least 1.

  PLAIN_LAYOUTS have two columns whatever `num_columns` says.
  """
  _check_layout(layout)
  short, full = table_values.MAX_SHORT_ROWS, 4 * table_values.MAX_SHORT_ROWS
  num_columns = PLAIN_COLUMNS if layout in PLAIN_LAYOUTS else num_columns
  num_rows = int(chars / _chars_per_row(layout, num_columns, short))
  if num_rows > short:
    num_rows = int(chars / _chars_per_row(layout, num_columns, full))
    return min(max(num_rows, short), table_values.MAX_ROWS)
  return max(num_rows, 1)


@functools.cache
def _chars_per_row(layout: str, num_columns: int, num_rows: int) -> float:
  """Mean over a few tables, since columns and lengths of remarks differ."""
  rng = np.random.default_rng(0)
  tables = [
    make_table(rng, num_rows=num_rows, layout=layout, num_columns=num_columns)
    for _ in range(32)  # ours: then 'annotated' is out by less than a tenth
  ]
  return sum(len(table.text) for table in tables) / len(tables) / num_rows
