"""Conversation files: four shapes, what is no conversation, and where."""

import json
import random

import pytest

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.corpus_config import ConversationFiles
from longctx_jax.data.chat import Conversation
from longctx_jax.data.conversation_files import LeftOut, read_conversations
from tests.data.formats import write_bytes

FIELD = 'corpus.conversation_files.mine'
TURNS = [('Hi', 'Hello'), ('And?', 'Bye')]
FLAT = [text for turn in TURNS for text in turn]
ROLES = ['user', 'assistant'] * 2

# Shape -> a record of TURNS, as data sets write it.
RECORDS = {
  'messages': {
    'prompt': 'Hi',
    'prompt_id': 'f0e3',
    'messages': [
      {'role': role, 'content': text}
      for role, text in zip(ROLES, FLAT, strict=True)
    ],
  },
  'ultrachat': {'id': '0', 'data': FLAT},
  'alpaca': {'instruction': 'Hi', 'input': '', 'output': 'Hello'},
  'sharegpt': {
    'id': 'x_0',
    'conversations': [
      {'from': {'user': 'human', 'assistant': 'gpt'}[role], 'value': text}
      for role, text in zip(ROLES, FLAT, strict=True)
    ],
  },
}


def write(path, records, *, array=False):
  lines = [json.dumps(record) for record in records]
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(
    json.dumps(records, indent=2) if array else '\n'.join(lines) + '\n'
  )
  return path


def read(path, **fields):
  made, left_out = read_all(path, **fields)
  return made, dict(left_out.records)


def read_all(path, **fields):
  left_out = LeftOut()
  files = ConversationFiles(str(path), **fields)
  return list(read_conversations(files, FIELD, left_out)), left_out


@pytest.mark.parametrize('array', [False, True])
@pytest.mark.parametrize('shape', list(RECORDS))
@pytest.mark.parametrize('named', [False, True])
def test_every_shape_is_read(tmp_path, shape, array, named):
  path = write(tmp_path / 'a.json', [RECORDS[shape]] * 2, array=array)
  turns = TURNS[:1] if shape == 'alpaca' else TURNS
  fields = {'shape': shape} if named else {}
  assert read(path, **fields) == ([Conversation(turns)] * 2, {})


def test_the_shape_is_told_file_by_file_in_order_of_name(tmp_path):
  write(tmp_path / 'b' / 'b.jsonl', [RECORDS['alpaca']])
  write(tmp_path / 'a.json', [RECORDS['sharegpt']], array=True)
  write(tmp_path / 'c.jsonl', [{'data': FLAT * 2}])
  (tmp_path / 'notes.txt').write_text('no records')
  made, problems = read(tmp_path)
  assert [len(one.turns) for one in made] == [2, 1, 4]
  assert problems == {}


@pytest.mark.parametrize('array', [False, True])
@pytest.mark.parametrize('suffix', ['.gz', '.zst'])
def test_compressed_files_are_read(tmp_path, suffix, array):
  plain = write(tmp_path / 'plain', [RECORDS['sharegpt']] * 2, array=array)
  write_bytes(tmp_path / 'mine' / f'a.jsonl{suffix}', plain.read_bytes())
  assert read(tmp_path / 'mine') == ([Conversation(TURNS)] * 2, {})


@pytest.mark.parametrize('suffix', ['.gz', '.zst'])
def test_a_truncated_file_is_read_up_to_there_and_counted(tmp_path, suffix):
  rng = random.Random(0)  # compresses badly, so that blocks are many
  texts = [str(rng.random()) for _ in range(20_000)]
  records = [{'data': texts[i : i + 2]} for i in range(0, len(texts), 2)]
  plain = write(tmp_path / 'plain', records)
  path = tmp_path / f'a.jsonl{suffix}'
  write_bytes(path, plain.read_bytes())
  path.write_bytes(path.read_bytes()[:-1000])
  made, problems = read(path)
  assert 0 < len(made) < len(records)
  assert problems == {'damaged': 1}
  with pytest.raises(ConfigError, match=rf'{suffix}:\d+: .*: damaged\. Mend'):
    read(path, on_problem='stop')


def test_the_input_of_alpaca_follows_its_instruction(tmp_path):
  record = {'instruction': 'Add', 'input': '1 1', 'output': '2'}
  made, _ = read(write(tmp_path / 'a.jsonl', [record]))
  assert made == [Conversation([('Add\n1 1', '2')])]


def of(*roles_and_texts):
  messages = [{'role': r, 'content': t} for r, t in roles_and_texts]
  return {'messages': messages}


USER, ANSWER = ('user', 'Hi'), ('assistant', 'Hello')


def test_a_system_may_come_first_and_a_last_question_is_left_off(tmp_path):
  records = [
    of(('system', 'Be brief.'), USER, ANSWER),
    of(('system', ' '), USER, ANSWER, ('user', 'And?')),
    of(USER, ANSWER, USER, ANSWER, ('user', 'And?')),
    of(USER),
  ]
  made, left_out = read_all(write(tmp_path / 'a.jsonl', records))
  turns = [('Hi', 'Hello')]
  assert made == [
    Conversation(turns, 'Be brief.'),
    Conversation(turns),
    Conversation(turns * 2),
  ]
  # That of no answer at all is counted as a record.
  assert left_out.questions == 2
  assert left_out.records == {'no assistant turn': 1}


BAD = [
  (of(USER), 'no assistant turn'),
  (of(), 'no assistant turn'),
  (of(USER, USER, ANSWER), 'roles out of order'),
  (of(ANSWER, USER, ANSWER), 'roles out of order'),
  (of(USER, USER, ANSWER, ANSWER), 'roles out of order'),
  (of(USER, ANSWER, ('system', 'x'), USER, ANSWER), 'roles out of order'),
  (of(USER, ('assistant', ' ')), 'empty turn'),
  (of(('user', ''), ANSWER), 'empty turn'),
  (of(USER, ('tool', 'x'), ANSWER), 'unknown role'),
  (of(USER, ('assistant', None)), 'a turn that is not text'),
  (of(USER, ('assistant', [{'text': 'x'}])), 'a turn that is not text'),
  (of(USER, ('assistant', '\ud83d')), 'half a character'),
  ({'messages': [{'role': 'user'}]}, "no 'content' in the record"),
  ({'messages': None}, 'not of the shape messages'),
  ({'messages': ['Hi', 'Hello']}, 'not of the shape messages'),
  ({'text': 'Hi'}, "no 'messages' in the record"),
  ('Hi', 'not of the shape messages'),
]


@pytest.mark.parametrize(('record', 'problem'), BAD)
def test_what_is_no_conversation_is_counted_or_named(tmp_path, record, problem):
  good = RECORDS['messages']
  path = write(tmp_path / 'a.jsonl', [good, record, good])
  made, problems = read(path)
  assert made == [Conversation(TURNS)] * 2
  assert problems == {problem: 1}
  with pytest.raises(ConfigError) as raised:
    read(path, on_problem='stop')
  message = str(raised.value)
  assert message.startswith(f'{path}:2: {problem}. ')
  assert f'{FIELD}.on_problem=skip' in message
  assert '\n' not in message


@pytest.mark.parametrize('texts', ['Hi there', {'a': 'Hi', 'b': 'x'}, None])
def test_turns_of_ultrachat_are_a_list(tmp_path, texts):
  good = RECORDS['ultrachat']
  made, problems = read(write(tmp_path / 'a.jsonl', [good, {'data': texts}]))
  assert made == [Conversation(TURNS)]
  assert problems == {'not of the shape ultrachat': 1}


def test_the_place_in_an_array_is_the_number_of_the_record(tmp_path):
  path = write(tmp_path / 'a.json', [RECORDS['messages'], of()], array=True)
  with pytest.raises(ConfigError, match='record 2: no assistant turn'):
    read(path, on_problem='stop')


@pytest.mark.parametrize('line', [b'{', b'{"messages": "\xff"}', b'[' * 10**5])
def test_lines_that_are_not_json_are_counted(tmp_path, line):
  path = write(tmp_path / 'a.jsonl', [RECORDS['sharegpt']])
  path.write_bytes(path.read_bytes() + b'\n' + line + b'\n')
  made, problems = read(path)
  assert made == [Conversation(TURNS)]
  assert problems == {'not JSON': 1}
  with pytest.raises(ConfigError, match=r'a\.jsonl:3: not JSON'):
    read(path, on_problem='stop')


def test_a_first_line_that_is_no_object_tells_no_shape(tmp_path):
  made, problems = read(write(tmp_path / 'a.jsonl', [3, RECORDS['sharegpt']]))
  assert made == [Conversation(TURNS)]
  assert problems == {'not a JSON object': 1}


def test_files_of_no_known_shape_are_refused_with_their_keys(tmp_path):
  path = write(tmp_path / 'a.jsonl', [{'question': 'Hi', 'answer': 'Hello'}])
  with pytest.raises(ConfigError, match='keys question, answer is of no known'):
    read(path)


@pytest.mark.parametrize('make', [lambda path: None, lambda path: path.mkdir()])
def test_a_path_without_files_is_refused(tmp_path, make):
  path = tmp_path / 'mine'
  make(path)
  with pytest.raises(ConfigError, match=rf'{FIELD}\.path=.*mine') as raised:
    read(path)
  assert '\n' not in str(raised.value)


def test_a_damaged_array_is_named(tmp_path):
  path = tmp_path / 'a.json'
  path.write_text('[{"data": ["a"')
  with pytest.raises(ConfigError, match=r'a\.json: not JSON'):
    read(path)
