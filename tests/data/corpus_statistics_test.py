"""Documents and tokens by length: counted by hand."""

import numpy as np

from longctx_jax.data.corpus_statistics import LENGTHS, length_table
from longctx_jax.data.store import DocumentStore
from longctx_jax.data.store_writer import StoredDocument, write_store


def test_every_document_is_in_the_bucket_of_its_length(tmp_path):
  lengths = {
    'books': [100, 4095, 4096, 8191, 8192, 600_000],
    'code': [524_287, 524_288],
  }
  documents = [
    StoredDocument(f'{domain}/{n}', domain, np.zeros(n, np.int32), None)
    for domain, each in lengths.items()
    for n in each
  ]
  write_store(
    tmp_path / 'store', documents, tokenizer_fingerprint='', settings={}
  )
  table = length_table(DocumentStore(tmp_path / 'store'))
  assert tuple(n * 1024 for n in (4, 8, 16, 32, 64, 128, 256, 512)) == LENGTHS
  assert table['books'] == {
    'documents': 6,
    'tokens': 624_674,
    'documents_by_length': [2, 2, 1, 0, 0, 0, 0, 0, 1],
    'tokens_by_length': [4195, 12_287, 8192, 0, 0, 0, 0, 0, 600_000],
  }
  assert table['code']['documents_by_length'] == [0] * 7 + [1, 1]
  assert table['code']['tokens_by_length'] == [0] * 7 + [524_287, 524_288]
