"""Conversations from JSON files, in the four shapes that data sets come in.

    messages   {"messages": [{"role": "user", "content": "Hi"}, ...]}
               OpenAI's; UltraChat-200k and Tulu have it too
    ultrachat  {"id": "0", "data": ["Hi", "Hello", ...]}
    alpaca     {"instruction": "Add", "input": "1 1", "output": "2"}
    sharegpt   {"conversations": [{"from": "human", "value": "Hi"}, ...]}

A file is one record a line, or one array of records; gzip or Zstandard may
compress it. A record must give turns of a user and an assistant by turns, after
a system's text or none.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.corpus_config import ConversationFiles
from longctx_jax.data.chat import Conversation
from longctx_jax.data.parts import BadRecord
from longctx_jax.data.read_json import open_expanded

# As data sets write them -> one of three.
_ROLES = {
  'system': 'system',
  'user': 'user',
  'human': 'user',
  'assistant': 'assistant',
  'gpt': 'assistant',
  'chatgpt': 'assistant',
}


_SUFFIXES = tuple(
  suffix + packed
  for suffix in ('.jsonl', '.json')
  for packed in ('', '.gz', '.zst')
)


class RecordError(ValueError):
  """A record that is no conversation; the message is the kind of problem."""


@dataclasses.dataclass
class LeftOut:
  """What is not in the conversations of files; grows as they are read."""

  # Kind of problem -> records that are no conversation.
  records: Counter[str] = dataclasses.field(default_factory=Counter)
  # Last questions that nobody answers, of conversations without them.
  questions: int = 0


def read_conversations(
  files: ConversationFiles, field: str, left_out: LeftOut
) -> Iterator[Conversation]:
  """Conversations of all files in the order of their names.

  Records that are none are counted in `left_out`, and so are last questions
  that nobody answers; their conversations are kept.

  Raises:
    ConfigError: `field`.path has no such files, a file is of no known shape,
      or, with on_problem=stop, a record is no conversation.
  """
  for path in _paths(files, field):
    shape = files.shape
    for place, record in _records(path):
      try:
        if isinstance(record, RecordError):
          raise record
        if shape == 'auto':
          shape = _shape_of(record, path, field)
        conversation, unanswered = conversation_from_record(record, shape)
      except RecordError as problem:
        if files.on_problem == 'stop':
          raise ConfigError(
            f'{place}: {problem}. Mend it, or set {field}.on_problem=skip'
          ) from None
        left_out.records[str(problem)] += 1
      else:
        left_out.questions += unanswered
        yield conversation


def conversation_from_record(
  record: Any, shape: str
) -> tuple[Conversation, bool]:
  """The turns of one record, and whether a last question was left off.

  Raises:
    RecordError: it has none, or not by turns.
  """
  try:
    messages = [(_ROLES[role], text) for role, text in _MESSAGES[shape](record)]
  except KeyError as error:
    if error.args[0] in _KEYS[shape]:
      raise RecordError(f'no {error.args[0]!r} in the record') from None
    raise RecordError('unknown role') from None
  except (TypeError, AttributeError):
    raise RecordError(f'not of the shape {shape}') from None
  return _by_turns(messages)


def _by_turns(messages: list[tuple[str, Any]]) -> tuple[Conversation, bool]:
  if not all(isinstance(text, str) for _, text in messages):
    raise RecordError('a turn that is not text')
  try:
    ''.join(text for _, text in messages).encode()
  except UnicodeEncodeError:
    raise RecordError('half a character') from None  # such as "\ud83d"
  system = ''
  if messages and messages[0][0] == 'system':
    (_, system), *messages = messages
  unanswered = bool(messages) and messages[-1][0] == 'user'
  if unanswered:
    messages = messages[:-1]
  roles = [role for role, _ in messages]
  if 'assistant' not in roles:
    raise RecordError('no assistant turn')
  if roles != ['user', 'assistant'] * (len(roles) // 2):
    raise RecordError('roles out of order')
  texts = [text for _, text in messages]
  if not all(text.strip() for text in texts):
    raise RecordError('empty turn')
  turns = list(zip(texts[::2], texts[1::2], strict=True))
  system = system if system.strip() else ''
  return Conversation(turns, system), unanswered


def _alpaca(record):
  # Question and its input on two lines, as SkyworkAI/Skywork trains on them
  # (train/build_dataset.py).
  asked = [record['instruction'], record.get('input') or '']
  yield 'user', '\n'.join(filter(None, asked))
  yield 'assistant', record['output']


def _ultrachat(record):
  texts = record['data']
  if not isinstance(texts, list):
    raise TypeError  # a text would give its letters
  return [(('user', 'assistant')[k % 2], text) for k, text in enumerate(texts)]


# Shape -> (role, text) of a record's turns.
_MESSAGES = {
  'messages': lambda r: [(m['role'], m['content']) for m in r['messages']],
  'ultrachat': _ultrachat,
  'alpaca': _alpaca,
  'sharegpt': lambda r: [(m['from'], m['value']) for m in r['conversations']],
}
# Shape -> the key that tells it, and others that it needs.
_KEYS = {
  'messages': ('messages', 'role', 'content'),
  'ultrachat': ('data',),
  'alpaca': ('instruction', 'output'),
  'sharegpt': ('conversations', 'from', 'value'),
}


def _shape_of(record, path, field) -> str:
  if not isinstance(record, dict):
    raise RecordError('not a JSON object')
  for shape, keys in _KEYS.items():
    if keys[0] in record:
      return shape
  raise ConfigError(
    f'{path}: a record of the keys {", ".join(record)} is of no known shape,'
    f' which are {", ".join(_KEYS)}: set {field}.shape, or convert the file'
  )


def _paths(files, field) -> list[Path]:
  if not files.path:  # to `Path` it is the working directory
    raise ConfigError(
      f"{field}.path='': say where the conversations are, a file or a directory"
      ' of *.jsonl and *.json'
    )
  path = Path(files.path)
  found = [path]
  if path.is_dir():
    found = sorted(
      file
      for file in path.rglob('*')
      if file.name.lower().endswith(_SUFFIXES) and file.is_file()
    )
  if not found or not path.exists():
    raise ConfigError(
      f'{field}.path={files.path!r}: expected a file, or a directory of *.jsonl'
      ' and *.json, which may be compressed (.gz, .zst)'
    )
  return found


def _records(path: Path) -> Iterator[tuple[str, Any]]:
  """('file:line', record); what is not JSON comes as a `RecordError`."""
  number = 0
  try:
    if _is_array(path):
      yield from _array(path)
      return
    with open_expanded(str(path)) as file:
      for number, line in enumerate(file, start=1):
        if line.strip():
          yield f'{path}:{number}', _parsed(line)
  except BadRecord as damage:
    # What comes behind it is lost, and nobody knows how much that is.
    yield f'{path}:{number + 1}: {damage}', RecordError(damage.kind)


def _is_array(path):
  with open_expanded(str(path)) as file:
    start = file.read(1)
    while start.isspace():
      start = file.read(1)
  return start == b'['


def _array(path):
  with open_expanded(str(path)) as file:
    try:
      array = json.load(file)
    except (ValueError, RecursionError) as error:
      raise ConfigError(f'{path}: not JSON: {error}') from error
  for i, record in enumerate(array):
    yield f'{path}, record {i + 1}', record


def _parsed(line):
  try:
    return json.loads(line)
  except (ValueError, RecursionError):
    return RecordError('not JSON')
