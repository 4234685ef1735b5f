"""Held-out text of any amount, of which only what is looked at is read."""

import numpy as np

from longctx_jax.data.store import DocumentStore
from longctx_jax.data.tokenizer import Tokenizer


class Haystack:
  """Documents end to end, without the begin and end tokens they may have.

  documents       <s> a a a </s>   b b b </s>   (cut: no begin, no end) c c
  haystack            a a a        b b b                                c c
  """

  def __init__(self, store: DocumentStore, tokenizer: Tokenizer):
    self._store = store
    # No text encodes to these: they are at the ends of documents alone.
    around = {tokenizer.bos_id, tokenizer.eos_id} - {None}
    self._starts = np.zeros(len(store), np.int64)
    stops = store.lengths.copy()
    if around:
      for i, length in enumerate(store.lengths.tolist()):
        ((first,), _), ((last,), _) = (
          store.read(i, at, at + 1) for at in (0, length - 1)
        )
        self._starts[i] = first in around
        stops[i] = max(length - (last in around), self._starts[i])
    self._offsets = np.concatenate([[0], np.cumsum(stops - self._starts)])

  def __len__(self) -> int:
    """Number of tokens."""
    return int(self._offsets[-1])

  def __getitem__(self, part: slice) -> np.ndarray:
    """Tokens [stop - start] int32."""
    start, stop, _ = part.indices(len(self))
    first, last = np.searchsorted(self._offsets, [start, stop - 1], 'right') - 1
    parts = [np.zeros(0, np.int32)]
    for i in range(first, last + 1) if stop > start else ():
      before = self._starts[i] - self._offsets[i]
      begin = max(start, self._offsets[i]) + before
      end = min(stop, self._offsets[i + 1]) + before
      parts.append(self._store.read(i, int(begin), int(end))[0])
    return np.concatenate(parts)
