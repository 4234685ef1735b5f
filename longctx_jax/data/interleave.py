"""Chunk Interleaved Pretraining (CIP): LongSkywork, arXiv:2406.00605.

Documents are cut into N chunks, and a row takes the first chunk of each of its
documents, then the second of each, and so on: to go on with a document the
model must look past the others'. The paper's own code is not public; this
follows the definition that UtK gives when it re-runs CIP-2 (arXiv:2409.04774,
sec. 4.3) and OLMo-core's interleaved dataset. Interleaved rows are one segment:
a document mask would cut the very links they are made for.
"""

from collections.abc import Sequence

import numpy as np

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.data.row_plan import RowPlan, plan_from_rows


def chunk_bounds(
  length: int,
  num_chunks: int,
  split: str,
  rng: np.random.Generator | None = None,
) -> list[tuple[int, int]]:
  """(start, stop) of the chunks of a document; shorter ones have fewer chunks.

  Args:
    length: tokens of the document.
    num_chunks: N of CIP-N; LongSkywork found 2 best (as told in UtK, 4.3).
    split: 'equal', the first chunks taking what is left over, or 'random':
      distinct cut points, every chunk at least one token long.
    rng: for 'random'.
  """
  if not length:
    return []
  num_chunks = min(num_chunks, length)
  if split == 'equal':
    sizes = np.full(num_chunks, length // num_chunks)
    sizes[: length % num_chunks] += 1
    ends = np.cumsum(sizes)
  else:
    cuts = rng.choice(length - 1, num_chunks - 1, replace=False) + 1
    ends = np.append(np.sort(cuts), length)
  return list(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True))


def round_robin(chunks: Sequence[Sequence]) -> list:
  """First items of each list, then second items, skipping what has run out.

  [[a1 a2 a3] [b1] [c1 c2]]   ->   a1 b1 c1 a2 c2 a3
  """
  longest = max((len(items) for items in chunks), default=0)
  return [
    items[i] for i in range(longest) for items in chunks if i < len(items)
  ]


def interleave_chunks(
  documents: Sequence[Sequence[int]],
  num_chunks: int,
  *,
  split: str = 'equal',
  rng: np.random.Generator | None = None,
) -> list[int]:
  """The definition, on tokens; `interleaved_rows` plans the same thing.

  21 22 23 24 25 and 11 12 13 14 15 16 17 18, in 4 chunks each:
  [21 22] [11 12] [23] [13 14] [24] [15 16] [25] [17 18]
  """
  pieces = [
    [
      document[start:stop]
      for start, stop in chunk_bounds(len(document), num_chunks, split, rng)
    ]
    for document in documents
  ]
  return [token for chunk in round_robin(pieces) for token in chunk]


def interleaved_rows(
  lengths: np.ndarray,
  row_len: int,
  rng: np.random.Generator,
  *,
  docs_per_row: int,
  num_chunks: int,
  split: str,
) -> RowPlan:
  """Rows of at least `docs_per_row` interleaved documents.

  A document longer than row_len / docs_per_row is first cut into pieces of
  that length, which then count as documents (differs from OLMo-core, which
  drops the rest of it: here no token is lost). A row takes pieces while they
  fit, so short documents don't leave it empty.

  Raises:
    ConfigError: if a number makes no sense.
  """
  if docs_per_row < 1 or num_chunks < 1 or docs_per_row > row_len:
    raise ConfigError(
      f'interleaving needs 1 <= docs_per_row <= row_len and num_chunks >= 1,'
      f' got docs_per_row={docs_per_row}, num_chunks={num_chunks},'
      f' row_len={row_len}'
    )
  piece_len = row_len // docs_per_row
  pieces = [
    (document, start, min(start + piece_len, length))
    for document, length in enumerate(lengths.tolist())
    for start in range(0, length, piece_len)
  ]
  groups, used = [], row_len
  for i in rng.permutation(len(pieces)).tolist():
    length = pieces[i][2] - pieces[i][1]
    if used + length > row_len:
      groups.append([])
      used = 0
    groups[-1].append(pieces[i])
    used += length
  rows = [
    round_robin(
      [
        [
          (document, first + start, first + stop)
          for start, stop in chunk_bounds(last - first, num_chunks, split, rng)
        ]
        for document, first, last in group
      ]
    )
    for group in groups
  ]
  return plan_from_rows(rows, row_len)
