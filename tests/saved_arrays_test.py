"""Arrays of a checkpoint in blocks: the bits saved, or an error that names it.

Both for checkpoints as they are written and for those of before, whose arrays
are one chunk a device.
"""

import re
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from longctx_jax.checkpoint import CheckpointError, Checkpoints, newest_meta
from longctx_jax.checksums import checksums
from longctx_jax.data.pipeline import DataState
from longctx_jax.saved_arrays import SavedArray

SHAPE = 6, 64, 96
GATE = 'params', 'blocks', 'gate'
SPLITS = None, P(None, 'fsdp'), P(None, None, 'fsdp')


class State(NamedTuple):
  params: Any


def save(directory, state):
  checkpoints = Checkpoints(directory, keep=1)
  checkpoints.save(
    state,
    DataState(1, seed=0, fingerprint=''),
    config_json='{}',
    tokenizer_fingerprint='tok',
    clock={},
  )
  checkpoints.close()


def save_in_one_chunk(directory, state):
  state = state._asdict()
  meta = {
    'data': DataState(1, seed=0, fingerprint='')._asdict(),
    'tokenizer': 'tok',
    'checksums': checksums(state),
  }
  args = ocp.args.Composite(
    state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
  )
  with ocp.CheckpointManager(directory) as manager:
    manager.save(1, args=args)


WAYS = [save, save_in_one_chunk]


def made(rng, dtype='float32', split=None):
  gate = rng.standard_normal(SHAPE).astype(np.dtype(jax.numpy.dtype(dtype)))
  bias = rng.standard_normal(SHAPE[1]).astype(np.float32)
  mesh = jax.make_mesh((8 if split else 1,), ('fsdp',), (AxisType.Auto,))
  specs = {'blocks': {'gate': split or P()}, 'bias': P()}
  return State(
    jax.tree.map(
      lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)),
      {'blocks': {'gate': gate}, 'bias': bias},
      specs,
    )
  )


def opened(directory, path=GATE, shape=SHAPE, in_layers=True):
  where, meta = newest_meta(directory, tokenizer_fingerprint='tok')
  return SavedArray(where, meta, path, shape, in_layers=in_layers)


def layer(array, i):
  return array.block(i // array.block_len)[i % array.block_len]


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('save', WAYS)
def test_layers_have_the_bits_that_were_saved_in_any_order(
  tmp_path, rng, save, dtype, split
):
  state = made(rng, dtype, split)
  save(tmp_path, state)
  array = opened(tmp_path)
  gate = np.asarray(state.params['blocks']['gate'])
  for i in (3, 0, 5, 1, 2, 4, 3):
    found = layer(array, i)
    assert found.dtype == gate.dtype
    np.testing.assert_array_equal(found, gate[i])
  whole = opened(tmp_path, ('params', 'bias'), SHAPE[1:2], in_layers=False)
  np.testing.assert_array_equal(whole.block(0), state.params['bias'])


@pytest.mark.parametrize('save', WAYS)
@pytest.mark.parametrize('split', SPLITS)
def test_training_resumes_from_it(tmp_path, rng, save, split):
  state = made(rng)
  save(tmp_path, state)
  found, *_ = Checkpoints(tmp_path, keep=1).restore_latest(
    made(np.random.default_rng(1), split=split)
  )
  jax.tree.map(np.testing.assert_array_equal, found, state)


def bytes_read():
  (metric,) = ts.experimental_collect_matching_metrics(
    '/tensorstore/kvstore/file/bytes_read', include_zero_metrics=True
  )
  return sum(value['value'] for value in metric['values'])


@pytest.mark.parametrize('split', SPLITS)
def test_a_layer_is_read_without_the_others(tmp_path, rng, split):
  def cost(save):
    save(tmp_path / save.__name__, made(rng, split=split))
    array = opened(tmp_path / save.__name__)
    layer(array, 0)
    before = bytes_read()
    layer(array, 4)
    return (bytes_read() - before) / (4 * np.prod(SHAPE))

  # Random float32 pack to nine tenths; which chunk is where is read beside it.
  assert cost(save) < 1.5 / SHAPE[0]
  assert cost(save_in_one_chunk) > 0.8


def writable(directory):
  return ts.open(
    {
      'driver': 'zarr',
      'kvstore': {
        'driver': 'ocdbt',
        'base': {'driver': 'file', 'path': f'{directory}/1/state/'},
        'path': 'params.blocks.gate/',
      },
    },
    open=True,
  ).result()


def flip_a_bit(directory, i):
  """In layer i; what unpacks the chunks it lies in finds nothing wrong."""
  store = writable(directory)
  x = store[i].read().result()
  x.view(np.uint32)[7, 5] ^= 1 << 12
  store[i].write(x).result()


DAMAGED = (
  r'1: params\.blocks\.gate is damaged: its bits differ from those saved'
)


@pytest.mark.parametrize('i', range(SHAPE[0]))
@pytest.mark.parametrize('save', WAYS)
def test_nothing_is_handed_out_of_an_array_with_a_flipped_bit(
  tmp_path, rng, save, i
):
  save(tmp_path, made(rng))
  flip_a_bit(tmp_path, i)
  array = opened(tmp_path)
  for k in (0, SHAPE[0] // array.block_len - 1):
    with pytest.raises(CheckpointError, match=DAMAGED):
      array.block(k)
  np.testing.assert_array_equal(
    opened(tmp_path, ('params', 'bias'), SHAPE[1:2], in_layers=False).block(0),
    made(np.random.default_rng(0)).params['bias'],
  )


def test_a_layer_that_differs_when_it_is_read_again_is_refused(tmp_path, rng):
  save(tmp_path, made(rng))
  array = opened(tmp_path)
  before = array.block(2)
  flip_a_bit(tmp_path, 4)
  np.testing.assert_array_equal(array.block(2), before)
  with pytest.raises(CheckpointError, match=DAMAGED):
    array.block(4)


def test_a_chunk_that_is_gone_is_not_read_as_zeros(tmp_path, rng):
  save(tmp_path, made(rng))
  store = writable(tmp_path)
  assert b'4.0.0' in store.kvstore.list().result()
  store.kvstore.write(b'4.0.0', None).result()
  with pytest.raises(
    CheckpointError, match=r'cannot read .*1: params\.blocks\.gate: .*4\.0\.0'
  ):
    opened(tmp_path).block(0)


def test_another_shape_or_no_such_array_is_named(tmp_path, rng):
  save(tmp_path, made(rng))
  match = re.escape('gate has the shape (6, 64, 96), by config.json it should')
  with pytest.raises(CheckpointError, match=match):
    opened(tmp_path, shape=(7, 64, 96))
  with pytest.raises(
    CheckpointError,
    match=r'cannot read .*1: params\.blocks\.up: .* does not exist$',
  ):
    opened(tmp_path, ('params', 'blocks', 'up'))
  with pytest.raises(CheckpointError, match='trained with tokenizer tok'):
    newest_meta(tmp_path, tokenizer_fingerprint='other')
