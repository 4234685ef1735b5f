"""Orbax checkpoints: training state, data state and config, saved together.

A killed writer leaves nothing visible (Orbax renames when it is done). Damage
that comes later is found on restore: Orbax notices a truncated file, but hands
back a flipped bit as if nothing were wrong, so every array is saved with a
checksum of its bits. A damaged checkpoint is set aside and the one before it
taken.

Of several processes each writes the shards that it has, to the same directory;
any number of them restores. All must call the same functions in the same order.
"""

import logging
import shutil
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from longctx_jax import hosts
from longctx_jax.checksums import checksums
from longctx_jax.data.pipeline import DataState

log = logging.getLogger(__name__)

# Below it arrays lead with L, in trees of parameters as in those of moments.
_BLOCKS = 'blocks'


class CheckpointError(RuntimeError):
  """A checkpoint that cannot be written or read."""


class OtherDtypeError(CheckpointError):
  """A whole checkpoint of arrays in another dtype than is wanted."""


class Checkpoints:
  """The checkpoints of one stage, in one directory; saving is asynchronous."""

  def __init__(self, directory: Path, keep: int):
    self.directory = directory.absolute()
    self._options = ocp.CheckpointManagerOptions(
      preservation_policy=ocp.checkpoint_managers.LatestN(keep),
      enable_async_checkpointing=True,
    )
    self._manager = self._open()

  def _open(self):
    return ocp.CheckpointManager(self.directory, options=self._options)

  def save(
    self,
    state: NamedTuple,
    data_state: DataState,
    *,
    config_json: str,
    tokenizer_fingerprint: str,
    clock: Mapping[str, float],
  ) -> None:
    """Starts writing the state after `data_state.step` steps.

    `clock` is given back by `restore_latest`.

    Raises:
      CheckpointError: this or an earlier write failed (a full disk, say).
    """
    state = state._asdict()
    self._require_space(sum(x.nbytes for x in jax.tree.leaves(state)))
    meta = {
      'data': data_state._asdict(),
      'config': config_json,
      'tokenizer': tokenizer_fingerprint,
      'clock': dict(clock),
      'checksums': checksums(state),
      'dtypes': _dtypes(state),
    }
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(state, save_args=_by_layer(state)),
      meta=ocp.args.JsonSave(meta),
    )
    self._guarded(lambda: self._manager.save(data_state.step, args=args))

  def _require_space(self, needed: int) -> None:
    # Found out half-way, a full disk also brings a traceback of Orbax's thread.
    free = shutil.disk_usage(self.directory).free
    if free < needed:
      raise self._write_error(
        f'no space left on the device: {needed:,} bytes needed, {free:,} free'
      )

  def wait(self) -> None:
    """Returns once every started write is on disk."""
    self._guarded(self._manager.wait_until_finished)

  def close(self) -> None:
    """Waits, and frees the writer's threads."""
    self.wait()
    self._manager.close()

  def _guarded(self, write: Callable[[], Any]) -> None:
    # Orbax and TensorStore raise bare Exceptions, ValueErrors and OSErrors.
    try:
      write()
    except Exception as error:
      if hosts.is_first():
        for unfinished in self.directory.glob('*.orbax-checkpoint-tmp'):
          shutil.rmtree(unfinished, ignore_errors=True)
      raise self._write_error(reason_of(error)) from error

  def _write_error(self, reason: str) -> CheckpointError:
    good = f'step {max(self.steps())}' if self.steps() else 'none'
    return CheckpointError(
      f'could not write a checkpoint to {self.directory}: {reason}.'
      f' Last good checkpoint: {good}'
    )

  def steps(self) -> list[int]:
    """Steps of the checkpoints that are there, oldest first."""
    return sorted(self._manager.all_steps())

  def restore_latest(
    self, state_like: NamedTuple
  ) -> tuple[NamedTuple, DataState, dict[str, float] | None] | None:
    """The newest undamaged state, its data state and its clock, if it has one.

    Args:
      state_like: arrays or ShapeDtypeStructs with the shardings wanted.

    Returns:
      None where there is no usable checkpoint.

    Raises:
      OtherDtypeError: the newest was saved in other dtypes than are wanted.
    """
    for step in hosts.told(lambda: self.steps()[::-1]):
      restored = self._restore_or_set_aside(step, state_like._asdict())
      if restored is not None:
        state, meta = restored
        return (
          type(state_like)(**state),
          DataState(**meta['data']),
          meta.get('clock'),
        )
    return None

  def _restore_or_set_aside(self, step, state_like):
    """(state, metadata); None where any process found it damaged."""
    restored = error = None
    try:
      restored = self._restore(step, state_like)
    except Exception as caught:
      error = caught
    if hosts.all_succeeded(error is None):
      # All have all of it: the checksums are of arrays that lie on all.
      try:
        _verify(restored['state'], restored['meta'])
      except OtherDtypeError as error:
        raise OtherDtypeError(
          f'{self.directory / str(step)}: {error}'
        ) from None
      except CheckpointError as caught:
        error = caught
      else:
        return restored['state'], restored['meta']
    self._set_aside(step, error)
    return None

  def _restore(self, step, state_like):
    return self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(_abstract(state_like)),
        meta=ocp.args.JsonRestore(),
      ),
    )

  def _set_aside(self, step, error):
    damaged = self.directory / f'damaged_{step}'
    log.warning(
      'checkpoint %s is damaged (%s): moved to %s, trying the one before',
      self.directory / str(step),
      reason_of(error) if error else 'as another process found',
      damaged.name,
    )
    if hosts.is_first():
      (self.directory / str(step)).rename(damaged)
    hosts.told(lambda: None)  # it is gone for all
    self._manager.close()
    self._manager = self._open()


def restore_state(
  directory: Path, wanted: dict[str, Any], *, tokenizer_fingerprint: str
) -> dict[str, Any]:
  """Some fields of the newest state in `directory`, for the stage after it.

  What was saved in another dtype is rounded to the one wanted, to nearest.

  Args:
    directory: the checkpoints/ directory of the stage before.
    wanted: field name -> arrays of the shapes, dtypes and shardings expected.
    tokenizer_fingerprint: what the weights must have been trained with.

  Raises:
    CheckpointError: there is none, it is damaged, or it is another model's.
  """
  with _newest(directory) as (manager, step):
    try:
      meta = _read_meta(manager, step)
      # The checksums are of the bits in the dtypes that were saved.
      as_saved = _in_dtypes(_abstract(wanted), meta.get('dtypes', {}))
      state = manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeRestore(
            as_saved,
            restore_args=ocp.checkpoint_utils.construct_restore_args(as_saved),
            partial_restore=True,
          ),
        ),
      )['state']
      _verify(state, meta)
    except Exception as error:
      raise CheckpointError(
        f'cannot take over {", ".join(wanted)} from {directory / str(step)}:'
        f' {reason_of(error)}'
      ) from error
  _check_tokenizer(meta, tokenizer_fingerprint, directory / str(step))
  return jax.tree.map(lambda x, like: x.astype(like.dtype), state, wanted)


def newest_meta(
  directory: Path, *, tokenizer_fingerprint: str
) -> tuple[Path, dict[str, Any]]:
  """Where the newest state in `directory` lies, and what was saved beside it.

  For those who read its arrays in parts.

  Raises:
    CheckpointError: there is none, it is damaged, or its weights were trained
      with another tokenizer.
  """
  with _newest(directory) as (manager, step):
    where = directory / str(step)
    try:
      meta = _read_meta(manager, step)
    except Exception as error:
      raise CheckpointError(
        f'cannot read {where}: {reason_of(error)}'
      ) from error
  _check_tokenizer(meta, tokenizer_fingerprint, where)
  return where, meta


@contextmanager
def _newest(directory):
  if not directory.is_dir():
    raise CheckpointError(f'no checkpoint directory {directory}')
  with ocp.CheckpointManager(directory.absolute()) as manager:
    step = manager.latest_step()
    if step is None:
      raise CheckpointError(f'no checkpoint in {directory}')
    yield manager, step


def _read_meta(manager, step):
  return manager.restore(
    step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
  )['meta']


def _check_tokenizer(meta, fingerprint, where):
  if meta['tokenizer'] != fingerprint:
    raise CheckpointError(
      f'{where} was trained with tokenizer {meta["tokenizer"]}, this corpus has'
      f' {fingerprint}'
    )


def _by_layer(state):
  """How each array is saved: those of all layers in chunks of one layer.

  Else a device's part of an array is one chunk, all of which has to be read and
  unpacked for any layer of it.
  """

  def one(path, x):
    keys = [getattr(key, 'key', None) for key in path]
    in_layers = _BLOCKS in keys and x.ndim > 0
    return ocp.SaveArgs(shard_axes=(0,) if in_layers else ())

  return jax.tree_util.tree_map_with_path(one, state)


def _verify(state, meta):
  for name, dtype in _dtypes(state).items():
    saved = meta.get('dtypes', {}).get(name, dtype)
    if saved != dtype:
      raise OtherDtypeError(f'{name} is {saved} there, {dtype} here')
  for name, checksum in checksums(state).items():
    if checksum != meta['checksums'].get(name):
      raise CheckpointError(f'the bits of {name} differ from those saved')


def reason_of(error: Exception) -> str:
  """What went wrong, in a line."""
  text = str(error).strip() or type(error).__name__
  if 'No space left on device' in text:
    return 'no space left on the device'
  return text.splitlines()[0][:300]


def _abstract(tree):
  return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def _in_dtypes(tree, dtypes):
  """The abstract arrays of a tree, in the dtypes given by name."""

  def one(path, like):
    dtype = dtypes.get(jax.tree_util.keystr(path), like.dtype)
    return jax.ShapeDtypeStruct(like.shape, dtype, sharding=like.sharding)

  return jax.tree_util.tree_map_with_path(one, tree)


def _dtypes(tree) -> dict[str, str]:
  return {
    jax.tree_util.keystr(path): str(x.dtype)
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }
