"""Checkpoints: whole, verified, and the last good one when one is damaged."""

import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from longctx_jax.checkpoint import (
  CheckpointError,
  Checkpoints,
  OtherDtypeError,
  restore_state,
)
from longctx_jax.data.pipeline import DataState


class State(NamedTuple):
  step: Any
  params: Any
  opt_state: Any


def state_at(step):
  values = jnp.arange(4096, dtype=jnp.float32).reshape(64, 64) + step
  return State(
    jnp.int32(step), {'w': values}, {'mu': values.astype('bfloat16')}
  )


def save_all(directory, *states):
  checkpoints = Checkpoints(directory, keep=2)
  for state in states:
    step = int(state.step)
    checkpoints.save(
      state,
      DataState(step, seed=0, fingerprint='abc'),
      config_json='{}',
      tokenizer_fingerprint='tok',
      clock={'step': 1.5 * step},
    )
  checkpoints.close()


@pytest.fixture
def saved(tmp_path):
  """A directory with the states of steps 1 and 2."""
  save_all(tmp_path / 'checkpoints', state_at(1), state_at(2))
  return tmp_path / 'checkpoints'


def largest_file(directory):
  files = [path for path in directory.rglob('*') if path.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


def flip_a_bit(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 0x10
  path.write_bytes(content)


def truncate(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_restored_state_has_the_saved_bits(saved):
  state, data, clock = Checkpoints(saved, keep=2).restore_latest(state_at(0))
  np.testing.assert_array_equal(state.params['w'], state_at(2).params['w'])
  np.testing.assert_array_equal(
    state.opt_state['mu'], state_at(2).opt_state['mu']
  )
  assert state.opt_state['mu'].dtype == jnp.bfloat16
  assert data == DataState(2, 0, 'abc')
  assert clock == {'step': 3.0}


@pytest.mark.parametrize(
  ('before', 'now'),
  [
    (P('fsdp'), P(('fsdp', 'context'))),
    (P(('fsdp', 'context')), P('fsdp')),
  ],
)
def test_a_checkpoint_restores_where_its_arrays_are_split_otherwise(
  tmp_path, before, now
):
  mesh = jax.make_mesh((2, 4), ('fsdp', 'context'), (AxisType.Auto,) * 2)

  def place(spec, step):
    specs = State(P(), spec, spec)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    return jax.device_put(state_at(step), shardings)

  save_all(tmp_path, place(before, 1))
  state, *_ = Checkpoints(tmp_path, keep=2).restore_latest(place(now, 0))
  assert state.params['w'].sharding.spec == now
  np.testing.assert_array_equal(state.params['w'], state_at(1).params['w'])


def test_no_checkpoint_restores_nothing(tmp_path):
  assert Checkpoints(tmp_path, keep=2).restore_latest(state_at(0)) is None


@pytest.mark.parametrize('damage', [flip_a_bit, truncate, lambda p: p.unlink()])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(
  saved, damage, caplog
):
  damage(largest_file(saved / '2'))
  checkpoints = Checkpoints(saved, keep=2)
  with caplog.at_level(logging.WARNING):
    state, data, _ = checkpoints.restore_latest(state_at(0))
  assert data.step == 1
  np.testing.assert_array_equal(state.params['w'], state_at(1).params['w'])
  assert 'is damaged' in caplog.text
  # The step can be saved again, and what was damaged is still there to see.
  checkpoints.save(
    state_at(2),
    data._replace(step=2),
    config_json='{}',
    tokenizer_fingerprint='tok',
    clock={'step': 3.0},
  )
  checkpoints.wait()
  assert checkpoints.steps() == [1, 2]
  assert (saved / 'damaged_2').is_dir()


def test_only_so_many_checkpoints_are_kept(tmp_path):
  checkpoints = Checkpoints(tmp_path, keep=2)
  for step in (1, 2, 3):
    checkpoints.save(
      state_at(step),
      DataState(step, 0, 'abc'),
      config_json='{}',
      tokenizer_fingerprint='tok',
      clock={'step': 0.0},
    )
  checkpoints.wait()
  assert checkpoints.steps() == [2, 3]


def test_a_full_disk_is_found_before_anything_is_written(saved, monkeypatch):
  usage = type('usage', (), {'free': 1000})
  monkeypatch.setattr('shutil.disk_usage', lambda path: usage)
  checkpoints = Checkpoints(saved, keep=2)
  with pytest.raises(CheckpointError, match=r'24,580 bytes needed, 1,000 free'):
    checkpoints.save(
      state_at(3),
      DataState(3, 0, 'abc'),
      config_json='{}',
      tokenizer_fingerprint='tok',
      clock={'step': 0.0},
    )
  assert checkpoints.steps() == [1, 2]
  assert not list(saved.glob('3*'))


def test_weights_are_taken_over_without_the_optimizer(saved):
  wanted = {'params': state_at(0).params}
  taken = restore_state(saved, wanted, tokenizer_fingerprint='tok')
  assert set(taken) == {'params'}
  np.testing.assert_array_equal(taken['params']['w'], state_at(2).params['w'])


def in_dtype(state, dtype):
  return state._replace(
    opt_state=jax.tree.map(lambda x: x.astype(dtype), state.opt_state)
  )


@pytest.mark.parametrize(
  ('saved', 'now'), [('float32', 'bfloat16'), ('bfloat16', 'float32')]
)
def test_a_checkpoint_in_another_dtype_is_refused_and_not_called_damaged(
  tmp_path, saved, now
):
  save_all(tmp_path, in_dtype(state_at(1), saved), in_dtype(state_at(2), saved))
  checkpoints = Checkpoints(tmp_path, keep=2)
  match = rf"2: \['opt_state'\]\['mu'\] is {saved} there, {now} here"
  with pytest.raises(OtherDtypeError, match=match):
    checkpoints.restore_latest(in_dtype(state_at(0), now))
  assert checkpoints.steps() == [1, 2]
  _, data, _ = checkpoints.restore_latest(in_dtype(state_at(0), saved))
  assert data.step == 2


@pytest.mark.parametrize(
  ('saved', 'now'), [('float32', 'bfloat16'), ('bfloat16', 'float32')]
)
def test_moments_are_rounded_to_the_dtype_of_the_stage_after(
  tmp_path, saved, now
):
  # Halfway between two bfloat16 and a bit to either side, of every sign.
  bits = np.arange(0x3F00, 0x3F40, dtype=np.uint32)[:, None] << 16
  bits = bits | np.array([0, 0x7FFF, 0x8000, 0x8001], np.uint32)
  moments = np.concatenate([bits, bits | 0x8000_0000]).view(np.float32)
  moments = moments.astype(saved)
  save_all(tmp_path, state_at(1)._replace(opt_state={'mu': moments}))
  mesh = jax.make_mesh((8,), ('fsdp',), (AxisType.Auto,))
  wanted = jax.ShapeDtypeStruct(
    moments.shape, now, sharding=NamedSharding(mesh, P('fsdp'))
  )
  taken = restore_state(
    tmp_path, {'opt_state': {'mu': wanted}}, tokenizer_fingerprint='tok'
  )['opt_state']['mu']
  assert (taken.dtype, taken.sharding) == (wanted.dtype, wanted.sharding)
  rounded = moments.astype(now)  # ml_dtypes: to nearest, half to even
  np.testing.assert_array_equal(taken, rounded)
  assert (now == 'float32') == np.array_equal(rounded, moments)


def test_damaged_moments_of_another_dtype_are_not_taken_over(saved):
  flip_a_bit(largest_file(saved / '2'))
  wanted = in_dtype(state_at(0), 'float32')._asdict()
  with pytest.raises(CheckpointError, match='cannot take over'):
    restore_state(saved, wanted, tokenizer_fingerprint='tok')


def test_weights_of_another_shape_or_tokenizer_are_refused(saved):
  with pytest.raises(CheckpointError, match='trained with tokenizer tok'):
    restore_state(
      saved, {'params': state_at(0).params}, tokenizer_fingerprint='other'
    )
  with pytest.raises(CheckpointError, match='cannot take over params'):
    restore_state(
      saved,
      {'params': {'w': jnp.zeros((64, 32))}},
      tokenizer_fingerprint='tok',
    )
  with pytest.raises(CheckpointError, match='no checkpoint'):
    restore_state(saved / 'nowhere', {}, tokenizer_fingerprint='tok')


def test_damaged_weights_are_not_taken_over(saved):
  flip_a_bit(largest_file(saved / '2'))
  with pytest.raises(CheckpointError, match='cannot take over params'):
    restore_state(
      saved, {'params': state_at(0).params}, tokenizer_fingerprint='tok'
    )
