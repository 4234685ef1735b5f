"""A row's text in pieces: whose it is, whether it is trained on, what is cut.

Characters that would steer a terminal or a browser are shown as pictures.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from longctx_jax.data.chat import Chat
from longctx_jax.data.tokenizer import Tokenizer
from longctx_jax.inspection.rows import RowView

# Control characters (but newline and tab) as the pictures that Unicode has of
# them. The second set of them steers terminals too, and has no pictures, nor
# has what turns the direction of text around.
_PICTURES = {
  **{c: 0x2400 + c for c in range(32) if chr(c) not in '\n\t'},
  127: 0x2421,
  **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
  **dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD),
}


class Piece(NamedTuple):
  """Neighbouring tokens of one stretch that weigh the same as targets."""

  start: int  # in the row
  stop: int  # exclusive
  stretch: int  # number of it
  weight: float  # of each token as a target; 0 = not trained on
  text: str
  is_symbol: bool  # a control symbol, which has no text but a name


class Gap(NamedTuple):
  """What is left out in the middle."""

  start: int  # in the row
  stop: int  # exclusive


def decode_row(
  row: RowView, chat: Chat, max_tokens: int
) -> Iterator[Piece | Gap]:
  """The row's text from left to right, at most `max_tokens` of it.

  What is too much is cut out in the middle.
  """
  used = row.num_tokens
  spans = [(0, used)]
  if used > max_tokens:
    spans = [(0, -(-max_tokens // 2)), (used - max_tokens // 2, used)]
  for n, (first, last) in enumerate(spans):
    if n:
      yield Gap(spans[0][1], first)
    for k, stretch in enumerate(row.stretches):
      start, stop = max(stretch.start, first), min(stretch.stop, last)
      if start < stop:
        yield from _pieces(row, k, start, stop, chat)


def _pieces(row, k, start, stop, chat):
  tokens = np.asarray(row.batch.tokens[start:stop])
  weights = row.target_weights[start:stop]
  symbols = np.isin(tokens, list(chat.symbols))
  # A symbol is a piece of its own.
  cut = (np.diff(weights) != 0) | symbols[1:] | symbols[:-1]
  cuts = [0, *(np.flatnonzero(cut) + 1).tolist(), stop - start]
  for a, b in itertools.pairwise(cuts):
    if symbols[a]:
      text = chat.symbols[int(tokens[a])]
    else:
      before = tokens[a - 1 : a] if a and not symbols[a - 1] else tokens[:0]
      text = visible(decode_after(chat.tokenizer, before, tokens[a:b]))
    yield Piece(
      start + a, start + b, k, float(weights[a]), text, bool(symbols[a])
    )


def decode_after(
  tokenizer: Tokenizer, before: np.ndarray, tokens: np.ndarray
) -> str:
  """The text of `tokens` behind those `before` them.

  Tokenizers may leave out a space where a text begins; it is there within one.
  """
  head = tokenizer.decode(before) if len(before) else ''
  both = tokenizer.decode(np.append(before, tokens)) if head else ''
  if head and both.startswith(head):
    return both[len(head) :]
  return tokenizer.decode(tokens)


def visible(text: str) -> str:
  """The text without characters that do something rather than show."""
  return text.translate(_PICTURES)
