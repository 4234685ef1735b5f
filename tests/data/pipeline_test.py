"""Batches: drawn fields, and step s the same from wherever one starts."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from longctx_jax.data.mixture import Mixture
from longctx_jax.data.pipeline import BatchSource, batch_fields, make_pipeline
from longctx_jax.data.row_sources import Row
from longctx_jax.data.sentencepiece_tokenizer import train_sentencepiece
from tests import small

STEPS = 4


def data_config(**changes):
  return small.stage_config(data=changes).data


def row_of(*documents, loss_mask=None):
  tokens = np.concatenate(documents).astype(np.int32)
  mask = np.ones(len(tokens)) if loss_mask is None else loss_mask
  lens = np.array([len(document) for document in documents])
  return Row(tokens, np.array(mask, bool), lens)


def drawn(batch):
  return {name: field.tolist() for name, field in batch._asdict().items()}


def test_fields_are_those_drawn_at_batch():
  row = row_of([11, 12, 13], [21, 22])
  config = dataclasses.replace(data_config(), seq_len=6)
  assert drawn(batch_fields(row, config)) == {
    'tokens': [11, 12, 13, 21, 22, 0],
    'targets': [12, 13, 21, 22, 0, 0],
    'loss_weights': [1, 1, 0, 1, 0, 0],
    'segment_ids': [1, 1, 1, 2, 2, 0],
    'positions': [0, 1, 2, 0, 1, 0],
  }


def test_without_a_document_mask_the_row_is_one_segment():
  row = row_of([11, 12, 13], [21, 22])
  config = dataclasses.replace(
    data_config(), seq_len=6, document_mask=False, restart_positions=False
  )
  assert drawn(batch_fields(row, config)) == {
    'tokens': [11, 12, 13, 21, 22, 0],
    'targets': [12, 13, 21, 22, 0, 0],
    'loss_weights': [1, 1, 1, 1, 0, 0],
    'segment_ids': [1, 1, 1, 1, 1, 0],
    'positions': [0, 1, 2, 3, 4, 0],
  }


def test_conversations_are_trained_on_their_answers_alone():
  # user 1, question 2, assistant 3; answers 77 and 88, end 9.
  row = row_of([1, 2, 3, 77, 9], [1, 3, 88, 9], loss_mask=[0, 0, 0, 1, 1] * 2)
  row = row._replace(loss_mask=np.array([0, 0, 0, 1, 1, 0, 0, 1, 1], bool))
  config = dataclasses.replace(data_config(), seq_len=10)
  fields = drawn(batch_fields(row, config))
  assert fields['tokens'] == [1, 2, 3, 77, 9, 1, 3, 88, 9, 0]
  assert fields['targets'] == [2, 3, 77, 9, 1, 3, 88, 9, 0, 0]
  assert fields['loss_weights'] == [0, 0, 1, 1, 0, 0, 1, 1, 0, 0]


def test_the_sequence_normalizer_weighs_documents_alike():
  row = row_of([11, 12, 13], [21, 22], [31])
  config = dataclasses.replace(
    data_config(), seq_len=7, loss_normalizer='sequence'
  )
  weights = batch_fields(row, config).loss_weights
  assert weights.tolist() == [0.5, 0.5, 0, 1, 0, 0, 0]


@given(
  st.lists(st.integers(1, 5), min_size=1, max_size=6),
  st.integers(0, 3),
  st.booleans(),
  st.booleans(),
  st.sampled_from(['token', 'sequence']),
  st.data(),
)
@example([1], 0, True, True, 'sequence', None)
def test_fields_keep_the_contract(
  lens, padding, document_mask, restart, normalizer, data
):
  n = sum(lens)
  flags = st.lists(st.booleans(), min_size=n, max_size=n)
  mask = data.draw(flags) if data else [True] * n
  tokens = np.arange(100, 100 + n)
  row = row_of(*np.split(tokens, np.cumsum(lens)[:-1]), loss_mask=mask)
  config = dataclasses.replace(
    data_config(),
    seq_len=n + padding,
    document_mask=document_mask,
    restart_positions=restart,
    loss_normalizer=normalizer,
  )
  batch = batch_fields(row, config)
  document = [k for k, length in enumerate(lens) for _ in range(length)]
  assert batch.tokens.tolist() == [*tokens.tolist(), *[0] * padding]
  segments = [k + 1 for k in document] if document_mask else [1] * n
  assert batch.segment_ids.tolist() == segments + [0] * padding
  start = [document.index(k) if restart else 0 for k in document]
  positions = [t - s for t, s in enumerate(start)]
  assert batch.positions.tolist() == positions + [0] * padding
  trained = [
    t
    for t in range(n - 1)
    if mask[t + 1] and (not document_mask or document[t] == document[t + 1])
  ]
  assert np.flatnonzero(batch.loss_weights).tolist() == trained
  assert all(batch.targets[t] == tokens[t + 1] for t in trained)
  if normalizer == 'token':
    assert set(batch.loss_weights[trained].tolist()) <= {1.0}
  else:
    sums = Counter()
    for t in trained:
      sums[document[t]] += float(batch.loss_weights[t])
    assert list(sums.values()) == pytest.approx([1.0] * len(sums))
  dtypes = [field.dtype.name for field in batch]
  assert dtypes == ['int32', 'int32', 'float32', 'int32', 'int32']


def source_of(corpus, *, seed=0, steps=STEPS, **changes):
  return BatchSource(data_config(**changes), corpus, seed=seed, num_steps=steps)


def equal(a, b):
  return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_any_row_can_be_read_first(corpus):
  source, again = source_of(corpus), source_of(corpus)
  rows = [source[i] for i in range(len(source))]
  assert len(rows) == STEPS * 8
  for i in np.random.default_rng(0).permutation(len(rows)).tolist():
    assert equal(again[i], rows[i])


@pytest.mark.parametrize('start_step', range(STEPS + 1))
def test_a_pipeline_goes_on_from_any_step_as_if_never_stopped(
  corpus, start_step
):
  source = source_of(corpus)
  expected = [
    [np.stack(field) for field in zip(*rows, strict=True)]
    for step in range(STEPS)
    for rows in [[source[8 * step + k] for k in range(8)]]
  ]
  batches = list(make_pipeline(source_of(corpus), 8, start_step=start_step))
  assert len(batches) == STEPS - start_step
  for batch, fields in zip(batches, expected[start_step:], strict=True):
    assert equal(batch, fields)


def test_more_steps_do_not_change_the_rows(corpus):
  source = source_of(corpus)
  longer = source_of(corpus, steps=9)
  assert all(equal(longer[i], source[i]) for i in range(len(source)))
  assert longer.fingerprint == source.fingerprint


def test_rows_are_of_the_sources_that_the_mixture_names(corpus):
  config = data_config()
  weights = {name: s.weight for name, s in config.mixture.items()}
  mixture = Mixture(weights, seed=0)
  source = source_of(corpus, steps=16)
  kinds = Counter()
  for i in range(len(source)):
    name, _ = mixture.source_of_example(i)
    row = source[i]
    marked = bool((row.tokens == corpus.tokenizer.control_id('<|user|>')).any())
    assert marked == (name != 'text')
    kinds[name] += 1
  assert kinds == {'text': 64, 'chat': 32, 'tables': 32}


def test_targets_of_conversations_decode_to_answers(corpus):
  tokenizer = corpus.tokenizer
  chat = {'chat': {'kind': 'conversations', 'weight': 1.0}}
  source = source_of(corpus, mixture=chat)
  for i in range(len(source)):
    row = source[i]
    trained = row.loss_weights > 0
    # Each answer, and nothing before it, is between a marker and an end.
    starts = np.flatnonzero(row.tokens == tokenizer.control_id('<|assistant|>'))
    ends = np.flatnonzero(row.targets == tokenizer.control_id('<|end|>'))
    expected = np.zeros(len(trained), bool)
    for start, end in zip(starts, ends, strict=True):
      expected[start : end + 1] = True
    assert len(starts) >= 1
    assert np.array_equal(trained, expected)


@pytest.mark.parametrize(
  'changes',
  [
    {'seed': 1},
    {'document_mask': False},
    {'batch_size': 16},
    {'loss_normalizer': 'sequence'},
    {'mixture': {'chat': {'kind': 'conversations', 'weight': 1.0}}},
  ],
)
def test_the_fingerprint_changes_with_seed_and_data_section(corpus, changes):
  fingerprint = source_of(corpus).fingerprint
  assert source_of(corpus, **changes).fingerprint != fingerprint
  assert source_of(corpus).fingerprint == fingerprint


def test_the_fingerprint_changes_with_tokenizer_and_documents(corpus, tmp_path):
  words = ['some words to train another tokenizer on'] * 9
  other = train_sentencepiece(words, 290, tmp_path / 'tokenizer.model')
  fingerprints = {
    source_of(changed).fingerprint
    for changed in (
      corpus,
      corpus._replace(tokenizer=other),
      corpus._replace(documents=corpus.heldout),
    )
  }
  assert len(fingerprints) == 3
