"""What may happen to a document before it is stored: pure functions.

Which documents are held out is decided in `documents.is_heldout`.
"""

import hashlib

import numpy as np

from longctx_jax.corpus_config import DocumentFilters, TextSource


def stored_text(text: str, source: TextSource) -> str:
  """A document's text with the line ends that its source is stored with."""
  return normalise_line_ends(text) if source.line_ends == 'normalise' else text


def normalise_line_ends(text: str) -> str:
  r"""Every line ends in \n: not in the \r\n of Windows, or the \r of old Macs.

  A text that was neither is returned as it is, not copied.
  """
  if '\r' not in text:  # far quicker to see than to replace nothing, twice
    return text
  return text.replace('\r\n', '\n').replace('\r', '\n')


def text_key(text: str) -> bytes:
  """16 bytes that two documents share if and only if their texts are equal.

  By chance two of 10**12 different texts share it once in 10**14 corpora.
  """
  return hashlib.blake2b(text.encode(), digest_size=16).digest()


def fit_length(
  tokens: np.ndarray, filters: DocumentFilters
) -> tuple[np.ndarray | None, str]:
  """(tokens that stay, what was done), or (None, kind of drop).

      min_tokens=3 max_tokens=5       too_long='cut'          'drop'
      1 2                             None, 'too_short'       the same
      1 2 3 4                         1 2 3 4, ''             the same
      1 2 3 4 5 6                     1 2 3 4 5, 'cut'        None, 'too_long'

  What is cut has lost its end token: it does not end there. Of a text that a
  tokenizer makes nothing of, nothing can stay.
  """
  if len(tokens) < max(filters.min_tokens, 1):
    return None, 'too_short'
  if not filters.max_tokens or len(tokens) <= filters.max_tokens:
    return tokens, ''
  if filters.too_long == 'drop':
    return None, 'too_long'
  return tokens[: filters.max_tokens], 'cut'
