"""Every format: the same documents, from any parts, with any fault counted."""

import contextlib
import json
import pickle
import sys
import tracemalloc
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx_jax.config import ConfigError
from longctx_jax.corpus_config import TextSource
from longctx_jax.data.documents import read_documents, sample_documents
from longctx_jax.data.parts import Document, DocumentError, Problem
from longctx_jax.data.readers import list_parts, read_part
from tests.data import formats

RECORDS = [
  {'text': f'Tale {i} of {"ä long road " * (i % 4 + 1)}', 'title': f't{i}'}
  for i in range(20)
]
TEXTS = [record['text'] for record in RECORDS]


def write_source(kind, root) -> dict:
  """RECORDS in two files of a kind; the fields of its source."""
  halves = RECORDS[:12], RECORDS[12:]
  columns = [
    {key: [record[key] for record in half] for key in RECORDS[0]}
    for half in halves
  ]
  if kind.startswith('jsonl'):
    for name, half in zip('ab', halves, strict=True):
      formats.write_jsonl(root / f'{name}.{kind}', half)
    return {'kind': 'jsonl', 'path': str(root)}
  if kind == 'parquet':
    for name, table in zip('ab', columns, strict=True):
      formats.write_parquet(root / f'{name}.parquet', table)
  elif kind == 'hf_dataset':
    formats.write_hf_dataset(root, columns)
  elif kind == 'array_record':
    for name, half in zip('ab', halves, strict=True):
      lines = [json.dumps(record).encode() for record in half]
      formats.write_array_record(root / f'{name}.array_record', lines)
  else:
    path = formats.write_tfds(root, RECORDS, 'array_record')
    return {'kind': 'tfds', 'path': str(path), 'split': 'train'}
  return {'kind': kind, 'path': str(root)}


FORMATS = [
  *('jsonl', 'jsonl.gz', 'jsonl.zst', 'parquet', 'hf_dataset'),
  *('array_record', 'tfds'),
]


@pytest.fixture(scope='module', params=FORMATS)
def fields(request, tmp_path_factory):
  root = tmp_path_factory.mktemp('source') / request.param
  return write_source(request.param, root)


def items_of(source, part_bytes=1 << 20):
  parts = list_parts(source, 'web', Path(), part_bytes=part_bytes)
  return [item for part in parts for item in read_part(part)]


def test_every_format_gives_the_same_documents(fields):
  items = items_of(TextSource(max_chars=0, **fields))
  assert all(isinstance(item, Document) for item in items)
  texts = [item.text for item in items]
  if fields['kind'] == 'tfds':  # shuffles as it writes
    texts.sort(key=TEXTS.index)
  assert texts == TEXTS
  assert {item.domain for item in items} == {'web'}
  assert len({item.name for item in items}) == len(items)


@settings(deadline=None, max_examples=20)
@given(part_bytes=st.integers(1, 3_000))
def test_any_parts_give_the_same_documents_in_order(fields, part_bytes):
  source = TextSource(max_chars=0, **fields)
  assert items_of(source, part_bytes) == items_of(source)


def test_small_parts_are_many_where_a_file_can_be_cut(fields):
  source = TextSource(max_chars=0, **fields)
  parts = list_parts(source, 'web', Path(), part_bytes=1)
  longest = max(len(list(read_part(part))) for part in parts)
  whole = fields['kind'] == 'hf_dataset' or 'gz' in fields['path']
  whole |= 'zst' in fields['path']
  assert longest == (12 if whole else 3 if fields['kind'] == 'parquet' else 1)


def test_parts_are_read_elsewhere(fields):
  source = TextSource(max_chars=0, **fields)
  for part in list_parts(source, 'web', Path()):
    copy = pickle.loads(pickle.dumps(part))
    assert list(read_part(copy)) == list(read_part(part))


def test_documents_take_the_name_that_a_field_gives_them(fields):
  source = TextSource(max_chars=0, name_field='title', **fields)
  names = [item.name for item in items_of(source)]
  assert sorted(names) == sorted(f'{source.kind}/t{i}' for i in range(20))


def test_a_field_that_is_nowhere_is_refused(fields):
  source = TextSource(max_chars=10**6, text_field='body', **fields)
  with pytest.raises(ConfigError, match="text_field='body': ") as raised:
    read_documents(source, 'web', Path())
  assert '\n' not in str(raised.value)


FAULTS = [
  ({'text': 'ok', 'number': 1}, None),
  ({'text': '', 'number': 2}, 'empty'),
  ({'text': ' \n', 'number': 3}, 'empty'),
  ({'text': 'long ' * 20, 'number': 4}, 'too_large'),
  ({'text': 'ok too', 'number': 5}, None),
]


def write_faults(kind, root):
  if kind.startswith('jsonl'):
    formats.write_jsonl(root / f'a.{kind}', [record for record, _ in FAULTS])
    return {'kind': 'jsonl', 'path': str(root)}
  columns = {key: [r[key] for r, _ in FAULTS] for key in ('text', 'number')}
  if kind == 'parquet':
    formats.write_parquet(root / 'a.parquet', columns)
  elif kind == 'hf_dataset':
    formats.write_hf_dataset(root, [columns])
  elif kind == 'array_record':
    lines = [json.dumps(record).encode() for record, _ in FAULTS]
    formats.write_array_record(root / 'a.array_record', lines)
  else:
    path = formats.write_tfds(root, [r for r, _ in FAULTS], 'array_record')
    return {'kind': 'tfds', 'path': str(path), 'split': 'train'}
  return {'kind': kind, 'path': str(root)}


@pytest.mark.parametrize('kind', FORMATS)
def test_every_record_is_a_document_or_one_problem(kind, tmp_path):
  fields = write_faults(kind, tmp_path / 'a')
  fields |= {'max_document_chars': 50, 'max_chars': 10**6}
  items = items_of(TextSource(name_field='number', **fields))
  found = sorted(
    item.kind if isinstance(item, Problem) else item.name for item in items
  )
  wanted = [kind or f'{fields["kind"]}/{r["number"]}' for r, kind in FAULTS]
  assert found == sorted(wanted)
  # Their names tell them apart.
  assert len({item.name for item in items}) == len(items)
  _, counts = sample_documents(TextSource(**fields), 'web', Path())
  assert counts.dropped() == {'too_short': 2, 'empty': 2, 'too_large': 1}
  assert counts.documents['seen'] == 5


@pytest.mark.parametrize('kind', FORMATS)
def test_a_problem_stops_where_the_config_says_so(kind, tmp_path):
  fields = write_faults(kind, tmp_path / 'a')
  source = TextSource(
    max_chars=10**6, on_problem='stop', max_document_chars=50, **fields
  )
  with pytest.raises(DocumentError) as raised:
    read_documents(source, 'web', Path())
  message = str(raised.value)
  assert str(tmp_path) in message
  if kind != 'tfds':  # shuffles as it writes
    number = 2 if kind.startswith('jsonl') else 1
    assert f' {number}: it has no text (empty; on_problem=' in message
  assert '\n' not in message


DAMAGED = ['jsonl.gz', 'jsonl.zst', 'parquet', 'hf_dataset', 'array_record']


@pytest.mark.parametrize('kind', DAMAGED)
@pytest.mark.parametrize('how', ['cut', 'rubbish', 'nothing'])
def test_a_damaged_file_is_a_problem_and_the_others_are_read(
  kind, how, tmp_path
):
  fields = write_source(kind, tmp_path / 'a')
  first, *_ = sorted(
    path for path in (tmp_path / 'a').iterdir() if path.suffix != '.json'
  )
  content = first.read_bytes()
  half = content[: len(content) // 2]
  first.write_bytes({'cut': half, 'rubbish': b'x' * 99, 'nothing': b''}[how])
  source = TextSource(max_chars=0, **fields)
  items = items_of(source)
  problems = [item for item in items if isinstance(item, Problem)]
  assert [problem.kind for problem in problems] == ['damaged']
  assert str(first) in problems[0].message
  assert '\n' not in problems[0].message
  # A reason, and one full stop behind it.
  assert ': . ' not in problems[0].message
  assert '..' not in problems[0].message
  texts = [item.text for item in items if isinstance(item, Document)]
  # Nothing twice, nothing out of order, and all of the other file.
  assert texts[-8:] == TEXTS[12:]
  assert texts[:-8] == TEXTS[: len(texts) - 8]
  with pytest.raises(DocumentError, match='damaged; on_problem='):
    items_of(TextSource(max_chars=0, on_problem='stop', **fields))


@contextlib.contextmanager
def memory():
  """Yields a function that gives the peak of Python's and Arrow's memory."""
  usual = pyarrow.default_memory_pool()
  counted = pyarrow.proxy_memory_pool(usual)
  pyarrow.set_memory_pool(counted)
  tracemalloc.start()
  try:
    yield lambda: tracemalloc.get_traced_memory()[1] + counted.max_memory()
  finally:
    tracemalloc.stop()
    pyarrow.set_memory_pool(usual)


@pytest.mark.parametrize(
  'kind', ['jsonl', 'jsonl.gz', 'jsonl.zst', 'parquet', 'array_record']
)
def test_a_large_file_is_never_held_as_a_whole(kind, tmp_path):
  text = 'A line of some text that goes on and on.\n' * 500
  records = [{'text': f'{i} {text}'} for i in range(2_000)]
  path = tmp_path / f'a.{kind}'
  if kind == 'parquet':
    table = {'text': [record['text'] for record in records]}
    formats.write_parquet(path, table, group_rows=2_000)
  elif kind == 'array_record':
    lines = [json.dumps(record).encode() for record in records]
    formats.write_array_record(path, lines)
  else:
    formats.write_jsonl(path, records)
  num_chars = sum(len(record['text']) for record in records)
  assert num_chars > 40e6
  del records
  source = TextSource(kind.split('.')[0], 0, str(path))
  with memory() as peak:
    for part in list_parts(source, 'web', Path()):
      for item in read_part(part):
        num_chars -= len(item.text)
    assert peak() < 8e6
  assert num_chars == 0


@pytest.mark.parametrize(
  ('kind', 'module'),
  [
    ('jsonl.zst', formats.zstd.__name__),
    ('parquet', 'pyarrow'),
    ('hf_dataset', 'pyarrow'),
    ('tfds', 'tensorflow_datasets'),
  ],
)
def test_a_package_that_is_not_installed_is_named(
  kind, module, tmp_path, monkeypatch
):
  fields = write_source(kind, tmp_path / 'a')
  monkeypatch.setitem(sys.modules, module, None)
  message = rf"kind='{fields['kind']}' needs {module} .*longctx_jax\[formats\]"
  with pytest.raises(ConfigError, match=message):
    items_of(TextSource(max_chars=0, **fields))
