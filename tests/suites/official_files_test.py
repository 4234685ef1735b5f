"""Files of official examples: what is wrong is said with its line."""

import json

import pytest

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.suites.official_files import TEXT, read_examples

GOOD = json.dumps({'context': 'ä', 'more': 1}).encode()


def read(path):
  return list(read_examples(path, {'context': TEXT}))


def test_every_line_is_an_example_but_those_that_are_blank(tmp_path):
  path = tmp_path / 'x.jsonl'
  for before, after in (
    (b'', b''),
    (b'', b'\r\n\r\n'),
    (b'\n \n\xef\xbb\xbf', b''),
  ):
    path.write_bytes(before + GOOD + after)
    line = 1 + before.count(b'\n')
    assert read(path) == [(line, {'context': 'ä', 'more': 1})]


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (None, 'cannot read .*x.jsonl: No such file'),
    (b'', 'x.jsonl holds no examples: give a JSON Lines file'),
    (b'\n \n', 'x.jsonl holds no examples'),
    (b'{"a": "b"}\n', "line 1: no field 'context'"),
    (GOOD + b'\n{"context"', 'line 2: no JSON object'),
    (b'{"context": "\xff"}', 'line 1: no JSON object in UTF-8'),
    (b'\n3\n', 'line 2: no JSON object'),
    (b'["context"]\n', 'line 1: no JSON object'),
    (b'{"context": 5}', "line 1: the field 'context' must be a text, and is 5"),
  ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, text, message):
  path = tmp_path / 'x.jsonl'
  if text is not None:
    path.write_bytes(text)
  with pytest.raises(ConfigError, match=message) as error:
    read(path)
  assert '\n' not in str(error.value)
