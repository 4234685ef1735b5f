"""What a corpus holds: documents and tokens by domain and length.

The lengths are those of ProLong's tables of long data and of short data
(arXiv:2410.02660, Tables 3 and 14), continued to 512K.
"""

from typing import Any

import numpy as np

from longctx_jax.data.counts import Counts
from longctx_jax.data.prepare import Corpus
from longctx_jax.data.store import DocumentStore

# ProLong, Table 14: above 4K, 8K, 16K, 32K. ours: from there to the longest
# rows of its stages, 512K (Table 9).
LENGTHS = tuple(4096 << i for i in range(8))


def corpus_statistics(corpus: Corpus, *, num_cut: int) -> dict[str, Any]:
  """For JSON; see `length_table` for what it says of each store.

  Args:
    num_cut: documents that were longer than corpus.filters.max_tokens.
  """
  # What manifests say by source, of all sources.
  counts = sum(corpus.documents.accounts.values(), Counts())
  stores = {
    'documents': corpus.documents,
    'heldout': corpus.heldout,
    'conversations': corpus.conversations,
  }
  return {
    'counts': counts.of_both().as_dict(),
    'cut_to_max_tokens': num_cut,
    'lengths': list(LENGTHS),
    'stores': {
      name: {
        'fingerprint': store.fingerprint,
        'domains': length_table(store),
      }
      for name, store in stores.items()
    },
    'tokenizer_fingerprint': corpus.tokenizer.fingerprint,
  }


def length_table(store: DocumentStore) -> dict[str, dict[str, Any]]:
  """Domain -> documents and tokens in all, and by length.

  lengths of documents     100, 5000, 6000
  documents                3
  documents_by_length      [1, 2, 0, ...]           < 4K, 4K to 8K, ...
  tokens_by_length         [100, 11000, 0, ...]
  """
  table = {}
  num_buckets = len(LENGTHS) + 1
  buckets = np.searchsorted(LENGTHS, store.lengths, side='right')
  # One pass over all documents, however many domains there are.
  cells = store.domain_ids.astype(np.int64) * num_buckets + buckets
  shape = (len(store.domain_names), num_buckets)
  size = shape[0] * shape[1]
  documents = np.bincount(cells, minlength=size).reshape(shape)
  tokens = np.bincount(cells, store.lengths, size).astype(np.int64)
  tokens = tokens.reshape(shape)
  for domain, by_length, of_tokens in zip(
    store.domain_names, documents, tokens, strict=True
  ):
    table[domain] = {
      'documents': int(by_length.sum()),
      'tokens': int(of_tokens.sum()),
      'documents_by_length': by_length.tolist(),
      'tokens_by_length': of_tokens.tolist(),
    }
  return table
