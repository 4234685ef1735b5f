"""Parquet and Arrow: columns, their types, and how datasets lie on disk."""

import datetime
import json
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from longctx_jax.config import ConfigError
from longctx_jax.corpus_config import TextSource
from longctx_jax.data import read_tables
from longctx_jax.data.parts import Problem
from longctx_jax.data.readers import list_parts, read_part
from tests.data import formats


def read(kind, path, part_bytes=1 << 20, **fields):
  source = TextSource(kind, 0, str(path), **fields)
  parts = list_parts(source, 'web', Path(), part_bytes=part_bytes)
  return [item for part in parts for item in read_part(part)]


def outcomes(items):
  return [
    item.kind if isinstance(item, Problem) else item.text for item in items
  ]


@pytest.mark.parametrize('kind', ['parquet', 'hf_dataset'])
@pytest.mark.parametrize(
  'type_',
  [
    pyarrow.string(),
    pyarrow.large_string(),
    pyarrow.binary(),
    pyarrow.large_binary(),
    pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
  ],
)
def test_text_columns_of_any_type_are_read(tmp_path, kind, type_):
  texts = ['one', None, 'ä two', 'one']
  table = {'text': pyarrow.array(texts).cast(type_)}
  if kind == 'parquet':
    formats.write_parquet(tmp_path / 'a.parquet', table)
  else:
    formats.write_hf_dataset(tmp_path / 'a', [table])
    tmp_path = tmp_path / 'a'
  items = read(kind, tmp_path)
  assert outcomes(items) == ['one', 'no_text_field', 'ä two', 'one']


@pytest.mark.parametrize('kind', ['parquet', 'hf_dataset'])
def test_bytes_that_are_not_utf8_are_one_problem(tmp_path, kind):
  # Arrow takes the word of whoever wrote the file for a column's encoding.
  good_bad = pyarrow.array([b'good', b'caf\xe9', b'good'])
  column = pyarrow.StringArray.from_buffers(3, *good_bad.buffers()[1:])
  if kind == 'parquet':
    formats.write_parquet(tmp_path / 'a.parquet', {'text': column})
  else:
    formats.write_hf_dataset(tmp_path / 'a', [{'text': column}])
    tmp_path = tmp_path / 'a'
  items = read(kind, tmp_path)
  assert outcomes(items) == ['good', 'bad_utf8', 'good']
  assert ', row 1: byte 3 of it is not UTF-8' in items[1].message
  replaced = outcomes(read(kind, tmp_path, errors='replace'))
  assert replaced == ['good', 'caf\ufffd', 'good']


def peak_bytes(read):
  """(what it returns, Arrow's and Python's memory at its highest)."""
  pool = pyarrow.system_memory_pool()
  default, _ = pyarrow.default_memory_pool(), pyarrow.set_memory_pool(pool)
  before = pool.bytes_allocated()
  tracemalloc.start()
  try:
    found = read()
    _, peak = tracemalloc.get_traced_memory()
    return found, peak + pool.max_memory() - before
  finally:
    tracemalloc.stop()
    pyarrow.set_memory_pool(default)


def write_bomb(path, *, shared):
  """64 rows of 1 MB: one text that all share, or texts that compress well."""
  texts = ['x' * 1_000_000] if shared else ['x' * 1_000_000 for _ in range(64)]
  column = pyarrow.array(texts)
  if shared:
    places = pyarrow.array([0] * 64, pyarrow.int32())
    column = pyarrow.DictionaryArray.from_arrays(places, column)
  pyarrow.parquet.write_table(
    pyarrow.table({'text': column}),
    path,
    compression='zstd',
    use_dictionary=shared,
    store_schema=False,
  )
  assert path.stat().st_size < 50_000
  return 1_000_000 * 64


def test_a_text_that_rows_share_is_in_few_rows_at_a_time(tmp_path, monkeypatch):
  monkeypatch.setattr(read_tables, '_BATCH_BYTES', 2_000_000)
  held = write_bomb(tmp_path / 'a.parquet', shared=True)
  source = TextSource('parquet', 0, str(tmp_path))
  (part,) = list_parts(source, 'web', Path())
  num_read, peak = peak_bytes(lambda: sum(1 for _ in read_part(part)))
  assert num_read == 64
  assert peak < held // 4


@pytest.mark.parametrize('shared', [True, False])
def test_a_decompression_bomb_is_put_down(tmp_path, monkeypatch, shared):
  monkeypatch.setattr(read_tables, 'FREE_BYTES', 5_000_000)
  monkeypatch.setattr(read_tables, 'MAX_EXPANSION', 20)
  write_bomb(tmp_path / 'a.parquet', shared=shared)
  items = read('parquet', tmp_path)
  # What is shared expands when it is read, else the file says so before.
  assert [len(kind) == 1_000_000 for kind in outcomes(items[:-1])] == (
    [True] * (5 if shared else 0)
  )
  assert items[-1].kind == 'expands_too_much'
  assert f'a.parquet, row {5 * shared}: up to here' in items[-1].message
  # As long as others of its size may be.
  monkeypatch.setattr(read_tables, 'MAX_EXPANSION', 10**6)
  assert len(read('parquet', tmp_path)) == 64


def test_rows_have_the_same_names_in_small_parts_of_several_groups(tmp_path):
  texts = [f'text {i}' for i in range(10)]
  formats.write_parquet(tmp_path / 'a.parquet', {'text': texts}, group_rows=3)
  items = read('parquet', tmp_path, part_bytes=1)
  assert [item.name for item in items] == [
    f'parquet/a.parquet@{i}' for i in range(10)
  ]
  assert outcomes(items) == texts
  source = TextSource('parquet', 0, str(tmp_path))
  parts = list_parts(source, 'web', Path(), part_bytes=1)
  assert [(part.start, part.stop) for part in parts] == [
    *((0, 1), (1, 2), (2, 3), (3, 4)),
  ]


@pytest.mark.parametrize('kind', ['parquet', 'hf_dataset'])
@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'text_field': 'body'}, r"text_field='body': .* has no such column; it h"),
    ({'name_field': 'id'}, r"name_field='id': .* it has text, when"),
    ({'text_field': 'when'}, r"='when': this column of .* is date32\[day\]"),
  ],
)
def test_columns_are_checked_before_anything_is_read(
  tmp_path, kind, fields, message
):
  table = {'text': ['x'], 'when': [datetime.date(2024, 6, 3)]}
  if kind == 'parquet':
    formats.write_parquet(tmp_path / 'a.parquet', table)
  else:
    formats.write_hf_dataset(tmp_path / 'a', [table])
    tmp_path = tmp_path / 'a'
  source = TextSource(kind, 0, str(tmp_path), **fields)
  with pytest.raises(ConfigError, match=message):
    list_parts(source, 'web', Path())


@pytest.mark.parametrize('compression', ['none', 'snappy'])
@pytest.mark.parametrize('dictionary', [True, False])
def test_a_flipped_bit_of_a_page_with_a_checksum_gives_no_other_text(
  tmp_path, compression, dictionary
):
  path = tmp_path / 'a.parquet'
  texts = [f'text {i} ' + 'of some words ' * 5 for i in range(20)]
  pyarrow.parquet.write_table(
    pyarrow.table({'text': texts}),
    path,
    compression=compression,
    use_dictionary=dictionary,
    write_page_checksum=True,
  )
  whole = path.read_bytes()
  with pyarrow.parquet.ParquetFile(path) as file:
    column = file.metadata.row_group(0).column(0)
  size = column.total_compressed_size
  num_found = 0
  for place in range(4, 4 + size, 7):
    flipped = bytearray(whole)
    flipped[place] ^= 1 << place % 8
    path.write_bytes(flipped)
    *before, last = outcomes(read('parquet', path))
    num_found += last == 'damaged'
    assert [*before, last] == texts or (
      last == 'damaged' and before == texts[: len(before)]
    )
  assert num_found > size // 7 // 2  # the others are in headers


def test_names_that_are_no_names_are_problems(tmp_path):
  table = {'text': ['x', 'y', 'z'], 'id': [1, None, 3]}
  formats.write_parquet(tmp_path / 'a.parquet', table)
  names = [item.name for item in read('parquet', tmp_path, name_field='id')]
  assert names == ['parquet/1', 'parquet/a.parquet@1', 'parquet/3']


def make_dataset_dict(root):
  for split, text in (('train', 'to train on'), ('test', 'to test on')):
    formats.write_hf_dataset(root / split, [{'text': [text]}])
  (root / 'dataset_dict.json').write_text('{"splits": ["train", "test"]}')


def test_one_split_of_a_dataset_dict_is_read(tmp_path):
  make_dataset_dict(tmp_path)
  (item,) = read('hf_dataset', tmp_path, split='test')
  assert item.text == 'to test on'
  assert item.name == 'hf_dataset/test/data-00000-of-00001.arrow@0'
  for split in ('', 'validation'):
    with pytest.raises(ConfigError, match=f"split='{split}': .* train, test$"):
      read('hf_dataset', tmp_path, split=split)
  with pytest.raises(ConfigError, match=r"split='test': .* has no splits"):
    read('hf_dataset', tmp_path / 'train', split='test')


def test_files_are_read_in_the_order_of_rows_and_others_are_not(tmp_path):
  tables = [{'text': [f'text {i}']} for i in range(3)]
  formats.write_hf_dataset(tmp_path / 'a', tables)
  state = json.loads((tmp_path / 'a' / 'state.json').read_text())
  state['_data_files'] = state['_data_files'][::-2]
  (tmp_path / 'a' / 'state.json').write_text(json.dumps(state))
  items = read('hf_dataset', tmp_path / 'a')
  assert outcomes(items) == ['text 2', 'text 0']


def test_a_selection_beside_the_data_is_refused(tmp_path):
  formats.write_hf_dataset(tmp_path / 'a', [{'text': ['x']}])
  state = json.loads((tmp_path / 'a' / 'state.json').read_text())
  state['_indices_data_files'] = [{'filename': 'indices.arrow'}]
  (tmp_path / 'a' / 'state.json').write_text(json.dumps(state))
  with pytest.raises(ConfigError, match=r'dataset\.flatten_indices'):
    read('hf_dataset', tmp_path / 'a')


def test_arrow_files_without_a_dataset_are_read_streams_or_not(tmp_path):
  table = pyarrow.table({'text': [f'text {i}' for i in range(200)]})
  with pyarrow.ipc.new_stream(tmp_path / 'a.arrow', table.schema) as stream:
    stream.write_table(table.slice(0, 150))
  with pyarrow.ipc.new_file(tmp_path / 'b.arrow', table.schema) as file:
    file.write_table(table.slice(150), max_chunksize=20)
  items = read('hf_dataset', tmp_path / '*.arrow')
  assert outcomes(items) == table['text'].to_pylist()
  assert items[149].name == 'hf_dataset/a.arrow@149'
  assert items[199].name == 'hf_dataset/b.arrow@49'


@pytest.mark.parametrize('content', ['[', '{}', '{"splits": 1}'])
def test_rubbish_in_place_of_a_dataset_is_named(tmp_path, content):
  (tmp_path / 'state.json').write_text(content)
  with pytest.raises(ConfigError, match=r'state.json is not what save_to_disk'):
    read('hf_dataset', tmp_path)
