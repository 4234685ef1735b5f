"""In which order the tokens of a row are stored over the shards of `context`.

Under causality the last tokens of a row have the most to attend to. 'zigzag'
cuts a row into 2R chunks and gives shard r the chunks r and 2R-1-r, one early
and one late, so that every shard has as much to do (striped attention,
arXiv:2311.09431, balances likewise, token by token). Eight chunks on R=4:

  contiguous   0 1 | 2 3 | 4 5 | 6 7
  zigzag       0 7 | 1 6 | 2 5 | 3 4

A batch is reordered once, before it goes onto the mesh; the model never is:
RoPE positions, targets and weights travel with their tokens, and attention is
told each token's index in its row.
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

Layout = Literal['contiguous', 'zigzag']


def check_layout(layout: Layout, T: int, num_shards: int) -> None:
  """Raises ValueError unless rows of T tokens divide over the shards."""
  parts = {'contiguous': num_shards, 'zigzag': 2 * num_shards}
  if layout not in parts:
    raise ValueError(f'unknown layout {layout!r}; there are {", ".join(parts)}')
  if num_shards > 1 and T % parts[layout]:
    raise ValueError(
      f'rows of {T} tokens do not divide into the {parts[layout]} chunks of'
      f' layout {layout!r} on {num_shards} context shards'
    )


def stored_index(layout: Layout, T: int, num_shards: int) -> np.ndarray:
  """int32 [T]: the index in its row of the token stored at each place."""
  check_layout(layout, T, num_shards)
  if layout == 'contiguous' or num_shards == 1:
    return np.arange(T, dtype=np.int32)
  chunks = np.arange(T, dtype=np.int32).reshape(2 * num_shards, -1)
  early, late = chunks[:num_shards], chunks[num_shards:][::-1]
  return np.stack([early, late], axis=1).reshape(T)


def to_layout(x, layout: Layout, num_shards: int, axis: int = 1):
  """Reorders the sequence axis of an array of rows for the shards."""
  return x.take(stored_index(layout, x.shape[axis], num_shards), axis=axis)


def from_layout(x, layout: Layout, num_shards: int, axis: int = 1):
  """Back to the order of the row."""
  order = stored_index(layout, x.shape[axis], num_shards)
  return x.take(np.argsort(order), axis=axis)


def shard_index(
  layout: Layout, shard: Array | int, shard_len: int, num_shards: int
) -> Int[Array, ' T']:
  """Row index of each token of one shard; the shard may be traced."""
  if layout == 'contiguous' or num_shards == 1:
    return shard * shard_len + jnp.arange(shard_len, dtype=jnp.int32)
  half = shard_len // 2
  offsets = jnp.arange(half, dtype=jnp.int32)
  late = 2 * num_shards - 1 - shard
  return jnp.concatenate([shard * half + offsets, late * half + offsets])
