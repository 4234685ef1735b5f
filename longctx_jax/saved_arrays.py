"""One array of a checkpoint, read in blocks that fit where it does not.

Orbax restores whole arrays, and of all layers an array may be larger than
memory. Its files are TensorStore's, which reads any part: a block is as many
layers as share a chunk (one; all, where all were saved as one chunk).

The checksum is of the whole array. So a first pass sums all of its blocks and
nothing is handed out before; a block that is read again has to have the sum
that it had then.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore as ts

from longctx_jax.checkpoint import CheckpointError, reason_of
from longctx_jax.checksums import MODULUS, checksum_of_part


class SavedArray:
  """An array of a checkpoint; `path` are its keys in the state that was saved.

  Attributes:
    block_len: entries of the leading axis that are read together.

  Raises:
    CheckpointError: it isn't there, is damaged, or has another shape.
  """

  def __init__(
    self,
    checkpoint: Path,
    meta: dict[str, Any],
    path: Sequence[str],
    shape: tuple[int, ...],
    *,
    in_layers: bool,
  ):
    self._where = f'{checkpoint}: {".".join(path)}'
    key = jax.tree_util.keystr(tuple(map(jax.tree_util.DictKey, path)))
    self._checksum = meta['checksums'].get(key)
    self._store = self._guarded(lambda: _open(checkpoint, path))
    if self._store.shape != shape:
      raise CheckpointError(
        f'{self._where} has the shape {self._store.shape}, by config.json it'
        f' should be {shape}'
      )
    chunk = self._store.chunk_layout.read_chunk.shape
    self.block_len = chunk[0] if in_layers else shape[0]
    # Of each block, once all of them have been found to be whole.
    self._sums: list[int] | None = None

  def block(self, k: int) -> np.ndarray:
    """[block_len, ...]: entries k * block_len and on; fewer in the last block.

    Raises:
      CheckpointError: any of the array's bits differ from those saved.
    """
    if self._sums is None:
      return self._verified(k)
    x = self._read(k)
    self._check(checksum_of_part(x) == self._sums[k])
    return x

  def _verified(self, k) -> np.ndarray:
    """Block k, read after all the others."""
    num_blocks = -(-self._store.shape[0] // self.block_len)
    sums = [0] * num_blocks
    for i in (*range(k), *range(k + 1, num_blocks)):
      sums[i] = checksum_of_part(self._read(i))
    x = self._read(k)
    sums[k] = checksum_of_part(x)
    self._check(sum(sums) % MODULUS == self._checksum)
    self._sums = sums
    return x

  def _read(self, k) -> np.ndarray:
    start = k * self.block_len
    rows = slice(start, min(start + self.block_len, self._store.shape[0]))
    return self._guarded(lambda: self._store[rows].read().result())

  def _check(self, is_whole):
    if not is_whole:
      raise CheckpointError(
        f'{self._where} is damaged: its bits differ from those saved'
      )

  def _guarded(self, read):
    try:
      return read()
    except Exception as error:  # TensorStore's are of many types
      # Behind what went wrong it says all over again where.
      what = reason_of(error).partition(' [tensorstore_spec=')[0]
      raise CheckpointError(f'cannot read {self._where}: {what}') from error


def _open(checkpoint, path) -> ts.TensorStore:
  spec = {
    'driver': 'zarr',
    'kvstore': {
      'driver': 'ocdbt',
      'base': {'driver': 'file', 'path': f'{checkpoint.absolute()}/state/'},
      'path': f'{".".join(path)}/',
    },
    # Else a chunk that is gone would be read as zeros.
    'fill_missing_data_reads': False,
  }
  return ts.open(spec, open=True, read=True).result()
