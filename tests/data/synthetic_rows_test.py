"""Rows of synthetic conversations: tables that fit; all by number alone."""

import dataclasses

import numpy as np
import pytest

from longctx_jax.config import ConfigError
from longctx_jax.data import synthetic_tables
from longctx_jax.data.synthetic_rows import SyntheticRows
from longctx_jax.data.table_conversations import (
  TableConversations,
  make_table_conversation,
)
from tests import small

ROW_LEN = 128
TABLES = small.stage_config().data.mixture['tables']


def table_rows(config, corpus, row_len=ROW_LEN, seed=(0, 0)):
  tables = TableConversations(config, corpus.chat)
  return SyntheticRows(tables, (config.min_len, config.max_len), row_len, seed)


def slices_of(row):
  ends = np.cumsum(row.slice_lens)[:-1]
  return [tuple(part.tolist()) for part in np.split(row.tokens, ends)]


def equal(a, b):
  return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_rows_of_tables_fit_and_keep_each_conversation_whole(corpus):
  bos = corpus.tokenizer.bos_id
  user, end = map(corpus.tokenizer.control_id, ('<|user|>', '<|end|>'))
  tables = dataclasses.replace(TABLES, min_len=40, max_len=200)
  rows = table_rows(tables, corpus, 256)
  counts = set()
  for i in range(40):
    row = rows.row(i)
    assert len(row.tokens) == len(row.loss_mask) == row.slice_lens.sum() <= 256
    slices = slices_of(row)
    counts.add(len(slices))
    for part in slices:
      assert part[0] == bos
      assert part.count(bos) == 1
      assert part[-1] == end
      assert part.count(user) == part.count(end)
    assert row.loss_mask[-1]
  assert len(counts) > 2


def test_a_row_of_tables_depends_on_its_number_alone(corpus):
  def make(seed=0):
    return table_rows(TABLES, corpus, seed=(seed, 0))

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
    table_rows(tables, corpus, 40)


@pytest.mark.parametrize(
  'changes', [{'tasks': {'lookup': 1.0}}, {'layouts': {'html': 1.0}}], ids=str
)
def test_an_unknown_task_or_layout_is_refused_before_any_row(corpus, changes):
  tables = dataclasses.replace(TABLES, **changes)
  with pytest.raises(ConfigError, match=r'^(tasks|layouts): unknown'):
    table_rows(tables, corpus)


@pytest.mark.parametrize('layout', synthetic_tables.LAYOUTS)
def test_tables_fill_the_length_that_is_asked_for(corpus, layout):
  tables = dataclasses.replace(
    TABLES, layouts={layout: 1.0}, num_columns=4, max_questions=1000
  )
  # Not near 3000, where keys of 'plain' tables turn from one word into two.
  for length in (300, 1000, 8000):
    conversation = make_table_conversation(
      np.random.default_rng(length), corpus.chat, tables, length
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
        np.random.default_rng(seed), corpus.chat, ANNOTATED, 1000
      ).encoded[0]
    )
    for seed in range(40)
  ]
  assert max(used) <= 1000
  assert np.mean(used) > 850


def test_rows_too_short_for_some_annotated_lines_are_filled(corpus):
  tables = dataclasses.replace(ANNOTATED, min_len=32, max_len=72)
  rows = table_rows(tables, corpus, 72)
  assert all(0 < len(rows.row(i).tokens) <= 72 for i in range(300))


def test_origins_of_tables_are_one_a_conversation(corpus, monkeypatch):
  rows = table_rows(TABLES, corpus)
  lens = rows.row(3).slice_lens.tolist()
  # Long tables take seconds: those of the row at hand are not made again.
  monkeypatch.delattr(TableConversations, 'make')
  assert rows.origins(3) == [
    (f'table 3/{k}', 'tables', 0, length) for k, length in enumerate(lens)
  ]
  assert rows.row(3).slice_lens.tolist() == lens
  assert rows.epoch_len is None


@pytest.mark.parametrize(
  ('row_len', 'lens', 'num_rows', 'rel'),
  # Of long rows only a few are made to see; one alone may be a third off.
  [(ROW_LEN, (48, 128), 400, 0.02), (16_384, (5000, 10_000), 60, 0.05)],
)
def test_the_fill_of_rows_is_what_they_hold(
  corpus, row_len, lens, num_rows, rel
):
  config = dataclasses.replace(TABLES, min_len=lens[0], max_len=lens[1])
  for seed in range(3):
    tables = table_rows(config, corpus, row_len, (seed, 0))
    held = [len(tables.row(i).tokens) for i in range(200, 200 + num_rows)]
    assert tables.fill == pytest.approx(np.mean(held) / row_len, rel=rel)
