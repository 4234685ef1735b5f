"""Rows of synthetic conversations, made when they are read."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.data.draws import log_uniform
from longctx_jax.data.row_sources import Origin, Row

# ours: so many tokens of conversations, or a row, are made to see how near they
# come to the lengths asked for, and so many rows are then filled on paper.
_FILL_TOKENS = 32_768
_FILL_ROWS = 1000

Encoded = tuple[np.ndarray, np.ndarray]  # tokens (int32), loss mask (bool)


class Made(Protocol):
  """A conversation that was made."""

  name: str  # of its kind, for people to read
  encoded: Encoded


class Conversations(Protocol):
  """What makes conversations of about a length."""

  domain: str  # of all of them, for people to read
  fingerprint: str  # changes when a conversation does

  def make(self, rng: np.random.Generator, length: int) -> Made:
    """One of at most `length` tokens; where none can be, the shortest."""
    ...


class SyntheticRows:
  """Rows filled with whole conversations; each is made by itself."""

  def __init__(
    self,
    conversations: Conversations,
    lens: tuple[int, int],
    row_len: int,
    seed: tuple[int, ...],
  ):
    """`lens` are the shortest and the longest conversation, in tokens.

    Raises:
      ConfigError: not even the shortest conversation fits into a row.
    """
    self._conversations, self._lens = conversations, lens
    self._row_len, self._seed = row_len, seed
    self._latest: tuple[int, list[Made]] = -1, []
    self.epoch_len = None
    self.num_threads = 2
    self.fingerprint = conversations.fingerprint
    # What cannot be made comes up now, not in a reader thread.
    self.fill = self._measure_fill()

  def rows(self, numbers: Sequence[int]) -> list[Row]:
    """These rows, each made by itself."""
    return [self.row(i) for i in numbers]

  def row(self, i: int) -> Row:
    """Row i."""
    tokens, masks = zip(*(made.encoded for made in self._made(i)), strict=True)
    lens = np.array([len(part) for part in tokens])
    return Row(np.concatenate(tokens), np.concatenate(masks), lens)

  def origins(self, i: int) -> list[Origin]:
    """Numbers of row i's conversations, which have no names."""
    return [
      Origin(
        f'{made.name} {i}/{k}',
        self._conversations.domain,
        0,
        len(made.encoded[0]),
      )
      for k, made in enumerate(self._made(i))
    ]

  def _made(self, i) -> list[Made]:
    """Row i; the one made last is kept, as its origins are asked for next."""
    latest, made = self._latest
    if latest != i:
      made = self._make_row(i)
      self._latest = i, made
    return made

  def _make_row(self, i, record=lambda length, made: None):
    rng = np.random.default_rng((*self._seed, i))

    def make(length):
      made = self._conversations.make(rng, length)
      record(length, made)
      return made

    row = self._fill_row(rng, make, lambda made: len(made.encoded[0]))
    if not row:
      raise ConfigError(
        f'not even the shortest of {self._conversations.domain} fits into'
        f' {self._row_len} tokens: raise data.seq_len'
      )
    return row

  def _fill_row(self, rng, make, count_tokens):
    """Conversations of log-uniform lengths until the row is full; none cut."""
    shortest, longest = self._lens
    row, room = [], self._row_len
    while room >= shortest:
      one = make(log_uniform(rng, shortest, min(longest, room)))
      if count_tokens(one) > room:
        break
      row.append(one)
      room -= count_tokens(one)
    return row

  def _measure_fill(self) -> float:
    """Of many rows, filled with lengths as the first few rows have them.

    A long row takes seconds to make, and one or two do not tell.
    """
    seen = []
    for i in range(max(1, _FILL_TOKENS // self._row_len)):
      self._make_row(i, lambda n, made: seen.append((n, len(made.encoded[0]))))
    asked, used = np.array(sorted(seen)).T
    ratios = used / asked
    rng, tokens = np.random.default_rng(0), 0

    def use(length):
      # As near to its length as one came that was about as long.
      k = int(np.searchsorted(asked, length)) + int(rng.integers(-8, 9))
      return max(1, round(length * ratios[min(max(k, 0), len(ratios) - 1)]))

    for _ in range(_FILL_ROWS):
      tokens += sum(self._fill_row(rng, use, int))
    return tokens / (_FILL_ROWS * self._row_len)


def fit_length(
  make: Callable[[int], Made], size: int, length: int, least: int
) -> Made:
  """What `make` gives at a size where it takes `length` tokens, or few less.

  Args:
    make: gives more tokens for a larger size, about in proportion.
    size: the first one to try.
    length: of the conversation, in tokens.
    least: the smallest size, which alone may be longer.
  """
  for _ in range(3):
    made = make(size)
    used = len(made.encoded[0])
    if 0.9 * length < used <= length:
      return made
    size = max(least, int(0.97 * size * length / used))
  # Sizes may add unequal numbers of tokens, so some lengths cannot be met: stay
  # below.
  while True:
    made = make(size)
    if len(made.encoded[0]) <= length or size == least:
      return made
    size = max(least, int(0.9 * size))
