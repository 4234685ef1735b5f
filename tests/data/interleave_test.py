"""Chunk interleaving: OLMo-core's golden vector, planners == definition.

What holds of every planner is in `planners_test.py`.
"""

import collections

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from longctx_jax.config import ConfigError
from longctx_jax.data.interleave import (
  chunk_bounds,
  interleave_chunks,
  interleave_rows,
  interleaved_rows,
  round_robin,
  shuffle_in_order,
  untied_rows,
)
from longctx_jax.data.packing import concat_rows
from tests.row_plans import drawn, plan_from_rows, runs, tokens_of

SPLITS = st.sampled_from(['equal', 'random'])
ORDERS = st.sampled_from(['round_robin', 'shuffle'])
PROBS = st.sampled_from([0.0, 0.5, 1.0])
SEEDS = st.integers(0, 99)


def cip_plan(lengths, row_len, seed=0, **options):
  rng = np.random.default_rng(seed)
  return interleaved_rows(np.array(lengths, np.int64), row_len, rng, **options)


# allenai/OLMo-core, test of NumpyInterleavedFSLDataset (RECIPES 1.2).
GOLDEN = [21, 22, 11, 12, 23, 13, 14, 24, 15, 16, 25, 17, 18]


def test_definition_gives_the_golden_vector():
  documents = [[*range(21, 26)], [*range(11, 19)]]
  assert interleave_chunks(documents, 4) == GOLDEN


@pytest.mark.parametrize('how', [{'split': 'random'}, {'order': 'shuffle'}])
def test_chance_needs_a_generator(how):
  with pytest.raises(ValueError, match='from an rng'):
    interleave_chunks(['abcd', 'ABCD'], 2, **how)


def test_planner_gives_the_golden_vector():
  texts = ['abcde', 'ABCDEFGH']
  options = {'docs_per_row': 2, 'num_chunks': 4, 'split': 'equal'}
  assert drawn(interleaved_rows, texts, 16, **options) == ['abABcCDdEFeGH']


def test_round_robin_skips_what_has_run_out():
  chunks = [['a1', 'a2', 'a3'], ['b1'], [], ['c1', 'c2']]
  assert round_robin(chunks) == ['a1', 'b1', 'c1', 'a2', 'c2', 'a3']


def test_a_shuffle_in_order_goes_by_the_smallest_draws_first():
  chunks, draws = [['a1', 'a2', 'a3'], ['b1']], [[0.9, 0.1, 0.4], [0.3]]
  assert shuffle_in_order(chunks, draws) == ['a1', 'b1', 'a2', 'a3']


def test_all_orders_that_keep_documents_in_order_are_as_likely():
  rng = np.random.default_rng(0)
  counts = collections.Counter(
    ''.join(
      map(str, interleave_chunks(['aA', 'bB'], 2, order='shuffle', rng=rng))
    )
    for _ in range(6000)
  )
  assert set(counts) == {'aAbB', 'abAB', 'abBA', 'baAB', 'baBA', 'bBaA'}
  # Five standard deviations of a count of 1,000.
  assert all(abs(count - 1000) < 5 * 29 for count in counts.values())


def test_cuts_fall_as_drawn():
  # a b c | d e f g | h i j
  bounds = chunk_bounds(10, 3, 'random', [0.7, 0.2, 0.5], min_chunk_len=2)
  assert bounds == [(0, 3), (3, 7), (7, 10)]


@given(st.integers(1, 50), st.integers(1, 8), SPLITS, st.integers(1, 5), SEEDS)
def test_chunks_cover_a_document_and_none_is_too_short(
  length, num, split, min_len, seed
):
  num = max(1, min(num, length // min_len))
  draws = np.random.default_rng(seed).random(num)
  bounds = chunk_bounds(length, num, split, draws, min_len)
  assert len(bounds) == num
  assert all(stop - start >= min(min_len, length) for start, stop in bounds)
  covered = [t for start, stop in bounds for t in range(start, stop)]
  assert covered == list(range(length))


@given(st.integers(8, 50), st.integers(1, 8))
def test_equal_chunks_differ_by_one_token_at_most(length, num):
  bounds = chunk_bounds(length, num, 'equal', [])
  sizes = [stop - start for start, stop in bounds]
  assert sizes == sorted(sizes, reverse=True)
  assert sizes[0] - sizes[-1] <= 1


def test_two_random_chunks_are_cut_anywhere_with_equal_chance():
  draws = np.random.default_rng(0).random(5000)
  cuts = [chunk_bounds(6, 2, 'random', [draw])[0][1] for draw in draws]
  counts = np.bincount(cuts)
  assert counts[0] == 0
  assert len(counts) == 6
  assert (abs(counts[1:] - 1000) < 5 * 29).all()


ROWS = st.lists(
  st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 5), st.integers(1, 14)),
    min_size=1,
    max_size=4,
  ),
  max_size=4,
)


@given(ROWS, st.data(), SPLITS, ORDERS, PROBS, st.integers(1, 4), SEEDS)
@example([], None, 'random', 'shuffle', 1.0, 1, 0)
def test_rows_are_interleaved_as_the_definition_does(
  rows, data, split, order, prob, min_chunk_len, seed
):
  rows = [
    [(d, start, start + length) for d, start, length in row] for row in rows
  ]
  num_chunks = [
    data.draw(st.lists(st.integers(1, 5), min_size=len(row), max_size=len(row)))
    for row in rows
  ]
  options = {'split': split, 'order': order, 'min_chunk_len': min_chunk_len}
  plan = interleave_rows(
    plan_from_rows(rows, 99),
    np.array([n for row in num_chunks for n in row], np.int64),
    np.random.default_rng(seed),
    interleave_prob=prob,
    **options,
  )
  # The planner's own draws again: which rows, then row by row.
  rng = np.random.default_rng(seed)
  chosen = rng.random(len(rows)) < prob
  expected = []
  for row, counts, is_chosen in zip(rows, num_chunks, chosen, strict=True):
    documents = [[(d, t) for t in range(a, b)] for d, a, b in row]
    if is_chosen:
      interleaved = interleave_chunks(documents, counts, rng=rng, **options)
    else:
      interleaved = interleave_chunks(documents, 1, rng=rng)  # end to end
    expected.append(interleaved)
  assert tokens_of(plan) == expected


def test_rows_that_are_not_chosen_stay_end_to_end():
  rows = [[(0, 0, 6), (1, 2, 9), (2, 0, 5)]] * 400
  plan = interleave_rows(
    plan_from_rows(rows, 18),
    3,
    np.random.default_rng(0),
    split='random',
    order='shuffle',
    interleave_prob=0.3,
  )
  untouched = sum(plan.row(i) == rows[0] for i in range(400))
  # 280 on average; four standard deviations.
  assert abs(untouched - 280) < 4 * 9.2
  assert all(len(plan.row(i)) in (3, 9) for i in range(400))


@given(
  st.lists(st.integers(0, 60), max_size=12),
  st.integers(1, 4),
  st.integers(1, 5),
  st.integers(4, 30),
  SPLITS,
  SEEDS,
)
def test_cip_rows_are_full_of_whole_pieces(
  lengths, docs_per_row, num_chunks, row_len, split, seed
):
  plan = cip_plan(
    lengths,
    row_len,
    seed,
    docs_per_row=docs_per_row,
    num_chunks=num_chunks,
    split=split,
  )
  # A document longer than its share of a row counts as several.
  piece_len = row_len // docs_per_row
  rows = tokens_of(plan)
  for i, row in enumerate(rows):
    pieces = {}
    for document, t in row:
      pieces.setdefault((document, t // piece_len), []).append(t)
    # Whole pieces: none is parted over two rows.
    for (document, k), piece in pieces.items():
      left = lengths[document] - k * piece_len
      assert len(piece) == min(piece_len, left)
    if i < len(rows) - 1:
      assert len(pieces) >= docs_per_row
    num_slices = plan.row_offsets[i + 1] - plan.row_offsets[i]
    assert num_slices == sum(min(num_chunks, len(p)) for p in pieces.values())


@given(
  st.lists(st.integers(0, 60), max_size=12),
  st.integers(1, 4),
  st.integers(4, 30),
  SEEDS,
)
def test_untied_rows_hold_what_concatenated_rows_hold(
  lengths, min_chunk_len, row_len, seed
):
  lengths = np.array(lengths, np.int64)
  plan, plain = (
    planner(lengths, row_len, np.random.default_rng(seed), **options)
    for planner, options in [
      (untied_rows, {'chunk_probs': (0, 0, 1), 'min_chunk_len': min_chunk_len}),
      (concat_rows, {}),
    ]
  )
  assert len(plan) == len(plain)
  for i in range(len(plan)):
    row, end_to_end = tokens_of(plan)[i], tokens_of(plain)[i]
    assert {d: sorted(ts) for d, ts in runs(row).items()} == runs(end_to_end)
    assert runs(row) == {d: sorted(ts) for d, ts in runs(row).items()}
    chunks = collections.defaultdict(list)
    for document, start, stop in plan.row(i):
      chunks[document].append(stop - start)
    for document, sizes in chunks.items():
      length = len(runs(end_to_end)[document])
      assert len(sizes) == max(1, min(3, length // min_chunk_len))
      assert min(sizes) >= min(min_chunk_len, length)


def test_untied_documents_have_as_many_chunks_as_drawn():
  lengths = np.full(4000, 50)
  plan = untied_rows(
    lengths,
    200_000,  # one row
    np.random.default_rng(0),
    chunk_probs=(0.2, 0.0, 0.8),
    min_chunk_len=4,
  )
  chunks = np.bincount(np.bincount(plan.documents))
  assert chunks.sum() == 4000
  assert chunks[2] == 0
  assert abs(chunks[1] - 800) < 4 * 25.3  # standard deviations


def documents_of(plan):
  """Of each row, the tokens of each of its slices."""
  return [
    [[(d, t) for t in range(a, b)] for d, a, b in plan.row(i)]
    for i in range(len(plan))
  ]


DOCUMENTS = st.lists(st.integers(0, 12), max_size=12)


@given(DOCUMENTS, st.integers(1, 4), st.integers(1, 5), SPLITS, ORDERS, PROBS)
@example([], 2, 2, 'equal', 'round_robin', 1.0)
@example([0], 2, 2, 'random', 'shuffle', 0.5)
def test_cip_interleaves_the_rows_as_told(
  lengths, docs_per_row, num_chunks, split, order, prob
):
  options = {
    **{'docs_per_row': docs_per_row, 'num_chunks': num_chunks},
    **{'split': split, 'order': order},
  }
  row_len = 12 * docs_per_row
  plan = cip_plan(lengths, row_len, interleave_prob=prob, **options)
  plain = cip_plan(lengths, row_len, interleave_prob=0.0, **options)
  # The planner's own draws again: its shuffle, which rows, then row by row.
  rng = np.random.default_rng(0)
  rng.permutation(np.count_nonzero(lengths))
  chosen = rng.random(len(plain)) < prob
  assert tokens_of(plan) == [
    interleave_chunks(documents, num_chunks, split=split, order=order, rng=rng)
    if is_chosen
    else interleave_chunks(documents, 1, rng=rng)
    for documents, is_chosen in zip(documents_of(plain), chosen, strict=True)
  ]


@given(DOCUMENTS, st.integers(1, 3), PROBS)
@example([], 1, 1.0)
def test_utk_cuts_and_shuffles_the_rows_as_told(lengths, min_chunk_len, prob):
  options = {'chunk_probs': (0.2, 0.3, 0.5), 'min_chunk_len': min_chunk_len}
  lengths, row_len = np.array(lengths, np.int64), 20
  rng = np.random.default_rng(0)
  plan = untied_rows(lengths, row_len, rng, interleave_prob=prob, **options)
  # The planner's own draws again: rows, numbers of chunks, which rows, and row
  # by row.
  rng = np.random.default_rng(0)
  plain = concat_rows(lengths, row_len, rng)
  counts = rng.choice([1, 2, 3], len(plain.documents), p=(0.2, 0.3, 0.5))
  chosen = rng.random(len(plain)) < prob
  expected = []
  for i, documents in enumerate(documents_of(plain)):
    part = slice(plain.row_offsets[i], plain.row_offsets[i + 1])
    how = {'split': 'random', 'min_chunk_len': min_chunk_len, 'rng': rng}
    expected.append(
      interleave_chunks(documents, counts[part], order='shuffle', **how)
      if chosen[i]
      else interleave_chunks(documents, 1, **how)
    )
  assert tokens_of(plan) == expected


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'split': 'bogus'}, "split='bogus': choose equal or random"),
    ({'order': 'bogus'}, "order='bogus': choose round_robin or shuffle"),
    ({'num_chunks': 0}, 'num_chunks=0: must be 1 or more'),
    ({'num_chunks': (2, -1)}, 'num_chunks=-1: must be 1 or more'),
    ({'min_chunk_len': 0}, 'min_chunk_len=0: must be 1 or more'),
  ],
)
def test_arguments_that_make_no_sense_are_named(options, message):
  options = {'num_chunks': 2, **options}
  with pytest.raises(ValueError, match=f'^{message}$'):
    interleave_chunks([[1, 2], [3, 4]], **options)
  how = {'split': 'equal', 'order': 'shuffle', 'interleave_prob': 1.0}
  rng = np.random.default_rng(0)
  plan = concat_rows(np.array([2, 2]), 4, rng)
  options['num_chunks'] = np.array(options['num_chunks'])
  with pytest.raises(ValueError, match=f'^{message}$'):
    interleave_rows(plan, rng=rng, **{**how, **options})


@pytest.mark.parametrize(
  'options',
  [
    {'docs_per_row': 0, 'num_chunks': 2},
    {'docs_per_row': 2, 'num_chunks': 0},
    {'docs_per_row': 9, 'num_chunks': 2},
  ],
)
def test_numbers_that_make_no_sense_are_named(options):
  with pytest.raises(ConfigError) as error:
    cip_plan([5, 8], 8, split='equal', **options)
  for name, value in options.items():
    assert f'{name}={value}' in str(error.value)
  assert 'row_len=8' in str(error.value)
