"""Predictions: as they come, once each, and summed up."""

import itertools
import json

import numpy as np
import pytest

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.suites.run_suite import (
  MAX_RANGES,
  length_ranges,
  run_suite,
  summarise,
)
from longctx_jax.suites.suite import Example
from tests.suites.words import word_prompter


class Counting:
  """Example i has i + 1 tokens, and is answered right if the model says i."""

  name = 'counting'

  def __init__(self, count, **changes):
    self._count, self._changes = count, changes

  def examples(self, prompter):
    for i in reversed(range(self._count)):
      tokens = np.full(i + 1, i, np.int32)
      example = Example(
        f'e{i}', tokens, str(i), i + 1, 100 if i < 4 else 20, 0.5 * (i % 2)
      )
      yield example._replace(**self._changes)

  def score(self, prediction, example):
    return float(prediction == example.answer)


class Model:
  """Says the prompt's first token, but 3 where it should be 2."""

  def __init__(self, fails_after=10**9):
    self.asked, self.batches, self._left = [], [], fails_after

  def __call__(self, prompts, max_new_tokens):
    if self._left < len(prompts):
      raise KeyboardInterrupt
    self._left -= len(prompts)
    self.asked += [len(p) for p in prompts]
    self.batches.append((len(prompts), max_new_tokens))
    return [str({2: 3}.get(int(p[0]), int(p[0]))) for p in prompts]


def run(directory, model, suite=None, batch_tokens=12, **settings):
  return run_suite(
    suite or Counting(6),
    word_prompter(),
    model,
    directory,
    asked_as={'model': 'm', **settings},
    batch_tokens=batch_tokens,
  )


def lines(directory):
  text = (directory / 'counting.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_results_are_means_by_length_and_depth(tmp_path):
  results = run(tmp_path, Model())
  assert results['num'] == 6
  assert results['score'] == pytest.approx(5 / 6)
  assert results['cells'] == {
    '20': {'0': {'score': 1.0, 'num': 1}, '0.5': {'score': 1.0, 'num': 1}},
    '100': {'0': {'score': 0.5, 'num': 2}, '0.5': {'score': 1.0, 'num': 2}},
  }
  assert list(results['cells']) == ['20', '100']
  assert (results['truncated'], results['answer_lost']) == (0.0, 0.0)


def record(length, score):
  cut = {'truncated': False, 'answer_lost': False}
  return {'length': length, 'depth': 0.5, 'score': score, **cut}


def test_lengths_of_no_grid_are_put_together_between_powers_of_two():
  records = [record(n, n % 2) for n in (300, 251, 256, 250, 281, 301, 512, 513)]
  results = summarise(records, any_length=True)
  assert results['cells'] == {
    '256': {'0.5': {'score': pytest.approx(1 / 3), 'num': 3}},
    '512': {'0.5': {'score': 0.5, 'num': 4}},
    '513': {'0.5': {'score': 1.0, 'num': 1}},
  }
  assert results['shortest'] == {'256': 250, '512': 281, '513': 513}
  # Those of a grid are what was asked for.
  assert len(summarise(records)['cells']) == len(records)
  assert set(summarise(records)['shortest']) == set(summarise(records)['cells'])


def test_there_are_few_ranges_whatever_the_lengths():
  lengths = [*range(1, 300), *(3**i for i in range(14)), 1_000_000]
  ranges = length_ranges(lengths)
  assert set(ranges) == set(lengths)
  assert 5 <= len(set(ranges.values())) <= MAX_RANGES
  assert all(first <= n <= last for n, (first, last) in ranges.items())
  spans = sorted(set(ranges.values()))
  assert all(a[1] < b[0] for a, b in itertools.pairwise(spans))


def test_every_prediction_is_on_its_line(tmp_path):
  run(tmp_path, Model())
  settings, *records = lines(tmp_path)
  assert settings == {'settings': {'model': 'm'}}
  record = next(r for r in records if r['name'] == 'e2')
  assert record == {
    'name': 'e2',
    'length': 100,
    'depth': 0.0,
    'truncated': False,
    'answer_lost': False,
    'prompt_tokens': 3,
    'answer': '2',
    'prediction': '3',
    'score': 0.0,
  }


def test_prompts_of_like_length_go_together_up_to_the_tokens(tmp_path):
  model = Model()
  run(tmp_path, model)
  assert model.asked == [1, 2, 3, 4, 5, 6]
  # 3 x 3 tokens, 2 x 5, 1 x 6; each with the longest answer of its batch.
  assert model.batches == [(3, 3), (2, 5), (1, 6)]


def test_predictions_are_on_disk_before_the_next_are_asked(tmp_path):
  """Also for `kill -9`."""
  there = []

  class Looking(Model):
    def __call__(self, prompts, max_new_tokens):
      written = (tmp_path / 'counting.jsonl').exists()
      there.append(len(lines(tmp_path)) - 1 if written else 0)
      return super().__call__(prompts, max_new_tokens)

  run(tmp_path, Looking())
  assert there == [0, 3, 5]


@pytest.mark.parametrize(('fails_after', 'kept'), [(0, 0), (3, 3), (5, 5)])
def test_a_rerun_asks_what_is_missing_and_ends_the_same(
  tmp_path, fails_after, kept
):
  expected = run(tmp_path / 'whole', Model())
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path / 'cut', Model(fails_after))
  model = Model()
  assert run(tmp_path / 'cut', model) == expected
  assert len(model.asked) == 6 - kept
  assert run(tmp_path / 'cut', Model(0)) == expected


def test_a_line_that_was_cut_short_is_asked_again(tmp_path):
  expected = run(tmp_path, Model())
  path = tmp_path / 'counting.jsonl'
  path.write_bytes(path.read_bytes()[:-9])
  model = Model()
  assert run(tmp_path, model) == expected
  assert model.asked == [6]


def test_more_examples_add_to_what_is_there(tmp_path):
  run(tmp_path, Model(), Counting(4))
  model = Model()
  assert run(tmp_path, model, Counting(6)) == run(tmp_path / 'b', Model())
  assert model.asked == [5, 6]


def test_other_settings_are_refused_and_nothing_is_lost(tmp_path):
  run(tmp_path, Model(), chat=True)
  before = (tmp_path / 'counting.jsonl').read_bytes()
  with pytest.raises(ConfigError, match=r'chat is True there, False here'):
    run(tmp_path, Model(), chat=False)
  assert (tmp_path / 'counting.jsonl').read_bytes() == before


def test_all_settings_that_differ_are_named_briefly(tmp_path):
  run(tmp_path, Model(), chat=True, seed=0, text='a' * 500)
  with pytest.raises(ConfigError) as error:
    run(tmp_path, Model(), chat=False, seed=1, text='b' * 500)
  message = str(error.value)
  assert 'chat is True there, False here; seed is 0 there, 1 here' in message
  assert f"text is '{'a' * 59}... there, '{'b' * 59}... here" in message
  assert 'model' not in message
  assert len(message) < len(str(tmp_path)) + 300


def test_a_run_that_fails_leaves_no_file(tmp_path):
  class NoRoom(Counting):
    def examples(self, prompter):
      yield from super().examples(prompter)
      raise ConfigError('no room')

  with pytest.raises(ConfigError, match='no room'):
    run(tmp_path, Model(), NoRoom(6))
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, Model(0))
  assert not list(tmp_path.iterdir())
  # A file of settings alone, as a kill may leave it, binds nobody.
  (tmp_path / 'counting.jsonl').write_text('{"settings": {"model": "other"}}\n')
  assert run(tmp_path, Model()) == run(tmp_path / 'b', Model())
  assert lines(tmp_path)[0] == {'settings': {'model': 'm'}}


@pytest.mark.parametrize('text', ['[1]\n', '{"a": 1}', '{"a": 1}\n{}\n'])
def test_a_file_that_is_not_ours_is_left_alone(tmp_path, text):
  path = tmp_path / 'counting.jsonl'
  path.write_text(text)
  with pytest.raises(ConfigError, match='do not say their settings'):
    run(tmp_path, Model())
  assert path.read_text() == text


def test_a_damaged_line_is_named(tmp_path):
  run(tmp_path, Model())
  path = tmp_path / 'counting.jsonl'
  path.write_text(path.read_text().replace('"e3"', 'e3'))
  with pytest.raises(ConfigError, match=r'counting\.jsonl: a line is no JSON'):
    run(tmp_path, Model())


def test_cut_prompts_are_counted(tmp_path):
  results = run(tmp_path, Model(), Counting(3, truncated=True))
  assert (results['truncated'], results['answer_lost']) == (1.0, 0.0)
