"""ArrayRecord and TFDS: records that are damaged, and what is refused."""

from pathlib import Path

import pytest

from longctx_jax.config import ConfigError
from longctx_jax.corpus_config import TextSource
from longctx_jax.data.parts import Problem
from longctx_jax.data.readers import list_parts, read_part
from tests.data import formats


def read(kind, path, part_bytes=1 << 20, **fields):
  source = TextSource(kind, 0, str(path), **fields)
  parts = list_parts(source, 'web', Path(), part_bytes=part_bytes)
  return [item for part in parts for item in read_part(part)]


def test_bare_records_are_texts(tmp_path):
  path = tmp_path / 'a.array_record'
  formats.write_array_record(path, ['ä'.encode(), b'caf\xe9', b'{"a": 1}'])
  one, two, three = read('array_record', path, text_field='')
  assert (one.text, two.kind, three.text) == ('ä', 'bad_utf8', '{"a": 1}')
  assert one.name == 'array_record/a.array_record@0'
  kinds = [item.kind for item in read('array_record', path)]
  assert kinds == ['bad_json', 'bad_utf8', 'no_text_field']


@pytest.mark.parametrize('part_bytes', [1 << 20, 30_000])
def test_a_damaged_record_is_one_problem_and_the_others_are_read(
  tmp_path, rng, part_bytes
):
  texts = [rng.bytes(2_500).hex() for _ in range(100)]
  path = tmp_path / 'a.array_record'
  formats.write_array_record(path, [text.encode() for text in texts])
  content = bytearray(path.read_bytes())
  content[200_000:200_040] = bytes(40)
  path.write_bytes(content)
  items = read('array_record', path, part_bytes, text_field='')
  damaged = [i for i, item in enumerate(items) if isinstance(item, Problem)]
  assert len(damaged) == 1
  assert items[damaged[0]].kind == 'damaged'
  assert f'{path}, record {damaged[0]}: Corrupted' in items[damaged[0]].message
  del texts[damaged[0]], items[damaged[0]]
  assert [item.text for item in items] == texts


def test_a_file_without_records_has_no_documents(tmp_path):
  formats.write_array_record(tmp_path / 'a.array_record', [])
  assert read('array_record', tmp_path) == []


@pytest.fixture(scope='module')
def tale(tmp_path_factory):
  records = [{'text': f'text {i}', 'number': i} for i in range(10)]
  root = tmp_path_factory.mktemp('tfds')
  return formats.write_tfds(root, records, 'array_record')


def test_a_slice_of_a_split_is_read(tale):
  fields = {'name_field': 'number', 'split': 'train[:40%]'}
  items = read('tfds', tale, **fields)
  assert len(items) == 4
  for item in items:
    assert item.name == f'tfds/{item.text.removeprefix("text ")}'
  fields['split'] = 'train'
  assert {item.name for item in items} < {
    item.name for item in read('tfds', tale, **fields)
  }


def test_records_are_named_by_split_and_number(tale):
  names = [item.name for item in read('tfds', tale, split='train')]
  assert names == [f'tfds/train@{i}' for i in range(10)]


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'split': ''}, "split='': .* has train, and slices"),
    ({'split': 'test'}, "split='test': .* has train, and slices"),
    ({'split': 'train', 'text_field': 'body'}, 'no such feature; it has numb'),
    ({'split': 'train', 'name_field': 'id'}, "name_field='id': .* has number"),
  ],
)
def test_what_a_data_set_lacks_is_named(tale, fields, message):
  with pytest.raises(ConfigError, match=message) as raised:
    read('tfds', tale, **fields)
  assert '\n' not in str(raised.value)


def test_a_directory_without_a_data_set_is_named(tale):
  with pytest.raises(ConfigError, match='holds no prepared TFDS data set'):
    read('tfds', tale.parent, split='train')


def test_damaged_examples_are_problems(tmp_path):
  records = [{'text': f'text {i}'} for i in range(3)]
  path = formats.write_tfds(tmp_path, records, 'array_record')
  (file,) = path.glob('*.array_record-*')
  content = file.read_bytes()
  formats.write_array_record(file, [b'\xff\xff', b'\xff', b'\xff'])
  kinds = [item.kind for item in read('tfds', path, split='train')]
  assert kinds == ['damaged'] * 3
  file.write_bytes(content[:99])
  items = read('tfds', path, split='train')
  assert [item.kind for item in items] == ['damaged'] * 3
  assert items[0].name == 'tfds/train@0'
