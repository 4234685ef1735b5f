"""Rows taken apart, and counts equal to those of a slow recount."""

from collections import Counter

import numpy as np
import pytest

from longctx_jax.config import ConfigError
from longctx_jax.data.pipeline import BatchSource, make_pipeline
from longctx_jax.inspection.counts import shares_got
from longctx_jax.inspection.rows import inspect_step
from tests import small
from tests.inspection.made_rows import batch_of, row_of


def test_a_row_is_taken_apart_as_drawn():
  row = row_of(
    batch_of(
      [11, 12, 13, 14, 15, 21, 22, 23, 0],
      [1, 1, 1, 1, 1, 2, 2, 2, 0],
      [0, 1, 2, 7, 8, 0, 1, 2, 0],
      [1, 1, 1, 1, 0, 0.5, 0.5, 0, 0],
    ),
    ('a', 'books', 100, 105),
    ('b', 'code', 0, 3),
  )
  a, b = ('a', 'books'), ('b', 'code')
  assert row.stretches == [
    # start, stop, origin, document, segment, first position, targets, weight
    (0, 3, (*a, 100, 103), 0, 1, 0, 2, 2.0),
    (3, 5, (*a, 103, 105), 0, 1, 7, 2, 2.0),
    (5, 8, (*b, 0, 3), 1, 2, 0, 2, 1.0),
  ]
  assert [s.last_position for s in row.stretches] == [2, 8, 2]
  assert row.target_weights.tolist() == [0, 1, 1, 1, 1, 0, 0.5, 0.5, 0]
  assert (row.num_tokens, row.num_targets, row.num_segments) == (8, 6, 2)


def test_chunks_of_a_document_are_known_as_one():
  row = row_of(
    batch_of(range(1, 7), [1] * 6),
    *(('a', 'x', 0, 2), ('a', 'y', 0, 1), ('a', 'x', 2, 4), ('b', 'x', 0, 1)),
  )
  assert [s.document for s in row.stretches] == [0, 1, 0, 2]
  assert row.num_documents == 3


def test_segments_may_be_shorter_than_slices():
  row = row_of(batch_of(range(1, 5), [1, 2, 2, 3]), ('a', 'x', 5, 9))
  assert [(s.start, s.stop, s.segment) for s in row.stretches] == [
    (0, 1, 1),
    (1, 3, 2),
    (3, 4, 3),
  ]
  assert [s.origin[2:] for s in row.stretches] == [(5, 6), (6, 8), (8, 9)]


def test_rows_are_those_that_training_reads(corpus):
  stage = small.stage_config()
  source = BatchSource(stage.data, corpus, seed=0, num_steps=4)
  batches = list(make_pipeline(source, 8))
  inspection = inspect_step(stage, corpus, step=2, num_rows=3)
  assert [row.number for row in inspection.rows] == [16, 17, 18]
  for k, row in enumerate(inspection.rows):
    for got, expected in zip(row.batch, batches[2], strict=True):
      np.testing.assert_array_equal(got, expected[k])
  assert inspection.fingerprint == source.fingerprint
  # No more rows than the batch has.
  assert len(inspect_step(stage, corpus, num_rows=99).rows) == 8


@pytest.mark.parametrize('normalizer', ['token', 'sequence'])
def test_counts_are_those_of_the_batches(corpus, normalizer):
  stage = small.stage_config(data={'loss_normalizer': normalizer})
  counts = inspect_step(stage, corpus, step=1, num_steps=2).counts
  source = BatchSource(stage.data, corpus, seed=0, num_steps=4)
  slow = Counter()
  documents, epochs = {}, {}
  for i in range(8, 24):
    origin, batch = source.origin(i), source[i]
    name = origin.source
    slow[name, 'rows'] += 1
    for t in range(128):
      slow[name, 'tokens'] += batch.segment_ids[t] != 0
      slow[name, 'padding'] += batch.segment_ids[t] == 0
      slow[name, 'targets'] += batch.loss_weights[t] != 0
      slow[name, 'weight'] += float(batch.loss_weights[t])
    for part in origin.slices:
      slow[name, 'slices'] += 1
      documents.setdefault(name, set()).add((part.domain, part.name))
    epochs.setdefault(name, []).append((origin.number, origin.epoch_len))
  assert {count.name for count in counts.sources} == {'text', 'chat', 'tables'}
  fields = ('rows', 'tokens', 'padding', 'targets', 'slices')
  for count in counts.sources:
    for field in fields:
      assert getattr(count, field) == slow[count.name, field], field
    assert count.weight == pytest.approx(slow[count.name, 'weight'])
    assert count.documents == len(documents[count.name])
    first, last = epochs[count.name][0], epochs[count.name][-1]
    assert count.epochs == (
      None
      if count.name == 'tables'
      else (first[0] / first[1], (last[0] + 1) / last[1])
    )
    weight = stage.data.mixture[count.name].weight
    assert count.share_wanted == pytest.approx(weight)
  for field in fields:
    of_sources = sum(getattr(count, field) for count in counts.sources)
    assert getattr(counts.total, field) == of_sources
    assert of_sources > 0
  assert counts.total.rows == 16
  assert counts.total.tokens + counts.total.padding == 16 * 128
  assert counts.total.documents == len(set().union(*documents.values()))
  if normalizer == 'sequence':
    assert counts.total.weight < counts.total.targets


def test_shares_are_of_all_sources(corpus):
  counts = inspect_step(small.stage_config(), corpus).counts
  shares = [shares_got(count, counts.total) for count in counts.sources]
  np.testing.assert_allclose(np.sum(shares, axis=0), 1)
  text = counts.sources[0]
  assert shares[0] == [
    text.rows / counts.total.rows,
    text.tokens / counts.total.tokens,
    text.targets / counts.total.targets,
  ]
  nothing = text._replace(targets=0)
  assert shares_got(nothing, nothing)[2] is None


def test_steps_are_counted_to_the_end_of_the_run(corpus):
  counts = inspect_step(
    small.stage_config(), corpus, step=3, num_steps=10
  ).counts
  assert (counts.first_step, counts.num_steps) == (3, 1)
  assert counts.total.rows == 8


def test_each_source_says_which_rows_it_makes(corpus):
  untie = {
    **{'kind': 'documents', 'weight': 1.0, 'domains': ('code', 'docs')},
    **{'planner': 'untie', 'chunk_probs': (0.5, 0.5), 'min_chunk_len': 4},
  }
  stage = small.stage_config()
  said = {
    count.name: count.how
    for count in inspect_step(stage, corpus).counts.sources
  }
  assert said['text'] == (
    'training documents of every domain, put into rows by a planner'
    ' (planner=concat); rows of at most 128 tokens'
  )
  assert said['chat'] == (
    'stored conversations of every kind, put into rows by a planner'
    ' (planner=whole); rows of at most 128 tokens'
  )
  assert 'tasks.retrieve=1, layouts.plain=1, num_columns=2' in said['tables']
  stage = small.stage_config(
    data={
      'mixture': {'cip': untie},
      'document_mask': False,
      'restart_positions': False,
    }
  )
  (count,) = inspect_step(stage, corpus).counts.sources
  assert count.how == (
    'training documents of domain code or docs, put into rows by a planner'
    ' (planner=untie, chunk_probs=0.5, 0.5, min_chunk_len=4); rows of at most'
    ' 128 tokens'
  )


def test_the_rules_name_what_this_stage_does(corpus):
  stage = small.stage_config(data={'loss_normalizer': 'sequence'})
  rules = dict(inspect_step(stage, corpus, step=1, num_steps=2).counts.rules)
  assert '8 <= i < 24' in rules['rows']
  said = 'none is the first token of a slice (document_mask=True)'
  assert said in rules['targets']
  assert 'label_first_token' not in rules['targets']
  assert 'of chat, tables only what the assistant says' in rules['targets']
  assert 'loss_normalizer=sequence' in rules['weight']


def test_the_share_wanted_is_that_of_the_counted_steps(corpus):
  weights = {'text': 0.25, 'chat': 0.25, 'tables': 0.5}
  stage = small.stage_config(
    data={
      'weight_schedule': [{'step': 2, 'weights': weights}],
      'document_mask': False,
      'label_first_token': False,
    }
  )
  counts = inspect_step(stage, corpus, num_steps=2).counts
  wanted = {count.name: count.share_wanted for count in counts.sources}
  # About half-way from 0.5, 0.25, 0.25 at step 0 to those of step 2: what is
  # linear is shares of rows, which are not all full.
  half = {'text': 0.375, 'chat': 0.25, 'tables': 0.375}
  assert wanted == pytest.approx(half, abs=0.01)
  rules = dict(counts.rules)
  assert 'weight_schedule' in rules['tokens wanted']
  assert 'first token of a slice (label_first_token=False)' in rules['targets']
  assert 'document_mask' not in rules['targets']


@pytest.mark.parametrize('step', [4, -1])
def test_a_step_that_the_run_has_not_is_refused(corpus, step):
  with pytest.raises(ConfigError, match=f'--step={step}: .* steps 0 to 3'):
    inspect_step(small.stage_config(), corpus, step=step)
