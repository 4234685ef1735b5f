"""Fields of a batch: drawn, and equal to a slow reading of every option."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from longctx_jax.data.batch_fields import (
  batch_fields,
  context_window,
  cut_at_windows,
  empty_batch,
)
from longctx_jax.data.row_sources import Row
from longctx_jax.data_config import PositionJumps, WindowAt
from tests import small

CONFIG = small.stage_config().data
PLAIN = {'document_mask': False, 'restart_positions': False}
ROW = [11, 12, 13], [21, 22]  # as drawn at batch_fields


def data_config(**changes):
  return dataclasses.replace(CONFIG, **changes)


def row_of(*documents, loss_mask=None):
  tokens = np.concatenate(documents).astype(np.int32)
  mask = np.ones(len(tokens)) if loss_mask is None else loss_mask
  lens = np.array([len(document) for document in documents])
  return Row(tokens, np.array(mask, bool), lens)


def fields_of(row, *, step=0, seed=(0,), **changes):
  return batch_fields(row, data_config(**changes), step=step, seed=seed)


def drawn(batch):
  return {name: field.tolist() for name, field in batch._asdict().items()}


def test_fields_are_those_drawn_at_batch():
  assert drawn(fields_of(row_of(*ROW), seq_len=6)) == {
    'tokens': [11, 12, 13, 21, 22, 0],
    'targets': [12, 13, 21, 22, 0, 0],
    'loss_weights': [1, 1, 0, 1, 0, 0],
    'segment_ids': [1, 1, 1, 2, 2, 0],
    'positions': [0, 1, 2, 0, 1, 0],
  }


@pytest.mark.parametrize('changes', [{}, PLAIN], ids=['masked', 'plain'])
@pytest.mark.parametrize('seq_len', [5, 6])
def test_fields_are_written_over_whatever_was_there(seq_len, changes):
  out = empty_batch(seq_len)
  for field in out:
    field[:] = 7
  config = data_config(seq_len=seq_len, **changes)
  batch_fields(row_of(*ROW), config, step=0, seed=(0,), out=out)
  padding = [0] * (seq_len - 5)
  segment_ids, positions = [1, 1, 1, 2, 2], [0, 1, 2, 0, 1]
  if changes:
    segment_ids, positions = [1] * 5, [0, 1, 2, 3, 4]
  assert drawn(out) == {
    'tokens': [11, 12, 13, 21, 22, *padding],
    'targets': [12, 13, 21, 22, 0, *padding],
    'loss_weights': [1, 1, 1 if changes else 0, 1, 0, *padding],
    'segment_ids': segment_ids + padding,
    'positions': positions + padding,
  }


def test_without_a_document_mask_the_row_is_one_segment():
  assert drawn(fields_of(row_of(*ROW), seq_len=6, **PLAIN)) == {
    'tokens': [11, 12, 13, 21, 22, 0],
    'targets': [12, 13, 21, 22, 0, 0],
    'loss_weights': [1, 1, 1, 1, 0, 0],
    'segment_ids': [1, 1, 1, 1, 1, 0],
    'positions': [0, 1, 2, 3, 4, 0],
  }


def test_first_tokens_of_documents_are_left_unlabelled_if_asked_for():
  plain = fields_of(row_of(*ROW), seq_len=6, **PLAIN)
  changed = fields_of(row_of(*ROW), seq_len=6, label_first_token=False, **PLAIN)
  assert changed.loss_weights.tolist() == [1, 1, 0, 1, 0, 0]
  # The row stays one segment: the second document is read with the first.
  for name in ('tokens', 'targets', 'segment_ids', 'positions'):
    assert np.array_equal(getattr(changed, name), getattr(plain, name))


def test_conversations_are_trained_on_their_answers_alone():
  # user 1, question 2, assistant 3; answers 77 and 88, end 9.
  row = row_of(
    [1, 2, 3, 77, 9], [1, 3, 88, 9], loss_mask=[0, 0, 0, 1, 1, 0, 0, 1, 1]
  )
  fields = drawn(fields_of(row, seq_len=10))
  assert fields['tokens'] == [1, 2, 3, 77, 9, 1, 3, 88, 9, 0]
  assert fields['targets'] == [2, 3, 77, 9, 1, 3, 88, 9, 0, 0]
  assert fields['loss_weights'] == [0, 0, 1, 1, 0, 0, 1, 1, 0, 0]


def test_the_sequence_normalizer_weighs_documents_alike():
  row = row_of([11, 12, 13], [21, 22], [31])
  weights = fields_of(row, seq_len=7, loss_normalizer='sequence').loss_weights
  assert weights.tolist() == [0.5, 0.5, 0, 1, 0, 0, 0]


@given(
  st.lists(st.integers(1, 5), min_size=1, max_size=6),
  st.integers(0, 3),
  st.booleans(),
  st.booleans(),
  st.booleans(),
  st.sampled_from(['token', 'sequence']),
  st.data(),
)
@example([1], 0, True, True, True, 'sequence', None)
def test_fields_keep_the_contract(
  lens, padding, document_mask, restart, label_first, normalizer, data
):
  n = sum(lens)
  flags = st.lists(st.booleans(), min_size=n, max_size=n)
  mask = data.draw(flags) if data else [True] * n
  tokens = np.arange(100, 100 + n)
  batch = fields_of(
    row_of(*np.split(tokens, np.cumsum(lens)[:-1]), loss_mask=mask),
    seq_len=n + padding,
    document_mask=document_mask,
    restart_positions=restart,
    label_first_token=label_first,
    loss_normalizer=normalizer,
  )
  document = [k for k, length in enumerate(lens) for _ in range(length)]
  assert batch.tokens.tolist() == [*tokens.tolist(), *[0] * padding]
  segments = [k + 1 for k in document] if document_mask else [1] * n
  assert batch.segment_ids.tolist() == segments + [0] * padding
  start = [document.index(k) if restart else 0 for k in document]
  positions = [t - s for t, s in enumerate(start)]
  assert batch.positions.tolist() == positions + [0] * padding
  crosses = label_first and not document_mask
  trained = [
    t
    for t in range(n - 1)
    if mask[t + 1] and (crosses or document[t] == document[t + 1])
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


def test_windows_cut_segments_as_drawn():
  segments = np.array([0, 0, 0, 0, 0, 1, 1, 1])
  assert cut_at_windows(segments, 4).tolist() == [1, 1, 1, 1, 2, 3, 3, 3]
  assert cut_at_windows(segments, 3).tolist() == [1, 1, 1, 2, 2, 3, 4, 4]
  assert cut_at_windows(segments, 8).tolist() == [1, 1, 1, 1, 1, 2, 2, 2]


@given(
  st.lists(st.integers(1, 9), min_size=1, max_size=5),
  st.integers(1, 30),
  st.booleans(),
)
def test_a_window_allows_the_pairs_that_skyladder_does(lens, w, document_mask):
  row = row_of(*(np.arange(length) for length in lens))
  n = sum(lens)
  ids = fields_of(
    row,
    seq_len=max(n, w),
    document_mask=document_mask,
    window_schedule=(WindowAt(0, w),),
  ).segment_ids[:n]
  document = [k for k, length in enumerate(lens) for _ in range(length)]
  for i in range(n):
    for j in range(i + 1):
      seen = i // w * w <= j
      seen &= not document_mask or document[i] == document[j]
      assert (ids[i] == ids[j]) == seen


def test_windows_change_segments_alone():
  row = row_of(np.arange(60), np.arange(40))
  window = {'window_schedule': (WindowAt(0, 16), WindowAt(10, 128))}
  cut, whole = fields_of(row, **window), fields_of(row)
  assert len(set(cut.segment_ids.tolist())) == 2 + 100 // 16 + 1
  for name in ('tokens', 'targets', 'loss_weights', 'positions'):
    assert np.array_equal(getattr(cut, name), getattr(whole, name))
  late = fields_of(row, step=10, **window)
  assert np.array_equal(late.segment_ids, whole.segment_ids)


@pytest.mark.parametrize(('start', 'alpha'), [(32, 1 / 8), (8, 1 / 2)])
def test_two_entries_are_the_linear_schedule_of_skyladder(start, alpha):
  last = round((128 - start) / alpha)
  config = data_config(
    window_schedule=(WindowAt(0, start), WindowAt(last, 128))
  )
  for step in range(2 * last):
    linear = min(128, start + math.floor(alpha * step))
    assert context_window(config, step) == linear
  stepwise = dataclasses.replace(config, window_multiple=8)
  for step in range(2 * last):
    assert (
      context_window(stepwise, step) == context_window(config, step) // 8 * 8
    )


def test_a_window_stays_what_it_is_before_the_first_entry():
  config = data_config(window_schedule=(WindowAt(5, 32), WindowAt(7, 64)))
  windows = [context_window(config, step) for step in range(9)]
  assert windows == [32] * 6 + [48, 64, 64]
  assert context_window(data_config(), 0) == 128


def jumped(row, seed, target_len, num_chunks=0, *, restart=False):
  kind = 'longrecipe' if num_chunks else 'pose'
  jumps = PositionJumps(kind, target_len, num_chunks)
  n = len(row.tokens)
  changes = {**PLAIN, 'restart_positions': restart}
  return fields_of(
    row, seed=(seed,), seq_len=n, position_jumps=jumps, **changes
  ).positions


@given(
  st.integers(1, 60),
  st.integers(1, 500),
  st.sampled_from([0, 2, 3, 7, 100]),
  st.integers(0, 2**30),
)
@example(1, 1, 0, 0)
@example(2, 1, 100, 0)
def test_positions_jump_forwards_and_stay_below_the_target(
  n, spare, num_chunks, seed
):
  row = row_of(np.arange(n))
  positions = jumped(row, seed, n + spare, num_chunks)
  steps = np.diff(positions)
  assert positions[0] == 0
  assert positions[-1] < n + spare
  assert (steps >= 1).all()
  assert np.count_nonzero(steps > 1) <= max(num_chunks or 2, 1) - 1
  assert np.array_equal(positions, jumped(row, seed, n + spare, num_chunks))


@pytest.mark.parametrize('num_chunks', [0, 5])
def test_jumps_reach_every_distance_and_change_with_the_seed(num_chunks):
  row = row_of(np.arange(100))
  rows = [jumped(row, seed, 1000, num_chunks) for seed in range(400)]
  last = np.array([positions[-1] for positions in rows])
  assert len({positions.tobytes() for positions in rows}) > 390
  assert last.max() > 980
  cuts = np.array([np.argmax(np.diff(positions) > 1) + 1 for positions in rows])
  if num_chunks:
    # The last of k sorted places of 0..900 is 900 * k / (k + 1) on average.
    assert abs(last.mean() - 99 - 720) < 30
  else:
    assert abs(last.mean() - 99 - 450) < 60
    assert cuts.min() < 5
    assert 45 < cuts.max() <= 50  # of 1..(n + 1) // 2


def test_longrecipe_spreads_chunks_in_every_way_alike():
  row = row_of(np.arange(3))
  counts = Counter(
    tuple((jumped(row, seed, 5, 3) - np.arange(3)).tolist())
    for seed in range(1200)
  )
  skips = [(0, a, b) for a in range(3) for b in range(a, 3)]
  assert sorted(counts) == skips
  assert all(140 < count < 260 for count in counts.values())


def test_documents_that_restart_each_begin_at_0_with_jumps_inside():
  lens = [30, 50, 20]
  row = row_of(*(np.arange(length) for length in lens))
  continued = jumped(row, 1, 400, 9)
  restarted = jumped(row, 1, 400, 9, restart=True)
  assert continued[-1] > 200
  for part, whole in zip(
    np.split(restarted, [30, 80]), np.split(continued, [30, 80]), strict=True
  ):
    assert part[0] == 0
    assert np.array_equal(np.diff(part), np.diff(whole))
