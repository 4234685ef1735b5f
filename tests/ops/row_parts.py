"""Parts of rows for the kernels of one platform each, and dense attention."""

import jax
import jax.numpy as jnp
import numpy as np

from longctx_jax.ops import blockwise_attention as blockwise
from longctx_jax.ops.attention import Place, attention_mask, dense_attention

ROW = 1200
# Blocks of 64 or 128 divide neither T nor S.
B, T, S, N, K, H = 2, 300, 400, 4, 2, 8
REL = 1e-5  # DESIGN.md: every path equals the dense one to this, in float32

SHUFFLED = np.random.default_rng(0).permutation(ROW)
# Which tokens of the row the queries and the keys are.
SHARDS = {
  'start of the row': (np.arange(T), np.arange(S)),
  'zigzag': (
    np.r_[0:150, 1050:1200],
    np.r_[200:400, 800:1000],
  ),
  'earlier keys': (np.arange(600, 600 + T), np.arange(250, 250 + S)),
  'later keys': (np.arange(T), np.arange(700, 700 + S)),
  'any order': (SHUFFLED[:T], SHUFFLED[-S:]),
}
LAYOUTS = {
  'one document': np.ones(ROW, int),
  'documents and padding': np.repeat(
    [1, 2, 3, 4, 0], [100, 260, 140, 520, 180]
  ),
  'documents of length 1': np.arange(ROW) + 1,
  'padding inside and first': np.repeat([0, 1, 0, 2], [130, 300, 400, 370]),
  'all padding': np.zeros(ROW, int),
}


def inputs(dtype=jnp.float32, N=N):
  keys = jax.random.split(jax.random.key(0), 4)
  shapes = (B, T, N, H), (B, S, K, H), (B, S, K, H), (B, T, N, H)
  return [
    jax.random.normal(key, shape, dtype)
    for key, shape in zip(keys, shapes, strict=True)
  ]


def place(layouts, tokens):
  segment_ids = np.stack([LAYOUTS[layout][tokens] for layout in layouts])
  return Place(
    jnp.asarray(segment_ids, jnp.int32), jnp.asarray(tokens, jnp.int32)
  )


def places(shards, *layouts):
  return [place(layouts, tokens) for tokens in SHARDS[shards]]


@jax.jit
def dense(q, k, v, d_out, queries, keys):
  out, vjp = jax.vjp(
    lambda q, k, v: dense_attention(
      q,
      k,
      v,
      segment_ids=queries.segment_ids,
      index=queries.index,
      key_segment_ids=keys.segment_ids,
      key_index=keys.index,
    ),
    q,
    k,
    v,
  )
  mask = attention_mask(queries, keys)[:, None, None]
  grouped = q.reshape(B, T, K, -1, H)
  scores = jnp.einsum('BTKGH,BSKH->BKGTS', grouped, k) * H**-0.5
  lse = jax.nn.logsumexp(jnp.where(mask, scores, -jnp.inf), axis=-1)
  lse = jnp.where(jnp.any(mask, axis=-1), lse, blockwise.MASKED)
  return out, *vjp(d_out), lse.reshape(B, -1, T).swapaxes(1, 2)


def assert_equal_to_dense(run, arrays, where, rel=REL):
  """`run` is (q, k, v, d_out, queries, keys) -> out, dq, dk, dv, lse."""
  got = run(*arrays, *where)
  expected = dense(*(x.astype(jnp.float32) for x in arrays), *where)
  names = 'out', 'dq', 'dk', 'dv', 'lse'
  for name, a, b in zip(names, got, expected, strict=True):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.isfinite(a).all(), name
    if name == 'lse':
      # Masked ones are exact, and would outweigh all others.
      masked = b == blockwise.MASKED
      np.testing.assert_array_equal(a == blockwise.MASKED, masked)
      a, b = a[~masked], b[~masked]
    # Where all cancels (one key: dq = 0), what is left is the rounding of the
    # summands, and those are of size 1.
    error, size = np.linalg.norm(a - b), max(np.linalg.norm(b), 1.0)
    assert error <= rel * size, (name, error, size)
