"""Folders of safetensors: against the library, in parts, and damaged."""

import json
import weakref

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from longctx_jax.weights.safetensors_files import (
  SafetensorsFolder,
  TensorSpec,
  write_safetensors,
)
from longctx_jax.weights.tensor_table import WeightsError

RNG = np.random.default_rng(0)
TENSORS = {
  'b': RNG.normal(size=(4, 6)).astype(np.float32),
  'a': RNG.normal(size=(5,)).astype(np.float16),
  'c': RNG.normal(size=(3, 2)).astype(ml_dtypes.bfloat16),
}
INDEX = 'model.safetensors.index.json'


def specs():
  return [TensorSpec(n, x.shape, x.dtype) for n, x in TENSORS.items()]


def test_the_library_reads_what_is_written(tmp_path):
  write_safetensors(tmp_path, specs(), TENSORS.__getitem__)
  found = load_file(tmp_path / 'model.safetensors')
  assert {n: x.dtype for n, x in found.items()} == {
    n: x.dtype for n, x in TENSORS.items()
  }
  for name, x in TENSORS.items():
    np.testing.assert_array_equal(found[name], x)


def test_what_the_library_writes_is_read_whole_and_in_parts(tmp_path):
  save_file(TENSORS, tmp_path / 'model.safetensors')
  folder = SafetensorsFolder(tmp_path)
  assert folder.shapes == {n: x.shape for n, x in TENSORS.items()}
  assert folder.dtypes == {n: x.dtype for n, x in TENSORS.items()}
  for name, x in TENSORS.items():
    np.testing.assert_array_equal(folder.read(name), x)
  part = slice(1, 3), slice(2, 6)
  np.testing.assert_array_equal(folder.read('b', part), TENSORS['b'][part])


@pytest.mark.parametrize('max_bytes', [1, 12, 100, 107, 1000])
def test_parts_are_no_larger_than_asked_and_hold_everything_once(
  tmp_path, max_bytes
):
  write_safetensors(
    tmp_path, specs(), TENSORS.__getitem__, max_part_bytes=max_bytes
  )
  parts = [load_file(path) for path in sorted(tmp_path.glob('*.safetensors'))]
  for part in parts:
    assert len(part) == 1 or sum(x.nbytes for x in part.values()) <= max_bytes
  assert sorted(n for part in parts for n in part) == sorted(TENSORS)
  folder = SafetensorsFolder(tmp_path)
  for name, x in TENSORS.items():
    np.testing.assert_array_equal(folder.read(name), x)
  if len(parts) > 1:
    index = json.loads((tmp_path / INDEX).read_text())
    assert index['metadata']['total_size'] == sum(
      x.nbytes for x in TENSORS.values()
    )


def test_parts_are_filled_before_another_is_begun(tmp_path):
  same = [TensorSpec(n, (4,), np.dtype(np.float32)) for n in 'abcde']
  x = np.zeros(4, np.float32)
  write_safetensors(tmp_path, same, lambda _: x, max_part_bytes=32)
  parts = sorted(tmp_path.glob('*.safetensors'))
  assert [list(load_file(path)) for path in parts] == [
    ['a', 'b'],
    ['c', 'd'],
    ['e'],
  ]


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
  made = []

  def read(name):
    assert [x for x in made if x() is not None] == []
    x = TENSORS[name].copy()
    made.append(weakref.ref(x))
    return x

  write_safetensors(tmp_path, specs(), read)
  assert len(made) == len(TENSORS)


def in_parts(folder):
  write_safetensors(folder, specs(), TENSORS.__getitem__, max_part_bytes=12)
  return sorted(folder.glob('*.safetensors'))


def change_index(change):
  def damage(folder):
    in_parts(folder)
    index = json.loads((folder / INDEX).read_text())
    change(index['weight_map'])
    (folder / INDEX).write_text(json.dumps(index))

  return damage


def cut(size):
  def damage(folder):
    save_file(TENSORS, folder / 'model.safetensors')
    path = folder / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:size])

  return damage


def lying_header(length):
  def damage(folder):
    save_file(TENSORS, folder / 'model.safetensors')
    path = folder / 'model.safetensors'
    path.write_bytes(length.to_bytes(8, 'little') + path.read_bytes()[8:])

  return damage


def lying_shape(folder):
  save_file(TENSORS, folder / 'model.safetensors')
  path = folder / 'model.safetensors'
  path.write_bytes(path.read_bytes().replace(b'[4,6]', b'[9,6]'))


def pickled(folder):
  (folder / 'pytorch_model.bin').write_bytes(b'')


def other_type(folder):
  save_file({'x': np.arange(3)}, folder / 'model.safetensors')


def twice(folder):
  parts = in_parts(folder)
  parts[1].write_bytes(parts[0].read_bytes())


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda folder: None, 'holds no model.safetensors'),
    (pickled, r'pytorch_model\.bin would have to be unpickled'),
    (cut(-1), r'model\.safetensors: not a whole safetensors file'),
    (cut(20), 'not a whole safetensors file'),
    (cut(0), 'not a whole safetensors file'),
    (lying_header(2**62), 'not a whole safetensors file'),
    (lying_header(40), 'not a whole safetensors file'),
    (lying_shape, 'not a whole safetensors file'),
    (other_type, 'x is of type I64, and can be F32, F16, BF16'),
    (twice, 'is in model-00001-of-00003.safetensors too'),
    (
      lambda folder: in_parts(folder)[1].unlink(),
      'names model-00002-of-00003.safetensors, which is missing',
    ),
    (
      change_index(lambda m: m.update(a='a' * 300)),
      r'safetensors\.index\.json names a{57}\.\.\., which is missing$',
    ),
    (
      change_index(lambda m: m.update(a='a\0b')),
      r'safetensors\.index\.json names a\x00b, which is missing$',
    ),
    (
      change_index(lambda m: m.update(a='../a.safetensors')),
      r'names \.\./a\.safetensors, outside its folder',
    ),
    (
      change_index(lambda m: m.update(a='/etc/passwd')),
      'names /etc/passwd, outside its folder',
    ),
    (
      change_index(lambda m: m.update(a=m['b'])),
      'the tensor a is not in model-00001-of-00003.safetensors',
    ),
    (
      change_index(lambda m: m.update(a=m['b'], b=m['a'])),
      'is not in model-0000',
    ),
    (
      change_index(lambda m: m.update(z=m['b'])),
      'the tensor z is not in',
    ),
    (change_index(lambda m: m.clear()), 'not an index of safetensors'),
  ],
)
def test_damage_is_named_with_its_file(tmp_path, damage, message):
  damage(tmp_path)
  with pytest.raises(WeightsError, match=message):
    SafetensorsFolder(tmp_path)
