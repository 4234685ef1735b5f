"""Stored documents as one text, of which only what is asked for is read."""

import hashlib

import numpy as np

from longctx_jax.data.store import DocumentStore
from longctx_jax.data.tokenizer import Tokenizer

_CUT_CHARACTER = '\N{REPLACEMENT CHARACTER}'  # what is left of one


class StoredText:
  """Documents end to end, an empty line between two; it goes round and round.

  What begins and ends a document is no text. Where a stretch begins or ends
  within a character, that character is left out.
  """

  def __init__(
    self, store: DocumentStore, documents: np.ndarray, tokenizer: Tokenizer
  ):
    """`documents` are numbers in the store, one or more."""
    self._store, self._tokenizer = store, tokenizer
    self._documents = documents
    lengths = store.lengths[documents]
    self._offsets = np.concatenate([[0], np.cumsum(lengths)])
    numbers = hashlib.sha256(documents.astype(np.int64).tobytes()).hexdigest()
    self.fingerprint = f'{store.fingerprint}-{numbers[:12]}'

  def __len__(self) -> int:
    """Number of tokens."""
    return int(self._offsets[-1])

  def read(self, start: int, num_tokens: int) -> str:
    """The text of so many tokens, from token `start` on."""
    parts = []
    while num_tokens > 0:
      start %= len(self)
      k = int(np.searchsorted(self._offsets, start, 'right')) - 1
      first, end = self._offsets[k : k + 2].tolist()
      stop = min(end, start + num_tokens)
      tokens, _ = self._store.read(
        int(self._documents[k]), start - first, stop - first
      )
      text = self._tokenizer.decode(tokens)  # control symbols give nothing
      parts.append(text.strip(_CUT_CHARACTER))
      num_tokens -= stop - start
      start = stop
    return '\n\n'.join(parts)
