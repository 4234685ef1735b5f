"""Checksums of arrays' bits, which add up over an array's parts.

Each is the sum of an array's words modulo 2**32, a word being as wide as an
element: any one flipped bit changes it, and an array larger than memory is
summed part by part. Devices sum what they hold, wherever it lies.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MODULUS = 1 << 32


def checksums(tree: Any) -> dict[str, int]:
  """Those of a tree's arrays, by their path in it."""
  paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(tree), strict=True)
  names = [jax.tree_util.keystr(path) for path in paths]
  sums = np.asarray(_bit_sums([jnp.asarray(x) for x in leaves]))
  return dict(zip(names, sums.tolist(), strict=True))


@jax.jit
def _bit_sums(leaves):
  def one(x):
    words = jax.lax.bitcast_convert_type(
      x, jnp.dtype(f'uint{8 * x.dtype.itemsize}')
    )
    return jnp.sum(words.astype(jnp.uint32), dtype=jnp.uint32)

  return [one(x) for x in leaves]


def checksum_of_part(x: np.ndarray) -> int:
  """That of one array in memory, or of a part of one."""
  words = np.ascontiguousarray(x).view(f'uint{8 * x.dtype.itemsize}')
  return int(np.sum(words, dtype=np.uint32))
