"""InfiniteBench: the official scorers' verdicts, generators, files."""

import json
import re

import numpy as np
import pytest

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.data.retrieval_texts import NOISE, draw_key, hide_key
from longctx_jax.suites.infinitebench import (
  TASKS,
  InfiniteBenchSuite,
)
from longctx_jax.suites.suite import Grid
from tests.suites.words import shown, word_prompter

GRID = Grid((300, 500), num_depths=3, samples=2, seed=0)
UUID = '0c2a6a6a-94b2-4d0b-8c2e-6d3f3cdd6f8e'


@pytest.mark.parametrize(
  ('task', 'prediction', 'answer', 'right'),
  [
    ('passkey', ' 71432.', '71432', True),
    ('passkey', 'Remember 12: 71432', '71432', False),
    ('passkey', '714', '71432', False),
    ('passkey', '0714', '0714', True),
    ('passkey', 'none', '71432', False),
    ('number_string', '7711432299 and', '7711432299', True),
    ('kv_retrieval', f'"{UUID}".', UUID, True),
    ('kv_retrieval', f'It is: {UUID}, I think', UUID, True),
    ('kv_retrieval', f'({UUID})', UUID, False),
    ('kv_retrieval', UUID.upper(), UUID, False),
  ],
)
def test_scores_are_those_of_the_official_code(task, prediction, answer, right):
  assert TASKS[task].score(prediction, answer) == right


def test_keys_are_drawn_as_officially():
  rng = np.random.default_rng(0)
  for _ in range(50):
    assert re.fullmatch(r'\d{5}', draw_key(rng, 'passkey'))
    key = draw_key(rng, 'number_string')
    # Each of the five insertions doubles a digit beside itself.
    assert len(key) == 10
    assert len(re.sub(r'(\d)\1*', r'\1', key)) <= 5


def test_the_line_of_the_key_stands_between_noise():
  text = hide_key('passkey', '12345', 3, 1)
  assert text == (
    f'{NOISE}The pass key is 12345. Remember it. 12345 is the pass key.\n'
    f'{NOISE}{NOISE}'
  )


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('frame', [('<user>', '<model>'), ('', '')])
def test_made_prompts_are_as_long_as_fits(task, frame):
  prompter = word_prompter(*frame)
  suite = InfiniteBenchSuite(task, GRID)
  examples = list(suite.examples(prompter))
  assert len({e.name for e in examples}) == 2 * 3 * 2
  unit = len(prompter.encode(NOISE))
  if task == 'kv_retrieval':
    unit = 60  # two UUIDs: digits and letters take turns
  for example in examples:
    used = len(example.tokens) + example.max_new_tokens
    assert example.length - unit < used <= example.length
    text = shown(example, prompter)
    assert text.count(example.answer) == (1 if task == 'kv_retrieval' else 2)
    assert example.max_new_tokens >= TASKS[task].max_new_tokens
    assert suite.score(f' {example.answer}.', example) == 1


def test_answers_have_the_depth_they_say():
  prompter = word_prompter()
  for example in InfiniteBenchSuite('passkey', GRID).examples(prompter):
    before, after = shown(example, prompter).split('The pass key is', 1)
    found = before.count(NOISE), after.count(NOISE)
    assert found[0] == round(example.depth * sum(found))
  for example in InfiniteBenchSuite('kv_retrieval', GRID).examples(prompter):
    text = shown(example, prompter)
    pairs = json.loads(re.search(r'\{.*\}', text)[0])
    values = list(pairs.values())
    assert values.index(example.answer) == round(
      example.depth * (len(values) - 1)
    )
    key = re.search(r'Key: "(.+?)"', text)[1]
    assert pairs[key] == example.answer


def test_base_models_get_the_official_prompt_and_chats_their_frame():
  base, chat = word_prompter('', ''), word_prompter()
  suite = InfiniteBenchSuite('passkey', GRID)
  text = shown(next(suite.examples(base)), base)
  assert text.startswith('There is an important info hidden inside a lot of')
  assert text.endswith('\n\nWhat is the pass key?\n\nThe pass key is')
  text = shown(next(suite.examples(chat)), chat)
  assert text.endswith('What is the pass key?<model>The pass key is')


def write(path, *rows):
  path.write_text('\n'.join(map(json.dumps, rows)) + '\n')
  return path


def row(before, after, answer=('71432',), **fields):
  context = NOISE * before + hide_key('passkey', '71432', 0, 0) + NOISE * after
  question = {'input': 'What is the pass key?', 'answer': answer}
  return {'context': context, **question, **fields}


def test_official_files_are_read_and_what_is_cut_is_said(tmp_path):
  prompter = word_prompter()
  path = write(
    tmp_path / 'passkey.jsonl',
    row(10, 0, id=7),
    row(0, 1),
    row(5, 5),
    row(40, 1, answer='71432'),
    row(1, 40),
  )
  suite = InfiniteBenchSuite('passkey', GRID, path, max_len=200)
  examples = list(suite.examples(prompter))
  assert [e.name for e in examples] == ['7', '1', '2', '3', '4']
  assert {e.answer for e in examples} == {'71432'}
  assert [e.truncated for e in examples] == [True, False, True, True, True]
  # The middle goes: an answer in it is lost, one near either end is not.
  lost = [e.answer_lost for e in examples]
  assert lost == [False, False, True, False, False]
  for example in examples:
    assert len(example.tokens) + example.max_new_tokens <= 200
    assert shown(example, prompter).endswith('The pass key is')
  assert [e.depth for e in examples] == [1.0, 0.1, 0.5, 1.0, 0.0]


@pytest.mark.parametrize(
  ('ids', 'message'),
  [
    ((7, 8, 7), "line 4: the id '7' is that of line 1 too"),
    (('a\n', 'a\n', 'a\n'), r"line 3: the id 'a\\n' is that of line 1 too"),
    # The third example, counted from 0.
    ((2, 1, None), "line 4: the id '2' is that of line 1 too"),
  ],
)
def test_an_id_that_two_lines_have_is_refused(tmp_path, ids, message):
  """The second would count as asked once the first is."""
  rows = [row(1, 1) if i is None else row(1, 1, id=i) for i in ids]
  path = write(tmp_path / 'x.jsonl', *rows)
  first, _, others = path.read_text().partition('\n')
  path.write_text(f'{first}\n\n{others}')
  suite = InfiniteBenchSuite('passkey', GRID, path)
  with pytest.raises(ConfigError, match=rf'x\.jsonl, {message}') as error:
    list(suite.examples(word_prompter()))
  assert '\n' not in str(error.value)


def test_braces_of_official_files_are_text(tmp_path):
  prompter = word_prompter()
  context = 'Some {input} and {0} and {context}: 71432. '
  fields = row(0, 0) | {'context': context}
  suite = InfiniteBenchSuite(
    'passkey', GRID, write(tmp_path / 'passkey.jsonl', fields)
  )
  text = shown(next(suite.examples(prompter)), prompter)
  assert context in text
  assert text.count('What is the pass key?') == 1


def test_a_tokenizer_of_single_digits_has_room_for_all_of_them():
  prompter = word_prompter(word=r' |[^\W\d]+|\W|\d')
  for task, new in (('passkey', 7), ('number_string', 12)):
    example = next(InfiniteBenchSuite(task, GRID).examples(prompter))
    # A space, five or ten digits, the end; 6 and 12 officially.
    assert example.max_new_tokens == new


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'answer': []}, r"'answer' must be a text or a list of one, and is \[\]"),
    ({'answer': ''}, "'answer' must be a text or a list of one"),
    ({'answer': None}, "'answer' must be .* is null"),
    ({'answer': [['a']]}, "'answer' must be"),
    ({'context': 5}, "'context' must be a text, and is 5"),
    ({'input': {'a': 1}}, "'input' must be a text"),
  ],
)
def test_a_field_that_is_none_is_named_with_its_line(
  tmp_path, changes, message
):
  path = write(tmp_path / 'x.jsonl', row(0, 0), row(0, 0) | changes)
  suite = InfiniteBenchSuite('passkey', GRID, path)
  with pytest.raises(ConfigError, match=f'x.jsonl, line 2: .*{message}'):
    list(suite.examples(word_prompter()))


@pytest.mark.parametrize('task', TASKS)
def test_a_length_without_room_is_refused(task):
  suite = InfiniteBenchSuite(task, Grid((20,), 1, 1, 0))
  with pytest.raises(ConfigError, match=f'20 tokens have no room .* {task},'):
    list(suite.examples(word_prompter()))
