"""Needles: lengths to the token, places, distractors, scores."""

import numpy as np
import pytest

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.suites.needle import (
  NEEDLES,
  NeedleSuite,
  NeedleText,
  sentence_ends,
  walk_back,
)
from longctx_jax.suites.suite import Example, Grid
from tests.suites.words import shown, word_prompter

TEXT = 'It was late. A man went home by the river. ' * 40
GRID = Grid((120, 200), num_depths=5, samples=3, seed=1)
NUMBER = NEEDLES['number']


def suite_of(prompter, grid=GRID, needle=NUMBER, **how):
  haystack = prompter.encode(TEXT)
  return NeedleSuite('needle', grid, needle, haystack, **how)


@pytest.mark.parametrize('frame', [('<user>', '<model>'), ('', '')])
@pytest.mark.parametrize('at', ['sentence', 'token'])
@pytest.mark.parametrize('num_needles', [1, 4])
def test_prompt_and_answer_are_as_long_as_they_say(frame, at, num_needles):
  prompter = word_prompter(*frame)
  suite = suite_of(
    prompter, Grid((200, 300), 5, 3, 1), at=at, num_needles=num_needles
  )
  examples = list(suite.examples(prompter))
  assert len(examples) == 2 * 5 * 3
  assert len({e.name for e in examples}) == len(examples)
  for example in examples:
    assert len(example.tokens) + example.max_new_tokens == example.length
    assert not example.truncated


def test_a_needle_lies_at_its_depth_and_is_asked_for():
  prompter = word_prompter()
  for example in suite_of(prompter, at='token').examples(prompter):
    text = shown(example, prompter)
    key = text.rpartition('number for ')[2].rpartition(' mentioned')[0]
    sentence = (
      f' One of the special magic numbers for {key} is: {example.answer}.'
    )
    assert text.count(sentence) == 1
    assert text.endswith('mentioned in the provided text is')
    begin = text.index('afterwards.\n') + len('afterwards.\n')
    before, after = text[begin : text.index('\n\nWhat is')].split(sentence)
    # In tokens of the haystack.
    before, after = len(prompter.encode(before)), len(prompter.encode(after))
    assert before == round(example.depth * (before + after))


def test_by_default_a_needle_stands_behind_a_full_stop_or_first():
  prompter = word_prompter()
  first = 0
  for example in suite_of(prompter).examples(prompter):
    text = shown(example, prompter)
    before = text[: text.index(' One of the special')]
    assert before.endswith(('.', 'afterwards.\n'))
    first += before.endswith('afterwards.\n')
  assert 0 < first < 30


def test_distractors_have_other_keys_and_numbers():
  prompter = word_prompter()
  suite = suite_of(prompter, Grid((300,), 5, 3, 1), num_needles=4)
  for example in suite.examples(prompter):
    text = shown(example, prompter)
    numbers = [part[:7] for part in text.split('is: ')[1:]]
    keys = [
      part.partition(' is:')[0] for part in text.split('magic numbers for ')[1:]
    ]
    assert len(set(numbers)) == len(set(keys)) == 4
    assert numbers.count(example.answer) == 1
    for before in text.split(' One of the special')[:-1]:
      assert before.endswith(('.', 'afterwards.\n'))


def test_a_cell_is_the_same_whatever_other_cells_there_are():
  prompter = word_prompter()
  wide = {e.name: e for e in suite_of(prompter).examples(prompter)}
  grid = Grid((200,), num_depths=3, samples=1, seed=1)
  narrow = list(suite_of(prompter, grid).examples(prompter))
  assert len(narrow) == 3
  for example in narrow:
    np.testing.assert_array_equal(example.tokens, wide[example.name].tokens)
  other = Grid((200,), num_depths=3, samples=1, seed=2)
  changed = list(suite_of(prompter, other).examples(prompter))
  assert changed[0].answer != narrow[0].answer


def test_a_short_text_is_gone_through_again():
  prompter = word_prompter()
  haystack = prompter.encode('It was late. ')
  suite = NeedleSuite('needle', Grid((200,), 1, 1, 0), NUMBER, haystack)
  example = next(suite.examples(prompter))
  assert 'late. It was late. It was late.' in shown(example, prompter)


def test_a_length_without_room_is_refused_with_what_it_needs():
  prompter = word_prompter()
  suite = suite_of(prompter, Grid((60,), 1, 1, 0))
  with pytest.raises(ConfigError, match=r'60 tokens .* needs \d+ ') as error:
    next(suite.examples(prompter))
  needed = int(str(error.value).rpartition('needs ')[2].split()[0])
  enough = suite_of(prompter, Grid((needed,), 1, 1, 0))
  assert next(enough.examples(prompter)).length == needed
  with pytest.raises(ConfigError, match='no room'):
    next(suite_of(prompter, Grid((needed - 1,), 1, 1, 0)).examples(prompter))


def test_the_end_of_a_sentence_is_known_by_its_text():
  prompter = word_prompter()
  ids = prompter.encode('So it is. And 3.5 too')
  ends = sentence_ends(ids, prompter)
  assert [prompter.tokenizer.decode([i]) for i in ids[ends]] == ['.', '.']


def test_a_word_with_its_full_stop_in_one_token_ends_a_sentence():
  class Merged:
    def decode(self, ids):
      return ('so', ' late.', '.\n', ' 3.5')[ids[0]]

  prompter = word_prompter()._replace(tokenizer=Merged())
  ends = sentence_ends(np.array([3, 1, 0, 2]), prompter)
  assert ends.tolist() == [False, True, False, True]


def test_places_move_back_to_the_end_of_a_sentence():
  flags = np.array([0, 0, 1, 0, 0], bool)
  assert [walk_back(flags, 0, place) for place in range(6)] == [
    *(0, 0, 0, 3, 3, 3),
  ]
  # A stretch that begins at 3 and goes round.
  assert [walk_back(flags, 3, place) for place in (4, 5)] == [0, 5]


def example_of(answer):
  return Example('', np.zeros(0), answer, 1, 1, 0.0)


def test_scores_are_those_of_the_official_code():
  suite = suite_of(word_prompter())
  assert suite.score('It is 1234567, yes.', example_of('1234567')) == 1
  assert suite.score('It is 123456.', example_of('1234567')) == 0
  sandwich = suite_of(word_prompter(), needle=NEEDLES['sandwich'])
  answer = NEEDLES['sandwich'].answer
  # Eleven distinct words of twelve: the most there is.
  assert sandwich.score(answer, example_of(answer)) == 11 / 12
  assert sandwich.score('Eat a pizza', example_of(answer)) == 2 / 12


def test_a_needle_of_ones_own():
  needle = NeedleText(
    'The code is blue. ', 'What is it?', '', 'Blue', 'substring'
  )
  prompter = word_prompter()
  suite = suite_of(prompter, needle=needle)
  example = next(suite.examples(prompter))
  assert shown(example, prompter).endswith('\n\nWhat is it?<model>')
  assert 'The code is blue. ' in shown(example, prompter)
  assert suite.score('it is blue', example) == 1
  with pytest.raises(ConfigError, match='no distractors'):
    suite_of(prompter, needle=needle, num_needles=2)


@pytest.mark.parametrize(
  'text',
  ["The config is {'a': 1}.", 'Set x = { now.', '{} {0} }{ {key', '{{}}'],
)
def test_braces_of_ones_own_needle_are_text(text):
  prompter = word_prompter()
  needle = NeedleText(f'{text} ', f'Why {text}?', text, text, 'substring')
  suite = suite_of(prompter, needle=needle)
  example = next(suite.examples(prompter))
  assert shown(example, prompter).count(text) == 3
  assert example.answer == text


def test_keys_and_values_of_ones_own_needle_are_drawn():
  prompter = word_prompter()
  needle = NeedleText(
    "{'{key}': {value}}. ", 'What is {key}?', '', '{value}', 'substring'
  )
  suite = suite_of(prompter, needle=needle, num_needles=2)
  example = next(suite.examples(prompter))
  text = shown(example, prompter)
  key = text.rpartition('What is ')[2].partition('?')[0]
  assert f"{{'{key}': {example.answer}}}. " in text
  assert text.count("{'") == 2


def test_more_needles_than_keys_are_refused():
  with pytest.raises(ConfigError, match=r'--num_needles=100000: .* keys for'):
    suite_of(word_prompter(), num_needles=100_000)
