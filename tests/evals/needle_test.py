"""Needle test: exact lengths and depths, and scores of known predictors."""

import numpy as np
import pytest

from longctx_jax.config import ConfigError, NeedleConfig
from longctx_jax.data.chat import encode_conversation
from longctx_jax.data.needles import draw_needles
from longctx_jax.evals.haystack import Haystack
from longctx_jax.evals.needle import (
  is_exact,
  make_example,
  mean_by_length,
  needle_grid,
)

GRID = NeedleConfig(lengths=(64, 90), num_depths=3, samples=2, num_needles=2)


class Knowing:
  """Predicts every next token, but for rows that `fails` picks."""

  def __init__(self, fails=lambda row: False):
    self.fails, self.lengths = fails, []

  def rows(self, rows):
    self.lengths += [len(row) for row in rows]
    for row in rows:
      wrong = np.roll(row[1:], 1)
      yield np.zeros(len(row) - 1), wrong if self.fails(row) else row[1:]


@pytest.fixture(scope='module')
def haystack(corpus):
  return Haystack(corpus.heldout, corpus.tokenizer)


def example_of(corpus, haystack, depth, *, length=120, num_needles=1, seed=0):
  return make_example(
    np.random.default_rng(seed),
    corpus.chat,
    haystack,
    length=length,
    depth=depth,
    num_needles=num_needles,
  )


def find(part, whole):
  """Places of the tokens `part` in `whole`."""
  n = len(part)
  return [
    i
    for i in range(len(whole) - n + 1)
    if np.array_equal(whole[i : i + n], part)
  ]


@pytest.mark.parametrize('depth', [0, 0.25, 0.5, 1])
@pytest.mark.parametrize('length', [64, 77, 200])
def test_the_needle_lies_at_its_depth_of_an_example_of_exact_length(
  corpus, haystack, depth, length
):
  tokenizer = corpus.tokenizer
  example = example_of(corpus, haystack, depth, length=length)
  assert len(example.tokens) == length
  # The first draw of the generator is the needle.
  [needle] = draw_needles(np.random.default_rng(0), 1)
  user, assistant, end = map(
    tokenizer.control_id, ('<|user|>', '<|assistant|>', '<|end|>')
  )
  answer = [*tokenizer.encode(' ' + needle.answer).tolist(), end]
  assert example.tokens[-len(answer) :].tolist() == answer
  value = [*tokenizer.encode(' ' + needle.value).tolist(), end]
  assert example.tokens[-example.value_len :].tolist() == value
  hidden = tokenizer.encode(needle.sentence)
  question = tokenizer.encode(f'\n {needle.question}').tolist()
  frame = 2 + len(question) + 1 + len(answer)
  room = length - frame - len(hidden)
  place = 2 + round(depth * room)
  tokens = example.tokens.tolist()
  assert tokens[:2] == [tokenizer.bos_id, user]
  assert tokens[place : place + len(hidden)] == hidden.tolist()
  assert tokens[2 + room + len(hidden) : -len(answer)] == [
    *question,
    assistant,
  ]
  # What is left is one stretch of the haystack.
  text = tokens[2:place] + tokens[place + len(hidden) :][: room - place + 2]
  assert len(text) == room
  assert find(text, haystack)


def test_the_text_decodes_to_haystack_needle_and_question(corpus):
  text = 'one two three four five six seven eight ' * 10
  haystack = corpus.tokenizer.encode(text)
  example = example_of(corpus, haystack, 0.5)
  [needle] = draw_needles(np.random.default_rng(0), 1)
  decoded = corpus.tokenizer.decode(example.tokens)
  before, after = decoded.split(needle.sentence)
  after, tail = after.split('\n')
  assert before + after in text
  assert tail == f' {needle.question} {needle.answer}'


def test_the_frame_is_that_of_a_training_conversation(corpus):
  # A training conversation puts the haystack after a space, as chat does.
  [needle] = draw_needles(np.random.default_rng(0), 1)
  user = f'{needle.sentence.strip()}\n {needle.question}'
  trained, _ = encode_conversation(corpus.chat, [(user, needle.answer)])
  example = example_of(corpus, np.zeros(0, int), 0.5, length=len(trained))
  assert example.tokens.tolist() == trained.tolist()


def test_all_needles_are_hidden_and_one_is_asked_for(corpus, haystack):
  for seed in range(5):
    example = example_of(
      corpus, haystack, 0.5, length=256, num_needles=4, seed=seed
    )
    needles = draw_needles(np.random.default_rng(seed), 4)
    decoded = corpus.tokenizer.decode(example.tokens)
    assert len(example.tokens) == 256
    assert all(needle.sentence in decoded for needle in needles)
    assert sum(decoded.count(needle.question) for needle in needles) == 1
    assert decoded.endswith(f'{needles[0].question} {needles[0].answer}')


def test_only_the_whole_answer_is_exact(corpus, haystack):
  example = example_of(corpus, haystack, 0.5)
  n = example.value_len
  predictions = np.zeros(len(example.tokens) - 1, int)
  predictions[-n:] = example.tokens[-n:]
  assert is_exact(example, predictions)
  for k in range(1, n + 1):
    wrong = predictions.copy()
    wrong[-k] += 1
    assert not is_exact(example, wrong)


def grid_of(corpus, haystack, predictor, num_needles=1, seed=0):
  return needle_grid(
    predictor,
    corpus.chat,
    haystack,
    GRID,
    num_needles=num_needles,
    seed=seed,
  )


def test_a_predictor_that_knows_scores_one_in_every_cell(corpus, haystack):
  predictor = Knowing()
  grid = grid_of(corpus, haystack, predictor)
  cells = {'0': 1.0, '0.5': 1.0, '1': 1.0}
  assert grid == {'64': cells, '90': cells}
  assert predictor.lengths == [64] * 6 + [90] * 6
  assert mean_by_length(grid) == {'64': 1.0, '90': 1.0}


def test_a_predictor_wrong_at_one_length_scores_zero_there(corpus, haystack):
  grid = grid_of(corpus, haystack, Knowing(lambda row: len(row) == 64))
  assert mean_by_length(grid) == {'64': 0.0, '90': 1.0}


def test_a_predictor_wrong_at_one_depth_scores_zero_there(corpus, haystack):
  marker = corpus.tokenizer.encode(' The magic word:')

  def needle_at_start(row):
    return find(marker, row) == [2]

  grid = grid_of(corpus, haystack, Knowing(needle_at_start))
  assert grid['90'] == {'0': 0.0, '0.5': 1.0, '1': 1.0}


def test_the_grid_is_drawn_anew_for_each_seed_and_the_same_for_one(
  corpus, haystack
):
  def rows_of(seed):
    rows = []
    grid_of(corpus, haystack, Knowing(rows.append), seed=seed)
    return [tuple(row.tolist()) for row in rows]

  assert rows_of(0) == rows_of(0) != rows_of(1)
  assert len(set(rows_of(0))) == 12


def test_lengths_that_cannot_be_made_are_clear_errors(corpus, haystack):
  with pytest.raises(ConfigError, match=r'4 needles .* fit into 60 tokens'):
    example_of(corpus, haystack, 0, length=60, num_needles=4)
  with pytest.raises(ConfigError, match=r'has 50 tokens, .* of 120: raise'):
    example_of(corpus, haystack[:50], 0)
