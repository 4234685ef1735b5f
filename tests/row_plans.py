"""Row plans written out by hand, and read token by token."""

import itertools

import numpy as np

from longctx_jax.data.row_plan import RowPlan


def plan_from_rows(
  rows: list[list[tuple[int, int, int]]], row_len: int
) -> RowPlan:
  """A plan from rows written out as lists of (document, start, stop)."""
  slices = np.array([s for row in rows for s in row], np.int64).reshape(-1, 3)
  offsets = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
  return RowPlan(row_len, slices[:, 0], slices[:, 1], slices[:, 2], offsets)


def tokens_of(plan: RowPlan) -> list[list[tuple[int, int]]]:
  """Rows of (document, position in it)."""
  return [
    [(d, t) for d, start, stop in plan.row(i) for t in range(start, stop)]
    for i in range(len(plan))
  ]


def drawn(planner, texts: list[str], row_len: int, **options) -> list[str]:
  """Rows as text, of documents that the shuffle brings into this order."""
  order = np.random.default_rng(0).permutation(len(texts)).tolist()
  text_of = dict(zip(order, texts, strict=True))
  lengths = np.array([len(text_of[d]) for d in range(len(texts))])
  plan = planner(lengths, row_len, np.random.default_rng(0), **options)
  return [''.join(text_of[d][t] for d, t in row) for row in tokens_of(plan)]


def runs(row: list[tuple[int, int]]) -> dict[int, list[int]]:
  """Document -> its positions, in the order in which the row has them."""
  positions = {}
  for document, t in row:
    positions.setdefault(document, []).append(t)
  return positions


def all_tokens(lengths: list[int]) -> list[tuple[int, int]]:
  """Every (document, position), in order."""
  return list(
    itertools.chain.from_iterable(
      ((d, t) for t in range(length)) for d, length in enumerate(lengths)
    )
  )
