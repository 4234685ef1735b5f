"""Planners that lay documents end to end, whole or cut at the ends of rows.

Which one fits: `concat` wastes and loses nothing but parts documents,
`concat_drop` begins every row with a beginning, `whole` and `best_fit` part
nothing that fits into a row, and `buckets` makes rows of equally long pieces.
"""

import bisect

import numpy as np

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.data.row_plan import RowPlan, Slices, plan_from_slices


def concat_rows(
  lengths: np.ndarray, row_len: int, rng: np.random.Generator
) -> RowPlan:
  """Shuffled documents end to end, cut every `row_len` tokens.

  What a row cuts off starts the next row (ProLong, arXiv:2410.02660, A.2, short
  data). Only the last row may be short.

      a b c | d e f g | h i     row_len 4     a b c d
                                              e f g h
                                              i . . .
  """
  order = rng.permutation(len(lengths))
  ends = np.cumsum(lengths[order])
  total = int(ends[-1]) if len(ends) else 0
  row_starts = np.arange(0, total, row_len)
  # Slices begin wherever a document or a row does.
  begins = np.union1d(row_starts, ends[:-1]).astype(np.int64)
  stops = np.append(begins[1:], total)
  nonempty = stops > begins
  begins, stops = begins[nonempty], stops[nonempty]
  at = np.searchsorted(ends, begins, side='right')
  document_starts = ends[at] - lengths[order][at]
  slices = Slices(order[at], begins - document_starts, stops - document_starts)
  row_offsets = np.searchsorted(begins, np.append(row_starts, total))
  return plan_from_slices(slices, row_offsets, row_len)


def concat_and_drop_rows(
  lengths: np.ndarray, row_len: int, rng: np.random.Generator
) -> RowPlan:
  """Shuffled documents end to end; what a row cuts off is dropped.

  So every row begins where a document does (ProLong, arXiv:2410.02660, A.2,
  instruction data). Dropped is the same in every epoch, for epochs differ in
  the order of rows alone; `row_plan.dropped_tokens` counts it. Only the last
  row may be short.

      a b c | d e f g | h i     row_len 4     a b c d
                                              h i . .     e f g are dropped
  """
  slices = _shuffled(whole_documents(lengths), rng)
  ends = np.cumsum(slices.lens)
  begins = ends - slices.lens
  # The last document of a row is the first to reach its end.
  last = np.searchsorted(ends, begins + row_len, side='left')
  row_offsets = _follow(np.minimum(last + 1, len(ends)))
  row_begins = np.repeat(begins[row_offsets[:-1]], np.diff(row_offsets))
  room = row_len - (begins - row_begins)
  slices = slices._replace(stops=np.minimum(slices.stops, room))
  return plan_from_slices(slices, row_offsets, row_len)


def whole_document_rows(
  lengths: np.ndarray, row_len: int, rng: np.random.Generator
) -> RowPlan:
  """Shuffled documents, never cut: one that doesn't fit starts the next row.

  For conversations, whose question must not be parted from its answer.

      a b c | d e f g | h     row_len 5     a b c . .
                                            d e f g h

  Raises:
    ConfigError: if a document is longer than a row.
  """
  if len(lengths) and lengths.max() > row_len:
    worst = int(lengths.argmax())
    raise ConfigError(
      f'document {worst} has {lengths[worst]} tokens and does not fit whole'
      f' into a row of {row_len}: raise data.seq_len, lower'
      ' corpus.max_conversation_len, or take planner=best_fit for documents'
    )
  return first_come_rows(whole_documents(lengths), row_len, rng)


def best_fit_rows(
  lengths: np.ndarray, row_len: int, rng: np.random.Generator
) -> RowPlan:
  """Each document, longest first, goes into the fullest row that takes it.

  No document that fits into a row is cut, and rows are nearly full: best-fit
  decreasing ("Fewer Truncations", arXiv:2404.10830, sec. 2; drawn is its Figure
  1). Longer documents are cut every `row_len` tokens first, and what is left
  over at their ends counts as a document. ours: rows, and documents inside
  them, end up in random order, not sorted by length.

      lengths 14 7 5 2 3    row_len 8    [8] [7] [6 2] [5 3]     8 + 6 = 14
  """
  slices = _shuffled(cut_documents(lengths, row_len), rng)
  longest_first = np.argsort(-slices.lens, kind='stable')
  rows = np.empty(len(longest_first), np.int64)
  rows[longest_first] = best_fit(slices.lens[longest_first], row_len)
  num_rows = int(rows.max()) + 1 if len(rows) else 0
  rows = rng.permutation(num_rows)[rows]
  # Stable, so that the documents of a row stay as they were shuffled.
  order = np.argsort(rows, kind='stable')
  row_offsets = np.searchsorted(rows[order], np.arange(num_rows + 1))
  return plan_from_slices(slices.take(order), row_offsets, row_len)


def bucket_rows(
  lengths: np.ndarray,
  row_len: int,
  rng: np.random.Generator,
  *,
  bucket_len: int,
) -> RowPlan:
  """Rows of pieces that are all exactly `bucket_len` tokens long.

  ProLong's long data (arXiv:2410.02660, A.2): documents of less than 64K are
  dropped, and stage 2 lays pieces of 64K side by side in rows of 512K, each a
  segment of its own. A document gives as many pieces as it has room for; its
  end is dropped, and `row_plan.dropped_tokens` counts the loss. Only the last
  row may be short.

      a b c d e | f | g h     bucket_len 2, row_len 4     c d g h
                                                          a b . .

  Args:
    lengths: tokens of each document.
    row_len: of which the last row_len % bucket_len tokens stay empty.
    rng: shuffles the pieces.
    bucket_len: the length of a piece.
  """
  slices = cut_documents(lengths - lengths % bucket_len, bucket_len)
  slices = _shuffled(slices, rng)
  row_offsets = np.arange(0, len(slices.documents), row_len // bucket_len)
  row_offsets = np.append(row_offsets, len(slices.documents))
  return plan_from_slices(slices, row_offsets, row_len)


def whole_documents(lengths: np.ndarray) -> Slices:
  """One slice for each document that isn't empty."""
  documents = np.flatnonzero(lengths)
  return Slices(documents, np.zeros_like(documents), lengths[documents])


def cut_documents(lengths: np.ndarray, max_len: int) -> Slices:
  """Documents in slices of `max_len` tokens; the last may be shorter.

  a b c d e | f | g h     max_len 2     a b | c d | e | f | g h
  """
  counts = -(-lengths // max_len)
  documents = np.repeat(np.arange(len(lengths)), counts)
  firsts = np.cumsum(counts) - counts
  starts = (np.arange(len(documents)) - firsts[documents]) * max_len
  stops = np.minimum(starts + max_len, lengths[documents])
  return Slices(documents, starts, stops)


def first_come_rows(
  slices: Slices, row_len: int, rng: np.random.Generator
) -> RowPlan:
  """Shuffled slices; one that doesn't fit into the row starts the next.

  None may be longer than a row.
  """
  slices = _shuffled(slices, rng)
  ends = np.cumsum(slices.lens)
  # The first that reaches beyond a row that begins here.
  beyond = np.searchsorted(ends, ends - slices.lens + row_len, side='right')
  return plan_from_slices(slices, _follow(beyond), row_len)


def best_fit(lengths: np.ndarray, row_len: int) -> np.ndarray:
  """The row of each length; `lengths` descends, none is 0 or above `row_len`.

  Equal lengths go together: the fullest row that takes one of them is filled
  with as many as it takes, before any other row has its turn, and so are all
  rows with the same room. A step of the loop thus places many documents.
  """
  rows = np.empty(len(lengths), np.int64)
  sizes, counts = np.unique(lengths, return_counts=True)
  rooms: list[int] = []  # ascending: how much room open rows have
  with_room: dict[int, list[int]] = {}  # the rows that have just that much
  at = num_rows = 0

  def put_back(room, some):
    if some and room:
      if room not in with_room:
        bisect.insort(rooms, room)
        with_room[room] = []
      with_room[room] += some

  for size, left in zip(
    sizes[::-1].tolist(), counts[::-1].tolist(), strict=True
  ):
    while left:
      tightest = bisect.bisect_left(rooms, size)
      room = rooms[tightest] if tightest < len(rooms) else row_len
      each = room // size
      needed = -(-left // each)
      if tightest < len(rooms):
        ready = with_room[room]
        taken = ready[-needed:]
        del ready[-needed:]
        if not ready:
          del rooms[tightest], with_room[room]
      else:
        taken = list(range(num_rows, num_rows + needed))
        num_rows += needed
      placed = min(left, each * len(taken))
      rows[at : at + placed] = np.repeat(taken, each)[:placed]
      at, left = at + placed, left - placed
      # All but the last are filled to the same height.
      in_last = placed - each * (len(taken) - 1)
      put_back(room - each * size, taken[:-1])
      put_back(room - in_last * size, taken[-1:])
  return rows


def _shuffled(slices, rng):
  return slices.take(rng.permutation(len(slices.documents)))


def _follow(following):
  """0, following[0], following[following[0]] and so on, up to the end."""
  following = following.tolist()
  offsets = [0]
  while offsets[-1] < len(following):
    offsets.append(following[offsets[-1]])
  return np.array(offsets, np.int64)
