"""Row sources: epochs, domains, tables that fit; all by number alone."""

import dataclasses

import numpy as np
import pytest

from longctx_jax.config import ConfigError
from longctx_jax.data import synthetic_tables
from longctx_jax.data.row_sources import (
  StoredRows,
  SyntheticTableRows,
  make_table_conversation,
)
from longctx_jax.data_config import DocumentRows
from tests import small

ROW_LEN = 128
TABLES = small.stage_config().data.mixture['tables']
CONCAT = DocumentRows('documents', 1.0, (), 'concat')


def documents_of(store):
  return {
    tuple(store.read(i, 0, int(length))[0].tolist())
    for i, length in enumerate(store.lengths.tolist())
  }


def slices_of(row):
  ends = np.cumsum(row.slice_lens)[:-1]
  return [tuple(part.tolist()) for part in np.split(row.tokens, ends)]


def equal(a, b):
  return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_an_epoch_has_every_row_once_and_the_next_another_order(corpus):
  rows = StoredRows.of_conversations(corpus.conversations, (), ROW_LEN, (0, 0))
  everything = sorted(documents_of(corpus.conversations))
  i, epochs = 0, []
  for _ in range(3):
    seen, order = [], []
    while len(seen) < len(everything):
      slices = slices_of(rows.row(i))
      seen += slices
      order.append(tuple(slices))
      i += 1
    assert sorted(seen) == everything
    epochs.append(order)
  assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
  assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_rows_of_documents_hold_all_their_tokens(corpus):
  store = corpus.documents
  rows = StoredRows.of_documents(store, CONCAT, ROW_LEN, (0, 0))
  epoch = -(-int(store.lengths.sum()) // ROW_LEN)
  read = np.concatenate([rows.row(i).tokens for i in range(epoch)])
  expected = np.concatenate([list(d) for d in documents_of(store)])
  assert np.array_equal(np.sort(read), np.sort(expected))


@pytest.mark.parametrize('planner', ['concat', 'interleave'])
def test_a_stored_row_depends_on_its_number_alone(corpus, planner):
  source = DocumentRows('documents', 1.0, (), planner, 2, 2, 'random')

  def make(seed=0):
    return StoredRows.of_documents(corpus.documents, source, ROW_LEN, (seed, 0))

  rows, again = make(), make()
  read = [rows.row(i) for i in range(30)]
  for i in reversed(range(30)):
    assert equal(again.row(i), read[i])
  assert again.fingerprint == rows.fingerprint
  assert make(seed=1).fingerprint != rows.fingerprint
  assert not all(equal(make(seed=1).row(i), read[i]) for i in range(5))


def test_rows_are_of_the_domains_asked_for(corpus):
  store = corpus.documents
  source = dataclasses.replace(CONCAT, domains=('docs',))
  rows = StoredRows.of_documents(store, source, ROW_LEN, (0, 0))
  texts = [
    ' '.join(map(str, store.read(i, 0, int(n))[0].tolist()))
    for i, n in enumerate(store.lengths.tolist())
    if store.domains[i] == 'docs'
  ]
  for i in range(20):
    for part in slices_of(rows.row(i)):
      assert any(' '.join(map(str, part)) in text for text in texts)


def test_a_domain_that_is_not_there_is_named_with_those_that_are(corpus):
  source = dataclasses.replace(CONCAT, domains=('docs', 'poems'))
  with pytest.raises(ConfigError, match=r'of poems .* has code, docs'):
    StoredRows.of_documents(corpus.documents, source, ROW_LEN, (0, 0))
  with pytest.raises(ConfigError, match=r'of define .* which has'):
    StoredRows.of_conversations(
      corpus.conversations, ('define',), ROW_LEN, (0, 0)
    )


def test_rows_of_tables_fit_and_keep_each_conversation_whole(corpus):
  tokenizer = corpus.tokenizer
  tables = dataclasses.replace(TABLES, min_len=40, max_len=200)
  rows = SyntheticTableRows(tables, tokenizer, 256, (0, 0))
  counts = set()
  for i in range(40):
    row = rows.row(i)
    assert len(row.tokens) == len(row.loss_mask) == row.slice_lens.sum() <= 256
    slices = slices_of(row)
    counts.add(len(slices))
    for part in slices:
      assert part[0] == tokenizer.bos_id
      assert part.count(tokenizer.bos_id) == 1
      assert part[-1] == tokenizer.end_id
      assert part.count(tokenizer.user_id) == part.count(tokenizer.end_id)
    assert row.loss_mask[-1]
  assert len(counts) > 2


def test_a_row_of_tables_depends_on_its_number_alone(corpus):
  def make(seed=0):
    return SyntheticTableRows(TABLES, corpus.tokenizer, ROW_LEN, (seed, 0))

  rows, again = make(), make()
  read = [rows.row(i) for i in range(10)]
  for i in reversed(range(10)):
    assert equal(again.row(i), read[i])
  assert len({row.tokens.tobytes() for row in read}) == 10
  assert not equal(make(seed=1).row(0), read[0])


def test_a_table_too_large_for_any_row_is_a_clear_error(corpus):
  tables = dataclasses.replace(
    TABLES, layouts={'json': 1.0}, num_columns=9, min_len=32, max_len=40
  )
  with pytest.raises(ConfigError, match='fits into 40 tokens: raise'):
    SyntheticTableRows(tables, corpus.tokenizer, 40, (0, 0))


@pytest.mark.parametrize(
  'changes', [{'tasks': {'lookup': 1.0}}, {'layouts': {'html': 1.0}}], ids=str
)
def test_an_unknown_task_or_layout_is_refused_before_any_row(corpus, changes):
  tables = dataclasses.replace(TABLES, **changes)
  with pytest.raises(ConfigError, match=r'mixture, tables: .*unknown'):
    SyntheticTableRows(tables, corpus.tokenizer, ROW_LEN, (0, 0))


@pytest.mark.parametrize('layout', synthetic_tables.LAYOUTS)
def test_tables_fill_the_length_that_is_asked_for(corpus, layout):
  tables = dataclasses.replace(
    TABLES, layouts={layout: 1.0}, num_columns=4, max_questions=1000
  )
  # Not near 3000, where keys of 'plain' tables turn from one word into two.
  for length in (300, 1000, 8000):
    conversation = make_table_conversation(
      np.random.default_rng(length), corpus.tokenizer, tables, length
    )
    used = len(conversation.encoded[0])
    assert 0.6 * length < used <= length
    num_questions = len(conversation.questions)
    assert num_questions == -(-len(conversation.table.rows) // 2)


ANNOTATED = dataclasses.replace(TABLES, layouts={'annotated': 1.0})


def test_annotated_tables_fill_lengths_though_their_remarks_differ(corpus):
  used = [
    len(
      make_table_conversation(
        np.random.default_rng(seed), corpus.tokenizer, ANNOTATED, 1000
      ).encoded[0]
    )
    for seed in range(40)
  ]
  assert max(used) <= 1000
  assert np.mean(used) > 850


def test_rows_too_short_for_some_annotated_lines_are_filled(corpus):
  tables = dataclasses.replace(ANNOTATED, min_len=32, max_len=72)
  rows = SyntheticTableRows(tables, corpus.tokenizer, 72, (0, 0))
  assert all(0 < len(rows.row(i).tokens) <= 72 for i in range(300))
