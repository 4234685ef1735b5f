"""Table accuracy: scores of predictors whose answers are known."""

import numpy as np

from longctx_jax.data.synthetic_tables import LAYOUTS, TASKS
from longctx_jax.evals.tables import table_accuracy


class Answering:
  """Predicts every next token, as `change`d at the places of answers."""

  def __init__(self, tokenizer, change=lambda row, answer: answer):
    self.change = change
    self.assistant = tokenizer.control_id('<|assistant|>')
    self.end = tokenizer.control_id('<|end|>')

  def rows(self, rows):
    for row in rows:
      predictions = row[1:].copy()
      # Answers lie between the assistant's marker and the end marker.
      starts = np.flatnonzero(row == self.assistant)
      stops = np.flatnonzero(row == self.end)
      for start, stop in zip(starts, stops, strict=True):
        answer = predictions[start:stop]
        predictions[start:stop] = self.change(row, answer.copy())
      yield np.zeros(len(predictions)), predictions


def accuracy_of(corpus, change, lengths=(128, 400), samples=12):
  return table_accuracy(
    Answering(corpus.tokenizer, change),
    corpus.chat,
    lengths=lengths,
    samples=samples,
    seed=0,
  )


def test_right_answers_score_one_at_every_length_layout_and_task(corpus):
  accuracy = accuracy_of(corpus, lambda row, answer: answer)
  assert list(accuracy) == ['128', '400']
  scores = {score for cells in accuracy.values() for score in cells.values()}
  assert scores == {1.0}
  names = {name.split()[0] for name in accuracy['400']}
  assert names == set(LAYOUTS)
  assert {name.split()[1] for name in accuracy['400']} == set(TASKS)


def only_score(corpus, change):
  accuracy = accuracy_of(corpus, change, lengths=(300,))
  return {score for cells in accuracy.values() for score in cells.values()}


def test_an_answer_that_does_not_end_scores_zero(corpus):
  newline = corpus.tokenizer.encode('\n')[0]
  assert only_score(
    corpus, lambda row, answer: np.append(answer[:-1], newline)
  ) == {0.0}


def test_an_answer_that_ends_at_once_scores_zero(corpus):
  # Such as the space before the first digit of a number: it leaves no trace in
  # the decoded text, and greedy decoding would have stopped there.
  end = corpus.tokenizer.control_id('<|end|>')
  assert only_score(corpus, lambda row, answer: np.append(end, answer[1:])) == {
    0.0
  }


def test_each_layout_has_a_score_of_its_own(corpus):
  bar = corpus.tokenizer.encode('| --- |')

  def wrong_in_markdown(row, answer):
    return answer[::-1] if bar[-1] in row else answer

  accuracy = accuracy_of(corpus, wrong_in_markdown, lengths=(300,))['300']
  for name, score in accuracy.items():
    assert score == (0.0 if name.startswith('markdown') else 1.0)


def test_part_of_the_answers_right_is_that_part_of_the_score(corpus):
  seen = []

  def every_other(row, answer):
    seen.append(answer)
    return answer if len(seen) % 2 else answer[::-1]

  accuracy = accuracy_of(corpus, every_other, lengths=(300,))['300']
  assert 0.4 < np.mean(list(accuracy.values())) < 0.6
