"""JSONL: what stands in for a line that cannot be read, and how much memory."""

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx_jax.corpus_config import TextSource
from longctx_jax.data import read_json
from longctx_jax.data.parts import Document, DocumentError, Problem
from longctx_jax.data.readers import list_parts, read_part
from tests.data import formats


def read(path, part_bytes=1 << 20, **fields):
  source = TextSource('jsonl', 0, str(path), **fields)
  parts = list_parts(source, 'web', Path(), part_bytes=part_bytes)
  return [item for part in parts for item in read_part(part)]


LINES = [
  (b'{"text": "good"}', None, None),
  (b'{"text": "open', 'bad_json', 'not JSON: Unterminated string'),
  (b'["text"]', 'bad_json', 'expected an object, got list'),
  (b'[' * 100_000, 'bad_json', 'not JSON: maximum recursion'),
  (b'{"n": ' + b'9' * 5_000 + b'}', 'bad_json', 'not JSON: Exceeds the limit'),
  (b'{"text": "caf\xe9"}', 'bad_utf8', 'byte 13 of the line is not UTF-8'),
  (rb'{"text": "\ud83d"}', 'bad_utf8', 'character 0 of it is half a surrog'),
  (b'{"body": "x"}', 'no_text_field', "its field 'text' is absent"),
  (b'{"text": null}', 'no_text_field', "its field 'text' is absent"),
  (b'{"text": ["x"]}', 'no_text_field', "its field 'text' is list, not text"),
  (b'{"text": ""}', 'empty', 'it has no text'),
  (b'{"text": "' + b'x' * 101 + b'"}', 'too_large', 'it has more than max_'),
  (rb'{"text": "\ud83d\ude00"}', None, None),
]


@pytest.mark.parametrize('suffix', ['', '.gz', '.zst'])
def test_each_fault_of_a_line_has_its_kind_and_place(tmp_path, suffix):
  path = tmp_path / f'a.jsonl{suffix}'
  formats.write_bytes(path, b'\n'.join(line for line, _, _ in LINES))
  items = read(path, max_document_chars=100)
  offset = 0
  for item, (line, kind, message) in zip(items, LINES, strict=True):
    assert item.name == f'jsonl/{path.name}@{offset}'
    if kind:
      assert (type(item), item.kind) == (Problem, kind)
      assert item.message.startswith(f'{path}, byte {offset}: {message}')
      assert '\n' not in item.message
    offset += len(line) + 1
  texts = [item.text for item in items if isinstance(item, Document)]
  assert texts == ['good', '😀']


@pytest.mark.parametrize('suffix', ['', '.gz', '.zst'])
def test_a_stop_names_the_line(tmp_path, suffix):
  path = tmp_path / f'a.jsonl{suffix}'
  formats.write_bytes(path, b'{"text": "x"}\n' * 6 + b'{"text"\n' * 2)
  with pytest.raises(DocumentError) as raised:
    read(path, on_problem='stop', part_bytes=20)
  assert str(raised.value).startswith(f'{path}, line 7: not JSON: ')


def test_bytes_that_are_not_utf8_are_replaced_where_the_config_says(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'{"text": "caf\xe9"}\n' + rb'{"text": "x\ud83dy"}')
  texts = [item.text for item in read(path, errors='replace')]
  assert texts == ['caf\ufffd', 'x\ufffdy']


@pytest.mark.parametrize(
  ('value', 'kind'),
  [
    ('1.5', 'no_name_field'),
    ('true', 'no_name_field'),
    ('null', 'no_name_field'),
    ('7', 'jsonl/7'),
    (r'"\ud83d"', 'jsonl/\\ud83d'),
  ],
)
def test_names_are_texts_or_numbers(tmp_path, value, kind):
  path = tmp_path / 'a.jsonl'
  path.write_text(f'{{"text": "x", "id": {value}}}')
  (item,) = read(path, name_field='id')
  assert kind == (item.kind if isinstance(item, Problem) else item.name)
  item.name.encode()


def test_blank_lines_and_byte_order_marks_are_no_records(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(
    b'\xef\xbb\xbf{"text": "\xef\xbb\xbfa"}\r\n\r\n \n{"text": "b"}\n\n'
  )
  assert [item.text for item in read(path)] == ['a', 'b']
  path.write_bytes(b'')
  assert read(path) == []


@given(st.lists(st.integers(0, 30), max_size=30), st.integers(1, 200))
def test_lines_are_read_once_wherever_parts_are_cut(
  tmp_path_factory, lengths, part_bytes
):
  path = tmp_path_factory.getbasetemp() / 'cuts.jsonl'
  # Longer than a record may be, at times; and no line end after the last.
  lines = [json.dumps({'text': 'x' * length}) for length in lengths]
  path.write_text('\n'.join(lines))
  items = read(path, part_bytes, max_document_chars=20)
  kinds = [
    item.kind if isinstance(item, Problem) else len(item.text) for item in items
  ]
  assert kinds == [
    'empty' if not length else 'too_large' if length > 20 else length
    for length in lengths
  ]


def small_buffers(monkeypatch):
  for name in ('_BUFFER_BYTES', '_OTHER_FIELDS_BYTES'):
    monkeypatch.setattr(read_json, name, 64 << 10)


@pytest.mark.parametrize('suffix', ['', '.gz', '.zst'])
def test_a_line_too_long_to_hold_is_skipped_and_the_next_is_read(
  tmp_path, monkeypatch, suffix
):
  small_buffers(monkeypatch)
  path = tmp_path / f'a.jsonl{suffix}'
  long = b'{"text": "' + b'long ' * 6_000_000 + b'"}\n'
  formats.write_bytes(path, long + b'{"text": "next"}\n')
  tracemalloc.start()
  first, second = read(path, part_bytes=1 << 30, max_document_chars=1_000)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert (first.kind, second.text) == ('too_large', 'next')
  assert second.name.endswith(f'@{len(long)}')
  assert peak < 2e6 < len(long)


def test_a_document_of_fifty_million_characters_is_read(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'{"text": "' + b'x' * 50_000_000 + b'"}\n')
  (item,) = read(path)
  assert len(item.text) == 50_000_000


@pytest.mark.parametrize('suffix', ['.gz', '.zst'])
@pytest.mark.parametrize('line', [b' ' * 999 + b'\n', b'\0'])
def test_a_decompression_bomb_is_put_down(tmp_path, monkeypatch, suffix, line):
  small_buffers(monkeypatch)
  monkeypatch.setattr(read_json, 'FREE_BYTES', 1 << 20)
  path = tmp_path / f'a.jsonl{suffix}'
  bomb = line * (100_000_000 // len(line))
  formats.write_bytes(path, b'{"text": "before"}\n' + bomb)
  expanded = []
  read_into = read_json._Expanded.readinto

  def count(self, buffer):
    expanded.append(read_into(self, buffer))
    return expanded[-1]

  monkeypatch.setattr(read_json._Expanded, 'readinto', count)
  document, problem = read(path, max_document_chars=1_000)
  assert (document.text, problem.kind) == ('before', 'expands_too_much')
  assert 'more than 200 times its size' in problem.message
  allowed = (1 << 20) + 200 * path.stat().st_size
  assert sum(expanded) <= allowed < len(bomb)


@pytest.mark.parametrize('suffix', ['.gz', '.zst'])
def test_text_that_repeats_itself_is_no_bomb(tmp_path, suffix):
  path = tmp_path / f'a.jsonl{suffix}'
  formats.write_bytes(path, b'{"text": "again"}\n' * 100_000)
  assert len(read(path)) == 100_000


def test_a_file_that_may_not_be_read_is_a_problem(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"text": "x"}')
  (part,) = list_parts(TextSource('jsonl', 0, str(path)), 'web', Path())
  path.unlink()
  (problem,) = read_part(part)
  assert problem.kind == 'unreadable'
  assert f'{path}, byte 0: No such file' in problem.message
