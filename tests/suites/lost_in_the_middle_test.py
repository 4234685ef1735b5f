"""Lost in the Middle: its prompt, its places, its score."""

import json
import re

import pytest

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.suites.lost_in_the_middle import LostInTheMiddleSuite
from longctx_jax.suites.suite import Grid
from tests.suites.words import shown, word_prompter

GRID = Grid((300, 600), num_depths=3, samples=2, seed=0)


def test_made_prompts_have_the_official_form_and_the_length():
  prompter = word_prompter('', '')
  for example in LostInTheMiddleSuite(GRID).examples(prompter):
    body = re.fullmatch(
      'Extract the value corresponding to the specified key in the JSON object'
      r' below\.\n\nJSON data:\n(\{.+\})\n\nKey: "(.+)"\nCorresponding value:',
      shown(example, prompter),
      re.DOTALL,
    )
    pairs = json.loads(body[1])
    assert body[1].count('\n ') == len(pairs) - 1
    assert pairs[body[2]] == example.answer
    place = list(pairs).index(body[2])
    assert place == round(example.depth * (len(pairs) - 1))
    used = len(example.tokens) + example.max_new_tokens
    assert example.length - 60 < used <= example.length


def test_a_chat_model_begins_its_answer_with_the_question_s_last_line():
  prompter = word_prompter()
  example = next(LostInTheMiddleSuite(GRID).examples(prompter))
  text = shown(example, prompter)
  assert re.search(r'Key: ".+"<model>Corresponding value:$', text)


def test_official_files_give_an_example_for_each_depth(tmp_path):
  records = [[f'k{i}', f'V{i}'] for i in range(5)]
  path = tmp_path / 'kv.jsonl'
  fields = {'ordered_kv_records': records, 'key': 'k3', 'value': 'V3'}
  path.write_text(json.dumps(fields) + '\n')
  prompter = word_prompter('', '')
  suite = LostInTheMiddleSuite(GRID, path)
  examples = list(suite.examples(prompter))
  assert [e.name for e in examples] == ['0-0', '0-0.5', '0-1']
  for example, place in zip(examples, (0, 2, 4), strict=True):
    pairs = json.loads(
      re.search(r'\{.+\}', shown(example, prompter), re.DOTALL)[0]
    )
    assert sorted(pairs) == [f'k{i}' for i in range(5)]
    assert list(pairs)[place] == 'k3'
  assert suite.score('it is v3.', examples[0]) == 1
  assert suite.score('it is v4.', examples[0]) == 0


def test_prompts_longer_than_the_model_lose_their_middle(tmp_path):
  records = [[f'k{i:02}', f'V{i:02}'] for i in range(40)]
  path = tmp_path / 'kv.jsonl'
  fields = {'ordered_kv_records': records, 'key': 'k03', 'value': 'V03'}
  path.write_text(json.dumps(fields))
  prompter = word_prompter()
  whole = list(LostInTheMiddleSuite(GRID, path, 5000).examples(prompter))
  assert not any(e.truncated or e.answer_lost for e in whole)
  cut = list(LostInTheMiddleSuite(GRID, path, 200).examples(prompter))
  assert all(e.truncated for e in cut)
  # It is asked for the value at the beginning, in the middle, at the end.
  assert [e.answer_lost for e in cut] == [False, True, False]
  for example in cut:
    used = len(example.tokens) + example.max_new_tokens
    assert used == example.length == 200
    text = shown(example, prompter)
    assert text.startswith('<user>Extract the value')
    assert text.endswith('Key: "k03"<model>Corresponding value:')
  with pytest.raises(
    ConfigError, match=r'--data: example 0-0: its answer takes \d+'
  ):
    list(LostInTheMiddleSuite(GRID, path, 3).examples(prompter))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'ordered_kv_records': [['a', 'b', 'c']]}, 'a list of pairs of texts'),
    ({'ordered_kv_records': [['a', 3]]}, 'a list of pairs of texts'),
    ({'ordered_kv_records': ['ab']}, 'a list of pairs of texts'),
    ({'ordered_kv_records': 5}, 'a list of pairs of texts, and is 5'),
    ({'key': 3}, "'key' must be a text, and is 3"),
    ({'value': 4}, "'value' must be a text, and is 4"),
  ],
)
def test_a_field_that_is_none_is_named_with_its_line(
  tmp_path, changes, message
):
  path = tmp_path / 'kv.jsonl'
  fields = {'ordered_kv_records': [['a', 'b']], 'key': 'a', 'value': 'b'}
  path.write_text(json.dumps(fields) + '\n' + json.dumps(fields | changes))
  suite = LostInTheMiddleSuite(GRID, path)
  with pytest.raises(ConfigError, match=f'kv.jsonl, line 2: .*{message}'):
    list(suite.examples(word_prompter()))


def test_a_length_without_room_is_refused():
  suite = LostInTheMiddleSuite(Grid((20,), 1, 1, 0))
  with pytest.raises(ConfigError, match='20 tokens have no room'):
    next(suite.examples(word_prompter()))
