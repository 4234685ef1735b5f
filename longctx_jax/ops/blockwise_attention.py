"""Exact attention, one block of queries at a time, with its own gradient.

Scores of one query block against the keys before it are made, used and dropped;
the backward pass makes them again from the saved log-sum-exp (FlashAttention,
arXiv:2205.14135). Keys beyond the block are never touched, so half of the dense
work is skipped. The loop is unrolled into at most `MAX_BLOCKS` query blocks:
XLA on CPUs then sees large matrix products, which is what makes it fast there.
Live scores take B * N * T * max(block_len, T / MAX_BLOCKS) floats.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from longctx_jax.array_types import typed
from longctx_jax.ops.attention import check_heads

MASKED = -1e30  # finite, so that differences of two masked scores are not NaN
MAX_BLOCKS = 32  # ours: bounds compile time; 32 blocks compile in seconds


@typed
def blockwise_attention(
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B T K H'],
  v: Float[Array, 'B T K H'],
  *,
  segment_ids: Int[Array, 'B T'],
  block_len: int = 128,
) -> Float[Array, 'B T N H']:
  """`dense_attention`, in blocks of at least `block_len` queries.

  Accumulators are float32 whatever the inputs; grouped heads share their keys
  and values without repeating them.
  """
  B, T, N, H = q.shape
  K = k.shape[2]
  check_heads(N, K)
  block_len = max(block_len, -(-T // MAX_BLOCKS))
  heads_first = functools.partial(jnp.einsum, 'BTKGH->BKGTH')
  out = _attend(
    heads_first(q.reshape(B, T, K, N // K, H)),
    jnp.swapaxes(k, 1, 2),
    jnp.swapaxes(v, 1, 2),
    segment_ids,
    block_len,
  )
  return jnp.einsum('BKGTH->BTKGH', out).reshape(B, T, N, H)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, segment_ids, block_len):
  return _forward(q, k, v, segment_ids, block_len)[0]


def _query_blocks(T, block_len):
  return [
    (start, min(start + block_len, T)) for start in range(0, T, block_len)
  ]


def _scores(q_block, k, segment_ids, start, stop):
  """Float32 scores [B, K, G, C, stop] of queries start..stop, masked.

  They are scaled here, in float32: scaled bfloat16 queries round once more.
  """
  scores = jnp.einsum(
    'BKGCH,BKSH->BKGCS',
    q_block,
    k[:, :, :stop],
    preferred_element_type=jnp.float32,
  )
  queries = segment_ids[:, start:stop, None]
  mask = (queries == segment_ids[:, None, :stop]) & (queries > 0)
  causal = jnp.arange(start, stop)[:, None] >= jnp.arange(stop)[None, :]
  mask &= causal[None]
  return jnp.where(mask[:, None, None], scores * _scale(q_block), MASKED)


def _scale(q):
  return q.shape[-1] ** -0.5


def _forward(q, k, v, segment_ids, block_len):
  outs, lses = [], []
  for start, stop in _query_blocks(q.shape[3], block_len):
    scores = _scores(q[..., start:stop, :], k, segment_ids, start, stop)
    # The floor keeps exp(MASKED - largest) at 0 in rows that are all masked.
    largest = jnp.max(scores, axis=-1, keepdims=True)
    largest = jnp.maximum(largest, 0.5 * MASKED)
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.einsum(
      'BKGCS,BKSH->BKGCH',
      weights,
      v[:, :, :stop],
      preferred_element_type=jnp.float32,
    )
    # Padding queries have total 0: they give zeros, here and in the gradient.
    safe_total = jnp.where(total == 0, 1.0, total)
    outs.append(out / safe_total)
    lses.append(largest + jnp.log(safe_total))
  out = jnp.concatenate(outs, axis=3)
  lse = jnp.concatenate(lses, axis=3)
  return out.astype(q.dtype), (q, k, v, segment_ids, out, lse)


def _backward(block_len, residuals, d_out):
  q, k, v, segment_ids, out, lse = residuals
  d_out = d_out.astype(jnp.float32)
  # Row sums of d_out * out: the softmax Jacobian's second term.
  delta = jnp.sum(d_out * out, axis=-1, keepdims=True)
  dk = jnp.zeros(k.shape, jnp.float32)
  dv = jnp.zeros(v.shape, jnp.float32)
  dqs = []
  for start, stop in _query_blocks(q.shape[3], block_len):
    block = (..., slice(start, stop), slice(None))
    scores = _scores(q[block], k, segment_ids, start, stop)
    weights = jnp.exp(scores - lse[block])
    dv = dv.at[:, :, :stop].add(
      jnp.einsum('BKGCS,BKGCH->BKSH', weights, d_out[block])
    )
    d_weights = jnp.einsum(
      'BKGCH,BKSH->BKGCS',
      d_out[block],
      v[:, :, :stop],
      preferred_element_type=jnp.float32,
    )
    d_scores = weights * (d_weights - delta[block]) * _scale(q)
    dqs.append(
      jnp.einsum(
        'BKGCS,BKSH->BKGCH',
        d_scores,
        k[:, :, :stop],
        preferred_element_type=jnp.float32,
      )
    )
    dk = dk.at[:, :, :stop].add(
      jnp.einsum(
        'BKGCS,BKGCH->BKSH',
        d_scores,
        q[block],
        preferred_element_type=jnp.float32,
      )
    )
  dq = jnp.concatenate(dqs, axis=3).astype(q.dtype)
  return dq, dk.astype(k.dtype), dv.astype(v.dtype), None


_attend.defvjp(_forward, _backward)
