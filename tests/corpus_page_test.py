"""The page about a corpus: its figures are those of the corpus."""

import re

import numpy as np
import pytest

from longctx_jax import corpus_page
from longctx_jax.corpus_page import (
  bucket_names,
  share_cell,
  store_rows,
  write_corpus_page,
)
from longctx_jax.data.prepare_pipeline import prepare_at_scale
from tests.data.large_corpus import PREPARE, config_of, write_texts


def row(documents, tokens):
  return {
    'documents': sum(documents),
    'tokens': sum(tokens),
    'documents_by_length': documents,
    'tokens_by_length': tokens,
  }


def shown(cells):
  return [(cell.text, count) for cell, count in cells]


def test_shares_are_of_documents_of_a_length_or_more():
  # ProLong's Table 14 reads so: ArXiv 85.7, 64.0, ... from 4K, 8K, ...
  books, code, all_of_it = store_rows(
    {'books': row([1, 2, 1], [5, 10, 35]), 'code': row([4, 0, 0], [50, 0, 0])}
  )
  assert shown(books['longer']) == [('75.0', 3), ('25.0', 1)]
  assert shown(books['shares']) == [('10.0', 5), ('20.0', 10), ('70.0', 35)]
  assert shown(code['longer']) == [('0', 0), ('0', 0)]
  assert (all_of_it['documents'], all_of_it['tokens']) == (8, 100)
  assert shown(all_of_it['longer']) == [('37.5', 3), ('12.5', 1)]
  assert shown(all_of_it['shares']) == [
    *(('55.0', 55), ('10.0', 10), ('35.0', 35)),
  ]
  assert len(store_rows({'books': row([1, 2, 1], [5, 10, 35])})) == 1


def test_a_share_is_never_rounded_to_none():
  assert [share_cell(x).text for x in (0, 1e-5, 0.109, 1)] == [
    *('0', '<0.1', '10.9', '100.0'),
  ]
  assert bucket_names([4096, 8192]) == ['< 4K', '4K to 8K', 'from 8K']


def test_the_page_is_self_contained_and_has_every_count(tmp_path):
  config = config_of(write_texts(tmp_path / 'texts'))
  corpus = prepare_at_scale(config, tmp_path / 'c', **PREPARE)
  path = write_corpus_page(tmp_path / 'c')
  page = path.read_text()
  assert path.name == corpus_page.PAGE
  assert not re.search(r'(src|href)=|@import|url\(|<script', page)
  assert f'>{int(corpus.documents.lengths.sum()):,}<' in page
  by_length = np.histogram(
    corpus.documents.lengths, [0, 4096, 10**9], weights=corpus.documents.lengths
  )[0].astype(int)
  assert f'<small>{by_length[0]:,}</small>' in page
  for kind in ('kept', 'double', 'over budget', 'bad json', 'line ends'):
    assert f'<th scope="row">{kind}</th>' in page
  for heading in ('Training documents', 'Held-out documents', 'Conversations'):
    assert f'<h2>{heading}</h2>' in page


def test_a_corpus_without_statistics_has_no_page(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'statistics\.json'):
    write_corpus_page(tmp_path)
