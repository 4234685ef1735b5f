"""Chunk Interleaved Pretraining (CIP) and Untie the Knots (UtK).

Documents are cut into chunks, and a row takes the chunks of its documents in
turns: to go on with a document the model must look past the others'. CIP is
LongSkywork's, arXiv:2406.00605; its own code is not public, and this follows
the definition that UtK gives when it re-runs CIP-2 (arXiv:2409.04774, sec. 4.3)
and OLMo-core's interleaved dataset. UtK itself (App. B, Algorithm 1) draws how
many chunks a document has, and shuffles them. Interleaved rows are one segment:
a document mask would cut the very links they are made for.

`interleave_chunks` is the definition, on the tokens of one row;
`interleave_rows` does the same to all rows of a plan at once.
"""

from collections.abc import Sequence

import numpy as np

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.data.packing import (
  concat_rows,
  cut_documents,
  first_come_rows,
)
from longctx_jax.data.row_plan import RowPlan, Slices, plan_from_slices


def chunk_bounds(
  length: int,
  num_chunks: int,
  split: str,
  draws: Sequence[float],
  min_chunk_len: int = 1,
) -> list[tuple[int, int]]:
  """(start, stop) of the chunks of a document.

  10 tokens in 3 chunks of at least 2, draws .7 and .2: 4 tokens are to spare,
  of which int(.2 * 5) = 1 come before the first cut and int(.7 * 5) = 3 before
  the second:    a b (c) | d e (f g) | h i (j)

  Args:
    length: tokens of the document, at least num_chunks * min_chunk_len.
    num_chunks: N of CIP-N; LongSkywork found 2 best (as told in UtK, 4.3).
    split: 'equal', the first chunks taking what is left over, or 'random'.
    draws: for 'random', one number in [0, 1) for each cut.
    min_chunk_len: for 'random', of every chunk.
  """
  if split == 'equal':
    sizes = [length // num_chunks] * num_chunks
    for k in range(length % num_chunks):
      sizes[k] += 1
    ends = np.cumsum(sizes).tolist()
  else:
    spare = length - num_chunks * min_chunk_len
    ends = [
      k * min_chunk_len + int(draw * (spare + 1))
      for k, draw in enumerate(sorted(draws[: num_chunks - 1]), start=1)
    ] + [length]
  return list(zip([0, *ends[:-1]], ends, strict=True))


def round_robin(chunks: Sequence[Sequence]) -> list:
  """First items of each list, then second items, skipping what has run out.

  [[a1 a2 a3] [b1] [c1 c2]]   ->   a1 b1 c1 a2 c2 a3
  """
  longest = max((len(items) for items in chunks), default=0)
  return [
    items[i] for i in range(longest) for items in chunks if i < len(items)
  ]


def shuffle_in_order(
  chunks: Sequence[Sequence], draws: Sequence[Sequence[float]]
) -> list:
  """A shuffle that keeps the order inside each list; all such are as likely.

  Items go where their draws put them, the smallest draw of a list being its
  first item's (UtK's PreserveOrder):

  [[a1 a2 a3] [b1]], draws [.9 .1 .4] [.3]   ->   a1 (.1) b1 (.3) a2 (.4) a3
  """
  placed = [
    (place, item)
    for items, places in zip(chunks, draws, strict=True)
    for place, item in zip(sorted(places), items, strict=True)
  ]
  return [item for _, item in sorted(placed, key=lambda pair: pair[0])]


def interleave_chunks(
  documents: Sequence[Sequence[int]],
  num_chunks: int | Sequence[int],
  *,
  split: str = 'equal',
  order: str = 'round_robin',
  min_chunk_len: int = 1,
  rng: np.random.Generator | None = None,
) -> list[int]:
  """The definition, on tokens; `interleave_rows` plans the same thing.

  21 22 23 24 25 and 11 12 13 14 15 16 17 18, in 4 chunks each:
  [21 22] [11 12] [23] [13 14] [24] [15 16] [25] [17 18]

  Args:
    documents: those of a row.
    num_chunks: of each document, or of all; documents too short for so many
      chunks of `min_chunk_len` have fewer, down to one.
    split: 'equal' or 'random', see `chunk_bounds`.
    order: 'round_robin' or 'shuffle', see `shuffle_in_order`.
    min_chunk_len: what is too short to be a chunk.
    rng: if something is random: a pair of draws a chunk, for cut and place.

  Raises:
    ValueError: something is random, and there is no rng; or an argument is none
      of these.
  """
  _check_arguments(num_chunks, split, order, min_chunk_len)
  if rng is None and (split, order) != ('equal', 'round_robin'):
    raise ValueError(f'split={split!r}, order={order!r}: draw them from an rng')
  wanted = np.broadcast_to(num_chunks, len(documents)).tolist()
  chunks, places = [], []
  for document, count in zip(documents, wanted, strict=True):
    if not len(document):
      continue
    count = max(1, min(count, len(document) // min_chunk_len))
    draws = np.zeros((count, 2)) if rng is None else rng.random((count, 2))
    bounds = chunk_bounds(
      len(document), count, split, draws[:, 0], min_chunk_len
    )
    chunks.append([document[start:stop] for start, stop in bounds])
    places.append(draws[:, 1])
  if order == 'shuffle':
    ordered = shuffle_in_order(chunks, places)
  else:
    ordered = round_robin(chunks)
  return [token for chunk in ordered for token in chunk]


def _check_arguments(num_chunks, split, order, min_chunk_len):
  for name, value, choices in (
    ('split', split, ('equal', 'random')),
    ('order', order, ('round_robin', 'shuffle')),
  ):
    if value not in choices:
      raise ValueError(f'{name}={value!r}: choose {" or ".join(choices)}')
  for name, least in (
    ('num_chunks', np.min(num_chunks, initial=1)),
    ('min_chunk_len', min_chunk_len),
  ):
    if least < 1:
      raise ValueError(f'{name}={least}: must be 1 or more')


def interleave_rows(
  plan: RowPlan,
  num_chunks: int | np.ndarray,
  rng: np.random.Generator,
  *,
  split: str,
  order: str,
  interleave_prob: float,
  min_chunk_len: int = 1,
) -> RowPlan:
  """`interleave_chunks` of rows whose slices are documents end to end.

  Args:
    plan: the rows.
    num_chunks: of all slices, or of each [num_slices].
    rng: chooses rows, then draws as the definition does, row after row.
    split: as in the definition, like `order` and `min_chunk_len`.
    order: 'round_robin' or 'shuffle'.
    interleave_prob: of each row; the others are left as they are.
    min_chunk_len: what is too short to be a chunk.

  Raises:
    ValueError: an argument is none of these.
  """
  _check_arguments(num_chunks, split, order, min_chunk_len)
  lens = plan.stops - plan.starts
  row_of_slice = np.repeat(np.arange(len(plan)), np.diff(plan.row_offsets))
  chosen = (rng.random(len(plan)) < interleave_prob)[row_of_slice]
  counts = np.clip(lens // min_chunk_len, 1, np.where(chosen, num_chunks, 1))
  # From here on one entry a chunk: its slice, and which chunk of that it is.
  at = np.repeat(np.arange(len(lens)), counts)
  k = np.arange(len(at)) - (np.cumsum(counts) - counts)[at]
  draws = rng.random((len(at), 2))
  is_last = k == counts[at] - 1
  if split == 'equal':
    size, left_over = np.divmod(lens, counts)
    ends = (k + 1) * size[at] + np.minimum(k + 1, left_over[at])
  else:
    cuts = np.where(is_last, 1.0, draws[:, 0])  # sorts behind the others
    cuts = cuts[np.lexsort((cuts, at))]
    spare = lens - counts * min_chunk_len
    ends = (k + 1) * min_chunk_len + (cuts * (spare[at] + 1)).astype(np.int64)
  ends = np.where(is_last, lens[at], ends)
  begins = np.where(k == 0, 0, np.roll(ends, 1))
  if order == 'shuffle':
    places = draws[:, 1][np.lexsort((draws[:, 1], at))]
    places = np.where(chosen[at], places, 0)  # 0: as they were
  else:
    places = k
  moved = np.lexsort((places, row_of_slice[at]))
  slices = Slices(
    plan.documents[at], plan.starts[at] + begins, plan.starts[at] + ends
  ).take(moved)
  chunks_before = np.append(0, np.cumsum(counts))
  return plan_from_slices(slices, chunks_before[plan.row_offsets], plan.row_len)


def interleaved_rows(
  lengths: np.ndarray,
  row_len: int,
  rng: np.random.Generator,
  *,
  docs_per_row: int,
  num_chunks: int,
  split: str,
  order: str = 'round_robin',
  interleave_prob: float = 1.0,
) -> RowPlan:
  """CIP: rows of at least `docs_per_row` documents in `num_chunks` chunks each.

  A document longer than row_len / docs_per_row is first cut into pieces of
  that length, which then count as documents (differs from OLMo-core, which
  drops the rest of it: here no token is lost). They are shuffled like the
  others: two of them share a row only by chance, and in any order. A row takes
  pieces while they fit, so short documents don't leave it empty.

  Args:
    lengths: tokens of each document.
    row_len: longest row.
    rng: draws the rows, then what `interleave_chunks` needs.
    docs_per_row: fewer only in the last row.
    num_chunks: N of CIP-N.
    split: 'equal' or 'random'.
    order: 'round_robin', or 'shuffle', which is not CIP but keeps the order
      inside documents too.
    interleave_prob: of each row; the others have the same documents end to end
      (in UtK, sec. 4.2, 0.3 is "low" and 0.8 "high").

  Raises:
    ConfigError: if a number makes no sense.
  """
  if docs_per_row < 1 or num_chunks < 1 or docs_per_row > row_len:
    raise ConfigError(
      f'interleaving needs 1 <= docs_per_row <= row_len and num_chunks >= 1,'
      f' got docs_per_row={docs_per_row}, num_chunks={num_chunks},'
      f' row_len={row_len}'
    )
  pieces = cut_documents(lengths, row_len // docs_per_row)
  plan = first_come_rows(pieces, row_len, rng)
  return interleave_rows(
    plan,
    num_chunks,
    rng,
    split=split,
    order=order,
    interleave_prob=interleave_prob,
  )


def untied_rows(
  lengths: np.ndarray,
  row_len: int,
  rng: np.random.Generator,
  *,
  chunk_probs: Sequence[float],
  min_chunk_len: int,
  interleave_prob: float = 1.0,
) -> RowPlan:
  """Untie the Knots: documents of full rows in random chunks, shuffled.

  Rows are those of `concat_rows`, hence full. Each document in a row, or what
  the row has of it, is cut at random into a number of chunks that is drawn for
  it, and the chunks are shuffled, those of a document staying in order (UtK,
  arXiv:2409.04774, App. B, Algorithm 1; without its knot tokens, and without
  keeping the last chunk of a row in its place, as its code does).

      a b c d e f | p q r | x y     a b | p q | c | x | d e f | y | r

  Args:
    lengths: tokens of each document.
    row_len: length of all rows but the last.
    rng: draws the rows, then what `interleave_chunks` needs.
    chunk_probs: probabilities of 1, 2, 3, ... chunks.
    min_chunk_len: documents too short for the number drawn have fewer chunks.
    interleave_prob: of each row; the others stay as they are (in the paper,
      sec. 4.2, 0.3 is "low" and 0.8 "high").
  """
  plan = concat_rows(lengths, row_len, rng)
  numbers = np.arange(1, len(chunk_probs) + 1)
  probs = np.array(chunk_probs) / sum(chunk_probs)
  num_chunks = rng.choice(numbers, len(plan.documents), p=probs)
  return interleave_rows(
    plan,
    num_chunks,
    rng,
    split='random',
    order='shuffle',
    interleave_prob=interleave_prob,
    min_chunk_len=min_chunk_len,
  )
