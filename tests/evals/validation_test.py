"""Validation loss: positions, buckets, and rows that are of a piece."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from longctx_jax.data.store import DocumentStore
from longctx_jax.data.store_writer import StoredDocument, write_store
from longctx_jax.evals.validation import position_buckets, validation_loss

VOCAB_SIZE = 512


class Known:
  """Losses that are a function of the position predicted; keeps its rows."""

  def __init__(self, loss):
    self.loss, self.seen = loss, []

  def rows(self, rows):
    self.seen += [row.tolist() for row in rows]
    for row in rows:
      losses = np.array([self.loss(t) for t in range(1, len(row))], float)
      yield losses, np.zeros(len(row) - 1, int)


def store_of(directory, lengths):
  """Document d holds the tokens 1000 d, 1000 d + 1, ..."""
  write_store(
    directory,
    [
      StoredDocument(f'{d}', 'x', 1000 * d + np.arange(n, dtype=np.int32), None)
      for d, n in enumerate(lengths)
    ],
    tokenizer_fingerprint='t',
    settings={},
  )
  return DocumentStore(directory)


def measure(predictor, store, *, length, num_rows=100, seed=0):
  return validation_loss(
    predictor, store, length=length, num_rows=num_rows, seed=seed
  )


@given(st.integers(1, 100_000))
@example(1)
@example(63)
@example(64)
@example(65)
@example(128)
def test_buckets_cover_every_position_once(length):
  buckets = position_buckets(length)
  covered = [t for start, stop in buckets for t in range(start, stop)]
  assert covered == list(range(length))
  assert all(start < stop for start, stop in buckets)


def test_buckets_are_those_drawn():
  assert position_buckets(200) == [(0, 64), (64, 128), (128, 200)]


def test_a_uniform_predictor_has_the_same_loss_in_each_bucket(tmp_path):
  store = store_of(tmp_path / 's', [500, 300])
  uniform = Known(lambda t: math.log(VOCAB_SIZE))
  loss, by_position = measure(uniform, store, length=200)
  assert loss == pytest.approx(math.log(VOCAB_SIZE))
  assert list(by_position) == ['0-64', '64-128', '128-200']
  for bucket_loss in by_position.values():
    assert bucket_loss == pytest.approx(math.log(VOCAB_SIZE))


def test_losses_count_in_the_bucket_of_the_token_they_are_about(tmp_path):
  store = store_of(tmp_path / 's', [200])
  loss, by_position = measure(Known(float), store, length=200)
  # The first token is predicted by nothing and counts nowhere.
  assert loss == pytest.approx(np.mean(range(1, 200)))
  assert by_position == pytest.approx(
    {
      '0-64': np.mean(range(1, 64)),
      '64-128': np.mean(range(64, 128)),
      '128-200': np.mean(range(128, 200)),
    }
  )


def test_rows_are_different_slices_of_single_documents(tmp_path):
  store = store_of(tmp_path / 's', [99, 350, 30, 100])
  predictor = Known(float)
  measure(predictor, store, length=100)
  assert sorted(predictor.seen) == [
    list(range(start, start + 100)) for start in (1000, 1100, 1200, 3000)
  ]
  few = Known(float)
  measure(few, store, length=100, num_rows=2)
  assert len(few.seen) == 2
  assert few.seen == predictor.seen[:2]


def test_short_documents_are_packed_where_none_is_long_enough(tmp_path):
  store = store_of(tmp_path / 's', [30, 40, 50])
  predictor = Known(float)
  _, by_position = measure(predictor, store, length=100)
  assert [len(row) for row in predictor.seen] == [100, 20]
  assert sorted(token for row in predictor.seen for token in row) == [
    1000 * d + t for d, n in enumerate([30, 40, 50]) for t in range(n)
  ]
  assert by_position['0-64'] == pytest.approx(
    np.mean([*range(1, 64), *range(1, 20)])
  )


def test_the_seed_decides_which_rows_are_read(tmp_path):
  store = store_of(tmp_path / 's', [2000])
  seen = []
  for seed in (0, 0, 1):
    predictor = Known(float)
    measure(predictor, store, length=50, num_rows=5, seed=seed)
    seen.append(predictor.seen)
  assert seen[0] == seen[1] != seen[2]
