"""FlashAttention on CPUs, in C++ that is compiled for the one it runs on.

`forward` and `backward` are those of `ops.blockwise_attention`. They have tiles
of their own, of `TILE_LEN` queries and keys, and leave out what causality and
documents rule out of these; `block_len` is XLA's. All is float32.
"""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from longctx_jax.ops.attention import Place
from longctx_jax.ops.blockwise_attention import TileKernel
from longctx_jax.ops.kernels.cpp_library import BACKWARD, FORWARD

LANES = 16  # features are filled up to a multiple of the widest registers


def forward(
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B S K H'],
  v: Float[Array, 'B S K H'],
  queries: Place,
  keys: Place,
  block_len: int = 0,
) -> tuple[Float[Array, 'B T N H'], Float[Array, 'B T N']]:
  """Attention of these queries to these keys, and the log-sum-exp of scores.

  Both float32. A query that attends to nothing here gives 0 and MASKED.
  """
  del block_len
  H = q.shape[-1]
  q, k, v = (_fill_features(x) for x in (q, k, v))
  out, lse = jax.ffi.ffi_call(FORWARD, (_like(q), _like(q[..., 0])))(
    q, k, v, *_ids(queries, keys), scale=_scale(H), is_cache=False
  )
  return out[..., :H], lse


def backward(
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B S K H'],
  v: Float[Array, 'B S K H'],
  d_out: Float[Array, 'B T N H'],
  lse: Float[Array, 'B T N'],
  delta: Float[Array, 'B T N'],
  queries: Place,
  keys: Place,
  block_len: int = 0,
) -> tuple[
  Float[Array, 'B T N H'], Float[Array, 'B S K H'], Float[Array, 'B S K H']
]:
  """dq, dk and dv of `forward`, in float32.

  Args:
    q: as there, and so k, v, queries and keys.
    d_out: gradient of the attention's output.
    lse: log-sum-exp over all keys of the row, those elsewhere too.
    delta: `row_delta` of the output over all keys.
    block_len: as there.
  """
  del block_len
  H = q.shape[-1]
  q, k, v, d_out = (_fill_features(x) for x in (q, k, v, d_out))
  parts = _parts(k.shape[0] * k.shape[2])
  to_keys = jax.ShapeDtypeStruct((parts, *k.shape), jnp.float32)
  dq, dk, dv = jax.ffi.ffi_call(BACKWARD, (_like(q), to_keys, to_keys))(
    *(q, k, v, d_out, lse, delta, *_ids(queries, keys)), scale=_scale(H)
  )
  return dq[..., :H], *(jnp.sum(x, axis=0)[..., :H] for x in (dk, dv))


CPP = TileKernel(forward, backward)


def attend_cache(
  q: Float[Array, 'B C N H'],
  keys: Float[Array, 'Z H S'],
  values: Float[Array, 'Z S H'],
  index: Int[Array, ' C'],
  key_index: Int[Array, ' S'],
) -> tuple[Float[Array, 'B C N H'], Float[Array, 'B C N']]:
  """`forward` of one document, whose keys are in a cache of float32.

  They lie there as in `ops.cache_attention`, Z = B * K. What is at indices
  that no query has reached is not read.

  Raises:
    ValueError: H does not fill the registers; a cache is not copied for that.
  """
  B, H = q.shape[0], q.shape[-1]
  if H % LANES:
    raise ValueError(f'head_dim={H} is not a multiple of {LANES}')
  queries, stored = (
    Place(jnp.ones((B, len(at)), jnp.int32), at) for at in (index, key_index)
  )
  return jax.ffi.ffi_call(FORWARD, (_like(q), _like(q[..., 0])))(
    q, keys, values, *_ids(queries, stored), scale=_scale(H), is_cache=True
  )


def _parts(num_heads: int) -> int:
  """Into how many parts a key/value head's gradient is cut.

  One head is one core's work, in order. Where heads are few, as few parts as
  keep all cores busy; each part is an array of the size of keys.
  """
  cores = _count_cores()
  parts = 1
  while num_heads * parts % cores and num_heads * parts < 4 * cores:
    parts += 1
  return parts


@functools.cache
def _count_cores() -> int:
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _fill_features(x):
  missing = -x.shape[-1] % LANES
  x = x.astype(jnp.float32)
  return jnp.pad(x, [(0, 0)] * 3 + [(0, missing)]) if missing else x


def _ids(*places: Place):
  return [x.astype(jnp.int32) for place in places for x in place]


def _like(x):
  return jax.ShapeDtypeStruct(x.shape, jnp.float32)


def _scale(H):
  return np.float32(H**-0.5)
