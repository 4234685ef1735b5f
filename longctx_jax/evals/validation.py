"""Loss on held-out documents, by position: does more context help?"""

import itertools

import numpy as np

from longctx_jax.data.packing import concat_rows
from longctx_jax.data.store import DocumentStore
from longctx_jax.evals.predict import Predictor


def position_buckets(length: int) -> list[tuple[int, int]]:
  """[0, 64), [64, 128), [128, 256), ... up to `length`."""
  edges = [0, 64]
  while edges[-1] < length:
    edges.append(2 * edges[-1])
  edges[-1] = length
  return list(itertools.pairwise(edges))


def validation_loss(
  predictor: Predictor,
  store: DocumentStore,
  *,
  length: int,
  num_rows: int,
  seed: int,
) -> tuple[float, dict[str, float]]:
  """Mean token loss in nats over rows of `length`, and by position bucket.

  Rows are slices of single documents, so that all the context is of a piece;
  only where no document has `length` tokens are shorter ones packed. There may
  be fewer than `num_rows`.
  """
  rng = np.random.default_rng(seed)
  # Slices that fit into each document, side by side, numbered through.
  per_document = store.lengths // length
  ends = np.cumsum(per_document)
  if ends[-1]:
    chosen = rng.permutation(ends[-1])[:num_rows]
    documents = np.searchsorted(ends, chosen, 'right')
    starts = length * (chosen - (ends - per_document)[documents])
    rows = [
      store.read(d, start, start + length)[0]
      for d, start in zip(documents.tolist(), starts.tolist(), strict=True)
    ]
  else:
    plan = concat_rows(store.lengths, length, rng)
    rows = [
      np.concatenate([store.read(*part)[0] for part in plan.row(i)])
      for i in range(min(num_rows, len(plan)))
    ]
  sums, counts = np.zeros(length), np.zeros(length)
  for losses, _ in predictor.rows(rows):
    # Entry t of the losses is about the token at position t + 1.
    sums[1 : len(losses) + 1] += losses
    counts[1 : len(losses) + 1] += 1
  by_position = {
    f'{start}-{stop}': float(sums[start:stop].sum() / total)
    for start, stop in position_buckets(length)
    if (total := counts[start:stop].sum())
  }
  return float(sums.sum() / counts.sum()), by_position
