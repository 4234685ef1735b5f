"""What the cells of a synthetic table can hold: word lists made with Faker.

Faker is too slow to be asked for each cell, so the lists are made once a
process, from a fixed seed, and tables draw from them with numpy. The lists are
the same in every process with the same version of Faker.
"""

import datetime
import functools
import re
from collections.abc import Callable, Iterable

import faker
import numpy as np

# No value may hold one of these: they separate cells and answers.
RESERVED = '|;=\n'

# ours: single words of at most 6 letters, so that a SentencePiece vocabulary
# of 2,048 has each in one piece; few enough to leave pieces for other text.
NUM_SHORT_NAMES = 256
NUM_SHORT_WORDS = 64
NUM_LAST_NAMES = 800  # ours: enough for MAX_ROWS to pass 100,000

# A quarter of the keys stays out of every table: an absent key comes from the
# same list as those present, or its looks would give it away.
MAX_SHORT_ROWS = NUM_SHORT_NAMES * 3 // 4
MAX_ROWS = NUM_SHORT_NAMES * NUM_LAST_NAMES * 3 // 4

# ours: a value of a repeated column is in at most MAX_REPEATS rows, so that
# counting and adding stay feasible in tables of any length.
MAX_REPEATS = 8
# ours: and some value is in at most MAX_LISTED rows, few enough to list.
MAX_LISTED = 4

NUM_REMARKS = 100  # ours: of each kind, enough that few lines look alike
# ours: a few sentences, and yet a line that has all of them fits, but for one
# in 10,000, into the 128 tokens of a laptop's short rows.
MAX_REMARKS = 3


@functools.lru_cache(maxsize=1)
def word_lists() -> dict[str, tuple[str, ...]]:
  """Lists of distinct values by name: 'name', 'city', 'colour', ..."""
  # Weighted draws would hardly ever reach the rare names.
  fake = faker.Faker('en_US', use_weighting=False)
  months = _distinct(fake, fake.month_name, 12)
  taken = {month.casefold() for month in months}

  def is_key(value: str) -> bool:
    # A key April beside the value April would make a table ambiguous.
    return len(value) <= 6 and value.isalpha() and value.casefold() not in taken

  def is_word(value: str) -> bool:
    return 3 <= len(value) <= 5 and value.isalpha() and value.islower()

  return {
    'name': _distinct(fake, fake.first_name, NUM_SHORT_NAMES, is_key),
    'last_name': _distinct(fake, fake.last_name, NUM_LAST_NAMES, str.isalpha),
    'city': _distinct(fake, fake.city, 256),
    'company': _distinct(fake, fake.company, 256),
    'street': _distinct(fake, fake.street_name, 256),
    'job': _distinct(fake, fake.job, 200),
    'country': _distinct(fake, fake.country, 150),
    'language': _distinct(fake, fake.language_name, 100),
    'colour': _distinct(fake, fake.safe_color_name, 15),
    # Faker draws a month from the days up to today: only the set is stable.
    'month': tuple(sorted(months)),
    'word': _distinct(fake, fake.word, NUM_SHORT_WORDS, is_word),
  }


@functools.lru_cache(maxsize=1)
def remarks() -> tuple[str, ...]:
  """Running text in small pieces: prose, code and addresses in their looks.

  None holds a short key as a word, in any case: a key is in its table once.
  """
  fake = faker.Faker('en_US', use_weighting=False)
  keys = {key.casefold() for key in word_lists()['name']}
  # Faker's own end is today: the pool would be another one every day.
  end = datetime.datetime(2025, 1, 1)

  def long_sentence() -> str:
    return fake.sentence(12)

  def address() -> str:
    return fake.address().replace('\n', ', ')

  def file_path() -> str:
    return fake.file_path(depth=2)

  def date() -> str:
    return fake.date(end_datetime=end)

  def is_remark(value: str) -> bool:
    return keys.isdisjoint(re.findall(r'[^\W\d_]+', value.casefold()))

  # ours: as many of each; these are the kinds that were measured.
  kinds = (
    fake.sentence,
    long_sentence,
    fake.catch_phrase,
    fake.bs,
    fake.uri,
    file_path,
    fake.email,
    address,
    fake.isbn13,
    date,
  )
  pools = [_distinct(fake, kind, NUM_REMARKS, is_remark) for kind in kinds]
  return tuple(remark for pool in pools for remark in pool)


def _distinct(
  fake: faker.Faker,
  draw: Callable[[], str],
  count: int,
  accept: Callable[[str], bool] = lambda value: True,
) -> tuple[str, ...]:
  """The first `count` distinct values that `accept` lets through."""
  fake.seed_instance(0)
  found: dict[str, None] = {}
  for _ in range(200 * count):
    value = draw()
    if accept(value) and not any(c in RESERVED for c in value):
      found[value] = None
    if len(found) == count:
      return tuple(found)
  raise RuntimeError(
    f'Faker {faker.VERSION} gave {len(found)} of {count} values of'
    f' {draw.__name__}'
  )


def num_keys(num_rows: int) -> int:
  """How many keys a table of `num_rows` rows draws its own from.

  Raises:
    ValueError: if a table cannot have that many rows.
  """
  if not 1 <= num_rows <= MAX_ROWS:
    raise ValueError(f'a table has 1 to {MAX_ROWS} rows, got {num_rows}')
  short = num_rows <= MAX_SHORT_ROWS
  return NUM_SHORT_NAMES * (1 if short else NUM_LAST_NAMES)


def key_names(
  indices: Iterable[int], *, num_rows: int, joint: str
) -> list[str]:
  """Keys by number, below `num_keys(num_rows)`: distinct for distinct numbers.

  Alice in a table of up to MAX_SHORT_ROWS rows, Alice Smith in a larger one,
  with `joint` between first and last name.
  """
  firsts, lasts = word_lists()['name'], word_lists()['last_name']
  if num_keys(num_rows) == NUM_SHORT_NAMES:
    return [firsts[i] for i in indices]
  return [
    firsts[i // NUM_LAST_NAMES] + joint + lasts[i % NUM_LAST_NAMES]
    for i in indices
  ]


def draw_words(
  rng: np.random.Generator, column: str, num_rows: int
) -> list[str]:
  """Independent draws from the list of that name."""
  words = word_lists()[column]
  return [words[i] for i in rng.integers(len(words), size=num_rows).tolist()]


def draw_repeated(
  rng: np.random.Generator, column: str, num_rows: int
) -> list[str]:
  """Values that are in few rows each, however long the table.

  Each is in 1 to MAX_REPEATS rows, one of them in at most MAX_LISTED. When the
  list runs out, its values come again with a number: Smithville, Smithville 2.
  """
  sizes = rng.integers(1, MAX_REPEATS + 1, size=num_rows)
  sizes[0] = rng.integers(1, MAX_LISTED + 1)
  group_of_row = np.repeat(np.arange(num_rows), sizes)[:num_rows]
  num_groups = int(group_of_row[-1]) + 1
  words = word_lists()[column]
  numbers = rng.permutation(max(num_groups, len(words)))[:num_groups].tolist()
  groups = []
  for number in numbers:
    lap, i = divmod(number, len(words))
    groups.append(f'{words[i]} {lap + 1}' if lap else words[i])
  return [groups[i] for i in rng.permutation(group_of_row).tolist()]


def draw_numbers(rng: np.random.Generator, num_rows: int) -> list[str]:
  """Distinct whole numbers of two digits, or of as few as leave half unused."""
  high = 10 ** len(str(2 * num_rows + 9))
  numbers = rng.choice(high - 10, size=num_rows, replace=False) + 10
  return [str(number) for number in numbers.tolist()]


def draw_remarks(
  rng: np.random.Generator, num_rows: int, *, most: int
) -> list[tuple[str, ...]]:
  """0 to `most` remarks for each row."""
  pool = remarks()
  counts = rng.integers(most + 1, size=num_rows)
  picks = rng.integers(len(pool), size=counts.sum())
  return [
    tuple(pool[i] for i in part.tolist())
    for part in np.split(picks, np.cumsum(counts)[:-1])
  ]
