"""RowPlan: which slices of which documents make row i.

Every packing scheme (concatenation, whole conversations, chunk interleaving) is
a planner `(document lengths, row length, rng) -> RowPlan`, and nothing else.
Reading a row is the same code for all, and any row can be read at any time, so
a batch is a pure function of (seed, step) and resuming costs nothing.
"""

import dataclasses
import hashlib
from typing import NamedTuple

import numpy as np


class Slices(NamedTuple):
  """Stretches of documents that planners group into rows; int64 [n] each."""

  documents: np.ndarray
  starts: np.ndarray  # tokens
  stops: np.ndarray  # tokens, exclusive

  @property
  def lens(self) -> np.ndarray:
    """Tokens of each."""
    return self.stops - self.starts

  def take(self, order: np.ndarray) -> 'Slices':
    """The slices of these numbers, in this order."""
    return Slices(*(field[order] for field in self))


@dataclasses.dataclass(frozen=True)
class RowPlan:
  """Rows of at most `row_len` tokens, each a list of document slices.

      documents   0: a b c d e     1: x y
      row_len 4   row 0: [(0, 0, 4)]             a b c d
                  row 1: [(0, 4, 5), (1, 0, 2)]  e x y .

  Slices lie flat, those of row i at row_offsets[i]:row_offsets[i + 1].
  """

  row_len: int
  documents: np.ndarray  # int64 [num_slices]
  starts: np.ndarray  # int64 [num_slices], tokens
  stops: np.ndarray  # int64 [num_slices], tokens, exclusive
  row_offsets: np.ndarray  # int64 [num_rows + 1]

  def __len__(self) -> int:
    return len(self.row_offsets) - 1

  @property
  def num_tokens(self) -> int:
    """Tokens in all rows."""
    return int((self.stops - self.starts).sum())

  def row(self, i: int) -> list[tuple[int, int, int]]:
    """Slices (document, start, stop) of row i, in order."""
    fields = self.slices(i)
    return list(zip(*(field.tolist() for field in fields), strict=True))

  def slices(self, i: int) -> Slices:
    """Slices of row i, in order, as arrays."""
    part = slice(self.row_offsets[i], self.row_offsets[i + 1])
    return Slices(self.documents[part], self.starts[part], self.stops[part])

  def fingerprint(self) -> str:
    """Twelve hex digits that change with any slice."""
    digest = hashlib.sha256(str(self.row_len).encode())
    for field in (self.documents, self.starts, self.stops, self.row_offsets):
      digest.update(np.ascontiguousarray(field, np.int64).tobytes())
    return digest.hexdigest()[:12]


def plan_from_slices(
  slices: Slices, row_offsets: np.ndarray, row_len: int
) -> RowPlan:
  """A plan whose row i holds slices row_offsets[i]:row_offsets[i + 1]."""
  fields = [np.asarray(f, np.int64) for f in (*slices, row_offsets)]
  return RowPlan(row_len, *fields)


def join_plans(first: RowPlan, second: RowPlan) -> RowPlan:
  """The rows of one plan and then those of another."""
  return RowPlan(
    first.row_len,
    np.append(first.documents, second.documents),
    np.append(first.starts, second.starts),
    np.append(first.stops, second.stops),
    np.append(
      first.row_offsets, second.row_offsets[1:] + first.row_offsets[-1]
    ),
  )


def dropped_tokens(plan: RowPlan, lengths: np.ndarray) -> int:
  """Tokens of documents of these lengths that no row of their plan holds.

  Right because no planner puts a token into two places (tested of each).
  """
  return int(lengths.sum()) - plan.num_tokens
