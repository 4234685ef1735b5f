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
from jaxtyping import Array, Float

from longctx_jax.ops.attention import Place
from longctx_jax.ops.blockwise_attention import TileKernel
from longctx_jax.ops.kernels.cpp_library import BACKWARD, FORWARD

_LANES = 16  # features are filled up to a multiple of the widest registers


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
  missing = -x.shape[-1] % _LANES
  x = x.astype(jnp.float32)
  return jnp.pad(x, [(0, 0)] * 3 + [(0, missing)]) if missing else x


def _ids(*places: Place):
  return [x.astype(jnp.int32) for place in places for x in place]


def _like(x):
  return jax.ShapeDtypeStruct(x.shape, jnp.float32)


def _scale(H):
  return np.float32(H**-0.5)
