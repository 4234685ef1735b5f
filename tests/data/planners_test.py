"""What holds of every planner that a config can name, and who drops what."""

import logging

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from longctx_jax.config import ConfigError
from longctx_jax.data.pipeline import batch_fields
from longctx_jax.data.planners import PLANNERS, plan_rows
from longctx_jax.data.row_plan import dropped_tokens
from longctx_jax.data.row_sources import Row
from longctx_jax.data_config import PLANNER_FIELDS, DataConfig, DocumentRows
from tests.row_plans import all_tokens, runs, tokens_of

ROW_LEN = 12
CIP = {'docs_per_row': 2, 'num_chunks': 3}
UTK = {'chunk_probs': (0.2, 0.3, 0.5), 'min_chunk_len': 2}
SOURCES = [
  ('concat', {}),
  ('concat_drop', {}),
  ('whole', {}),
  ('best_fit', {}),
  ('buckets', {'bucket_len': 4}),
  ('interleave', CIP),
  ('interleave', {**CIP, 'split': 'random', 'interleave_prob': 0.5}),
  ('interleave', {**CIP, 'split': 'random', 'order': 'shuffle'}),
  ('untie', UTK),
  ('untie', {**UTK, 'interleave_prob': 0.5}),
]
DROPPING = {'concat_drop', 'buckets'}
# All rows but the last have exactly ROW_LEN tokens.
FULL = {'concat', 'concat_drop', 'buckets', 'untie'}
LENGTHS = st.lists(st.integers(0, 30), max_size=12)
SEEDS = st.integers(0, 99)

every_planner = pytest.mark.parametrize(('planner', 'options'), SOURCES)


def source_of(planner, options):
  return DocumentRows('documents', 1.0, (), planner, **options)


def plan_of(planner, options, lengths, seed=0, exempt=None):
  """The plan, or None where there are no rows."""
  lengths = np.array(lengths, np.int64)
  if planner == 'whole':
    lengths = np.minimum(lengths, ROW_LEN)
  source, rng = source_of(planner, options), np.random.default_rng(seed)
  try:
    return plan_rows(source, lengths, ROW_LEN, rng, exempt), lengths
  except ConfigError:
    return None, lengths


def test_every_planner_is_tried():
  assert {name for name, _ in SOURCES} == set(PLANNERS) == set(PLANNER_FIELDS)


@every_planner
@given(lengths=LENGTHS, seed=SEEDS)
@example(lengths=[], seed=0)
@example(lengths=[0, 0, 3, 0], seed=0)
@example(lengths=[12, 24], seed=0)
@example(lengths=[7, 30, 1], seed=0)
def test_no_token_is_lost_or_doubled_and_rows_are_of_length(
  planner, options, lengths, seed
):
  plan, lengths = plan_of(planner, options, lengths, seed)
  if plan is None:
    assert planner == 'buckets' or not lengths.any()
    return
  rows = tokens_of(plan)
  placed = [token for row in rows for token in row]
  tokens = set(all_tokens(lengths.tolist()))
  assert len(set(placed)) == len(placed)
  assert set(placed) <= tokens
  assert dropped_tokens(plan, lengths) == len(tokens) - len(placed)
  if planner not in DROPPING:
    assert len(placed) == len(tokens)
  assert all(0 < len(row) <= ROW_LEN for row in rows)
  if planner in FULL:
    assert all(len(row) == ROW_LEN for row in rows[:-1])
  # Slices of nothing would be segments without tokens.
  assert (plan.stops > plan.starts).all()
  assert plan.row_len == ROW_LEN
  assert plan.row_offsets[-1] == len(plan.documents)
  for field in (plan.documents, plan.starts, plan.stops, plan.row_offsets):
    assert field.dtype == np.int64


@every_planner
@given(lengths=LENGTHS, seed=SEEDS)
def test_documents_keep_their_order_inside_a_row(
  planner, options, lengths, seed
):
  plan, _ = plan_of(planner, options, lengths, seed)
  # Planners that cut documents into pieces first shuffle those.
  piece_len = {'buckets': 4, 'interleave': ROW_LEN // 2}
  for row in tokens_of(plan) if plan else []:
    pieces = [(d, t // piece_len.get(planner, 99)) for d, t in row]
    for positions in runs(
      [(piece, t) for piece, (_, t) in zip(pieces, row, strict=True)]
    ).values():
      first = positions[0]
      assert positions == list(range(first, first + len(positions)))


MASKED = DataConfig(
  seq_len=ROW_LEN,
  batch_size=1,
  document_mask=True,
  restart_positions=True,
  loss_normalizer='token',
  mixture={'all': source_of('concat', {})},
)


@pytest.mark.parametrize(
  ('planner', 'options'),
  [s for s in SOURCES if s[0] not in ('interleave', 'untie')],
)
@given(lengths=LENGTHS, seed=SEEDS)
def test_a_segment_is_a_document_and_a_document_a_segment(
  planner, options, lengths, seed
):
  plan, _ = plan_of(planner, options, lengths, seed)
  for i in range(len(plan) if plan else 0):
    tokens = np.array(tokens_of(plan)[i])
    lens = np.array([stop - start for _, start, stop in plan.row(i)])
    row = Row(tokens[:, 0] + 1, np.ones(len(tokens), bool), lens)
    batch = batch_fields(row, MASKED, step=0, seed=(0, i))
    of_segment = runs(
      zip(batch.segment_ids.tolist(), batch.tokens.tolist(), strict=True)
    )
    assert set(of_segment.pop(0, [0])) == {0}
    assert all(len(set(documents)) == 1 for documents in of_segment.values())
    if planner == 'buckets':  # a document gives several, as in ProLong
      assert {len(tokens) for tokens in of_segment.values()} == {4}
    else:
      assert len(of_segment) == len(set(tokens[:, 0].tolist()))


@every_planner
def test_the_seed_decides_everything(planner, options):
  lengths = list(range(1, 30))
  plans = [plan_of(planner, options, lengths, seed)[0] for seed in (0, 0, 1)]
  prints = [plan.fingerprint() for plan in plans]
  assert prints[0] == prints[1] != prints[2]
  # Not by shuffling the same rows alone.
  contents = [sorted(map(tuple, tokens_of(plan))) for plan in plans]
  assert contents[0] != contents[2]


@pytest.mark.parametrize(
  ('planner', 'options'),
  [s for s in SOURCES if s[0] in ('interleave', 'untie')],
)
@given(
  lengths=LENGTHS, exempt=st.lists(st.booleans(), min_size=12, max_size=12)
)
@example(lengths=[5, 6], exempt=[True] * 12)
@example(lengths=[5, 6], exempt=[False] * 12)
def test_exempt_documents_have_uncut_rows_of_their_own(
  planner, options, lengths, exempt
):
  exempt = np.array(exempt[: len(lengths)], bool)
  plan, lengths = plan_of(planner, options, lengths, exempt=exempt)
  if plan is None:
    assert not lengths.any()
    return
  rows = tokens_of(plan)
  assert sorted(token for row in rows for token in row) == all_tokens(
    lengths.tolist()
  )
  kinds = [{bool(exempt[d]) for d, _ in row} for row in rows]
  assert all(len(kind) == 1 for kind in kinds)
  plain = [row for row, kind in zip(rows, kinds, strict=True) if kind == {True}]
  assert all(len(row) == ROW_LEN for row in plain[:-1])
  order = dict.fromkeys(d for row in plain for d, _ in row)
  assert [token for row in plain for token in row] == [
    (d, t) for d in order for t in range(lengths[d])
  ]


def test_what_is_dropped_is_logged(caplog):
  caplog.set_level(logging.INFO, 'longctx_jax')
  plan_of('buckets', {'bucket_len': 4}, [3, 9, 4, 11])  # 0 + 8 + 4 + 8 stay
  assert caplog.messages == [
    'planner buckets: 2 rows of 12 tokens, 83.3% full; 7 of 27 tokens dropped'
    ' (25.9%)'
  ]


def test_a_planner_that_finds_nothing_to_plan_says_so():
  with pytest.raises(
    ConfigError,
    match=r'planner=buckets makes no row of 12 tokens from 2 documents, the'
    r' longest of 11: give',
  ):
    plan_rows(
      source_of('buckets', {'bucket_len': 12}),
      np.array([11, 5]),
      ROW_LEN,
      np.random.default_rng(0),
    )
