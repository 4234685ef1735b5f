"""Rows of stored documents: epochs, domains; all by number alone."""

import dataclasses

import numpy as np
import pytest

from longctx_jax.config import ConfigError
from longctx_jax.data.row_sources import StoredRows
from longctx_jax.data_config import ConversationRows, DocumentRows

ROW_LEN = 128
CONCAT = DocumentRows('documents', 1.0, (), 'concat')
CONVERSATIONS = ConversationRows('conversations', 1.0)
PLANNERS = {
  'concat': {},
  'concat_drop': {},
  'best_fit': {},
  'buckets': {'bucket_len': 64},
  'interleave': {'docs_per_row': 2, 'num_chunks': 2, 'split': 'random'},
  'untie': {'chunk_probs': (0.5, 0.5), 'min_chunk_len': 4},
}


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
  rows = StoredRows.of_conversations(
    corpus.conversations, CONVERSATIONS, ROW_LEN, (0, 0)
  )
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


@pytest.mark.parametrize('planner', PLANNERS)
def test_a_stored_row_depends_on_its_number_alone(corpus, planner):
  source = DocumentRows('documents', 1.0, (), planner, **PLANNERS[planner])

  def make(seed=0):
    return StoredRows.of_documents(corpus.documents, source, ROW_LEN, (seed, 0))

  rows, again = make(), make()
  read = [rows.row(i) for i in range(30)]
  for i in reversed(range(30)):
    assert equal(again.row(i), read[i])
  assert again.fingerprint == rows.fingerprint
  assert make(seed=1).fingerprint != rows.fingerprint
  assert not all(equal(make(seed=1).row(i), read[i]) for i in range(5))


@pytest.mark.parametrize('planner', PLANNERS)
def test_rows_read_together_are_those_that_slices_read_alone_make(
  corpus, planner
):
  source = DocumentRows('documents', 1.0, (), planner, **PLANNERS[planner])
  store = corpus.documents
  rows = StoredRows.of_documents(store, source, ROW_LEN, (0, 0))
  numbers = [3, 0, rows.epoch_len + 1, 3, rows.epoch_len - 1]
  for i, row in zip(numbers, rows.rows(numbers), strict=True):
    parts = list(
      zip(*(field.tolist() for field in rows._slices(i)), strict=True)
    )
    read = [store.read(*part) for part in parts]
    assert row.tokens.tolist() == [t for tokens, _ in read for t in tokens]
    assert row.loss_mask.tolist() == [m for _, mask in read for m in mask]
    assert row.slice_lens.tolist() == [stop - start for _, start, stop in parts]


def test_rows_are_of_the_domains_asked_for(corpus):
  store = corpus.documents
  source = dataclasses.replace(CONCAT, domains=('docs',))
  rows = StoredRows.of_documents(store, source, ROW_LEN, (0, 0))
  texts = [
    ' '.join(map(str, store.read(i, 0, int(n))[0].tolist()))
    for i, n in enumerate(store.lengths.tolist())
    if store.domain_names[store.domain_ids[i]] == 'docs'
  ]
  for i in range(20):
    for part in slices_of(rows.row(i)):
      assert any(' '.join(map(str, part)) in text for text in texts)


def test_exempt_domains_are_not_interleaved(corpus):
  store = corpus.documents
  source = DocumentRows(
    *('documents', 1.0, (), 'untie'),
    **{'chunk_probs': (0.0, 1.0), 'min_chunk_len': 1, 'exempt': ('docs',)},
  )
  rows = StoredRows.of_documents(store, source, ROW_LEN, (0, 0))
  documents = {
    domain: [
      store.read(i, 0, int(n))[0].tobytes()
      for i, n in enumerate(store.lengths.tolist())
      if store.domain_names[store.domain_ids[i]] == domain
    ]
    for domain in ('docs', 'code')
  }
  exempt_rows = set()
  for i in range(100):
    # 128 tokens end to end, unless a document ends among them.
    row = rows.row(i)
    whole = len(row.slice_lens) == 1 and row.tokens.tobytes()
    if whole and any(whole in text for text in documents['docs']):
      exempt_rows.add(i)
    else:
      assert not whole or not any(whole in text for text in documents['code'])
  assert len(exempt_rows) > 20


def test_conversations_may_be_cut_where_a_row_ends(corpus, caplog):
  caplog.set_level('INFO', 'longctx_jax')
  source = dataclasses.replace(CONVERSATIONS, planner='concat_drop')
  rows = StoredRows.of_conversations(
    corpus.conversations, source, ROW_LEN, (0, 0)
  )
  everything = documents_of(corpus.conversations)
  cut = 0
  for i in range(10):
    *whole, last = slices_of(rows.row(i))
    assert set(whole) <= everything
    assert any(conversation[: len(last)] == last for conversation in everything)
    assert len(rows.row(i).tokens) == ROW_LEN or last in everything
    cut += last not in everything
  assert cut > 5
  (message,) = caplog.messages
  assert message.startswith('planner concat_drop: ')
  assert ' 0 of ' not in message


def test_a_domain_that_is_not_there_is_named_with_those_that_are(corpus):
  source = dataclasses.replace(CONCAT, domains=('docs', 'poems'))
  with pytest.raises(ConfigError, match=r'of poems .* has code, docs'):
    StoredRows.of_documents(corpus.documents, source, ROW_LEN, (0, 0))
  with pytest.raises(ConfigError, match=r'of define .* which has'):
    StoredRows.of_conversations(
      corpus.conversations,
      dataclasses.replace(CONVERSATIONS, conversations=('define',)),
      ROW_LEN,
      (0, 0),
    )
  untie = {'chunk_probs': (1.0,), 'min_chunk_len': 1, 'exempt': ('poems',)}
  source = DocumentRows('documents', 1.0, (), 'untie', **untie)
  with pytest.raises(ConfigError, match=r'of poems .* which has code, docs'):
    StoredRows.of_documents(corpus.documents, source, ROW_LEN, (0, 0))


def test_length_buckets_share_no_document_and_leave_none_out(corpus):
  store = corpus.documents
  middle = int(np.median(store.lengths))
  short = dataclasses.replace(CONCAT, max_len=middle)
  long = dataclasses.replace(CONCAT, min_len=middle)
  tokens = [
    np.concatenate([rows.row(i).tokens for i in range(rows.epoch_len)])
    for rows in (
      StoredRows.of_documents(store, source, ROW_LEN, (0, 0))
      for source in (short, long, CONCAT)
    )
  ]
  # The one in the middle is long: the bucket ends below its max_len.
  assert len(tokens[0]) == store.lengths[store.lengths < middle].sum()
  assert len(tokens[1]) == store.lengths[store.lengths >= middle].sum()
  both = np.sort(np.concatenate(tokens[:2]))
  assert np.array_equal(both, np.sort(tokens[2]))


def test_an_empty_length_bucket_is_a_clear_error(corpus):
  source = dataclasses.replace(CONCAT, domains=('docs',), min_len=10**9)
  with pytest.raises(
    ConfigError,
    match=r'none of the \d+ documents of docs has 1000000000 <= tokens: they'
    r' have \d+ to \d+\. Change min_len',
  ):
    StoredRows.of_documents(corpus.documents, source, ROW_LEN, (0, 0))
  source = dataclasses.replace(CONCAT, max_len=2)
  with pytest.raises(ConfigError, match=r'of all domains has 0 <= tokens < 2:'):
    StoredRows.of_documents(corpus.documents, source, ROW_LEN, (0, 0))


def test_origins_name_the_documents_that_a_row_is_cut_from(corpus):
  store = corpus.documents
  number = {
    (store.domain_names[store.domain_ids[d]], store.name(d)): d
    for d in range(len(store))
  }
  source = DocumentRows('documents', 1.0, ('docs',), 'concat')
  rows = StoredRows.of_documents(store, source, ROW_LEN, (0, 0))
  # Into the second epoch, whose order is another.
  for i in range(rows.epoch_len + 3):
    parts = [
      store.read(number[origin.domain, origin.name], origin.start, origin.stop)
      for origin in rows.origins(i)
    ]
    assert slices_of(rows.row(i)) == [tuple(part.tolist()) for part, _ in parts]


def test_the_fill_of_rows_is_what_they_hold(corpus):
  for rows in (
    StoredRows.of_documents(corpus.documents, CONCAT, ROW_LEN, (0, 0)),
    StoredRows.of_conversations(
      corpus.conversations, CONVERSATIONS, ROW_LEN, (0, 0)
    ),
  ):
    held = [len(rows.row(i).tokens) for i in range(rows.epoch_len)]
    assert rows.fill == pytest.approx(np.mean(held) / ROW_LEN)
  assert rows.fill < 0.95
