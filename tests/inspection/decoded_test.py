"""The decoded text is what the documents say; what is cut is counted."""

import itertools

import numpy as np
import pytest

from longctx_jax.inspection.decoded import (
  Gap,
  decode_after,
  decode_row,
  visible,
)
from longctx_jax.inspection.rows import inspect_step
from tests import small
from tests.inspection.made_rows import row_of_texts


def test_the_text_of_a_row_is_what_the_documents_say(corpus):
  text = {
    'kind': 'documents',
    'weight': 1.0,
    'domains': (),
    'planner': 'concat',
  }
  stage = small.stage_config(data={'mixture': {'text': text}})
  store = corpus.documents
  numbers = {store.name(d): d for d in range(len(store))}
  found = 0
  for row in inspect_step(stage, corpus, num_rows=8).rows:
    pieces = list(decode_row(row, corpus.chat, 10_000))
    for k, stretch in enumerate(row.stretches):
      name, _, start, stop = stretch.origin
      tokens, _ = store.read(numbers[name], start, stop)
      said = ''.join(
        p.text for p in pieces if p.stretch == k and not p.is_symbol
      )
      assert said == corpus.tokenizer.decode(tokens)
      found += len(said)
  assert found > 1000  # of rows of 128 tokens, of two characters or more


def test_pieces_are_the_tokens_in_order_and_weigh_as_they_do(corpus):
  for row in inspect_step(small.stage_config(), corpus, num_rows=8).rows:
    pieces = list(decode_row(row, corpus.chat, 10_000))
    ends = [(p.start, p.stop) for p in pieces]
    assert ends[0][0] == 0
    assert ends[-1][1] == row.num_tokens
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ends))
    for piece in pieces:
      stretch = row.stretches[piece.stretch]
      assert stretch.start <= piece.start < piece.stop <= stretch.stop
      weights = row.target_weights[piece.start : piece.stop]
      assert set(weights.tolist()) == {piece.weight}


def test_answers_of_conversations_are_what_is_trained_on(corpus):
  config = small.stage_config()
  steps = range(config.train.steps)
  of_steps = [
    inspect_step(config, corpus, step=step, num_rows=8).rows for step in steps
  ]
  rows = itertools.chain(*of_steps)
  row = next(row for row in rows if row.origin.source == 'chat')
  pieces = list(decode_row(row, corpus.chat, 10_000))
  asked = [p.text for p in pieces if p.is_symbol and not p.weight]
  assert asked[:3] == ['<bos>', '<|user|>', '<|assistant|>']
  for before, piece in itertools.pairwise(pieces):
    if before.text == '<|assistant|>':
      assert piece.weight == 1
    if piece.text == '<|end|>':
      assert piece.is_symbol
      assert piece.weight == 1
      assert before.weight == 1


@pytest.mark.parametrize('max_tokens', [1, 2, 7, 10])
def test_what_is_left_out_is_in_the_middle_and_counted(corpus, max_tokens):
  row = row_of_texts(corpus.tokenizer, {'a': 'import os\n', 'b': 'x = 1 + 2\n'})
  assert row.num_tokens > 10
  pieces = list(decode_row(row, corpus.chat, max_tokens))
  (gap,) = [piece for piece in pieces if isinstance(piece, Gap)]
  shown = [p for p in pieces if not isinstance(p, Gap)]
  assert sum(p.stop - p.start for p in shown) == max_tokens
  assert gap.stop - gap.start == row.num_tokens - max_tokens
  # Nothing is missing but the gap, and nothing comes twice.
  assert all(a.stop == b.start for a, b in itertools.pairwise(pieces))
  head = sum(p.stop - p.start for p in shown if p.stop <= gap.start)
  assert head == (max_tokens + 1) // 2


def test_nothing_is_left_out_of_a_row_that_fits(corpus):
  row = row_of_texts(corpus.tokenizer, {'a': 'import os\n'}, seq_len=64)
  pieces = list(decode_row(row, corpus.chat, row.num_tokens))
  assert ''.join(p.text for p in pieces) == 'import os\n'


class LeadingSpace:
  """Leaves out the space where a text begins, as Llama 2's tokenizer does."""

  def decode(self, ids):
    return ''.join(f' {i}' for i in ids).removeprefix(' ')


def test_spaces_between_pieces_are_kept():
  tokenizer = LeadingSpace()
  nothing, one, two = np.array([], int), np.array([1]), np.array([2, 3])
  assert decode_after(tokenizer, nothing, two) == '2 3'
  assert decode_after(tokenizer, one, two) == ' 2 3'


def test_half_a_character_before_does_not_hide_the_rest(corpus):
  ids = corpus.tokenizer.encode('\N{SNOWMAN}')
  assert len(ids) >= 3  # bytes
  assert '\ufffd' in decode_after(corpus.tokenizer, ids[:1], ids[1:])
  assert decode_after(corpus.tokenizer, ids[:0], ids) == '\N{SNOWMAN}'


def test_characters_that_steer_a_terminal_are_pictures():
  assert visible('a\x1b[31mb\x9bc\x7f') == 'a\u241b[31mb\ufffdc\u2421'
  assert visible('\u202eabc') == '\ufffdabc'
  assert visible('\ttab and\nline, \N{SNOWMAN}') == '\ttab and\nline, \u2603'
