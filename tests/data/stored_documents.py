"""Documents for the tests of the store, and a store of them."""

import numpy as np

from longctx_jax.data.store import DocumentStore
from longctx_jax.data.store_writer import StoredDocument, write_store


def make_documents(lengths, seed=0, large_ids=True):
  """Every second document has a loss mask, every third one large ids."""
  rng = np.random.default_rng(seed)
  return [
    StoredDocument(
      f'näme {i}',
      f'domain {i % 3}',
      rng.integers(
        *(0, 50_000 if i % 3 or not large_ids else 150_000, length),
        dtype=np.int32,
      ),
      rng.integers(0, 2, length, dtype=np.uint8) if i % 2 else None,
    )
    for i, length in enumerate(lengths)
  ]


def write(directory, documents, **options):
  write_store(
    directory,
    documents,
    tokenizer_fingerprint='0123456789ab',
    settings={'max_chars': 7},
    **options,
  )
  return DocumentStore(directory)


def mask_of(document):
  if document.loss_mask is None:
    return np.ones(len(document.tokens), bool)
  return document.loss_mask.astype(bool)


def files_of(directory):
  return {path.name for path in directory.iterdir()}


COMPRESSIONS = ['none', 'zstd']
SHARD = 'documents-00000-of-00001.array_record'
INDEX = ['offsets.npy', 'domains.npy', 'checksums.npy', 'places.npy']
FILES = [SHARD, *INDEX, 'manifest.json']
