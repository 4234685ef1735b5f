"""Cross entropy in chunks of tokens: [B, T, V] logits never exist.

At 512K tokens and a vocabulary of 128K one row's logits alone take 256 GB in
float32. Here one chunk's logits live at a time. When a gradient is wanted, the
forward pass makes it on the spot, while the chunk's softmax is at hand, so the
unembedding product is not done a second time. ProLong's trainer blocks its
loss the same way (arXiv:2410.02660; LOGIT_BLOCK_SIZE=2048 in train_64K.sh).
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from longctx_jax.array_types import typed


@typed
def cross_entropy_sum(
  x: Float[Array, 'B T D'],
  unembedding: Float[Array, 'D V'],
  targets: Int[Array, 'B T'],
  weights: Float[Array, 'B T'],
  *,
  chunk_len: int = 2048,
) -> Float[Array, '']:
  """Sum over tokens of weight * -log softmax(x @ unembedding)[target], float32.

  `chunk_len` counts the tokens, of all rows together, whose logits live at
  once. No gradient flows to `weights`.
  """
  return _loss_sum(
    *_chunked(x, targets, weights, chunk_len=chunk_len), unembedding
  )


@typed
def token_losses_and_predictions(
  x: Float[Array, 'B T D'],
  unembedding: Float[Array, 'D V'],
  targets: Int[Array, 'B T'],
  *,
  chunk_len: int = 2048,
) -> tuple[Float[Array, 'B T'], Int[Array, 'B T']]:
  """Each token's loss, and the most likely token there; for evaluation."""
  B, T = targets.shape
  weights = jnp.ones(targets.shape, jnp.float32)
  x, targets, _ = _chunked(x, targets, weights, chunk_len=chunk_len)

  def one_chunk(chunk):
    logits = _logits(chunk[0], unembedding)
    losses = _losses(logits, chunk[1])
    return losses, jnp.argmax(logits, axis=-1).astype(jnp.int32)

  losses, predictions = jax.lax.map(one_chunk, (x, targets))

  def whole(chunks):
    return jnp.moveaxis(chunks, 0, 2).reshape(B, -1)[:, :T]

  return whole(losses), whole(predictions)


def _chunked(x, targets, weights, *, chunk_len):
  """[B, T, ...] arrays as [num_chunks, B, C, ...]; padding has weight 0.

  Chunk i of T = 6, three chunks: positions i and i + 3 of every row. So each
  chunk is spread over the mesh as the whole is, rows and positions alike.
  """
  B, T = targets.shape
  num_chunks = -(-T // max(min(chunk_len // B, T), 1))
  padding = -T % num_chunks

  def split(array):
    array = jnp.pad(
      array, ((0, 0), (0, padding)) + ((0, 0),) * (array.ndim - 2)
    )
    array = array.reshape(B, -1, num_chunks, *array.shape[2:])
    return jnp.moveaxis(array, 2, 0)

  return split(x), split(targets), split(weights)


def _logits(x, unembedding):
  return jnp.einsum(
    'BCD,DV->BCV', x, unembedding, preferred_element_type=jnp.float32
  )


def _losses(logits, targets):
  target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)
  return jax.nn.logsumexp(logits, axis=-1) - target_logits[..., 0]


@functools.partial(jax.custom_vjp)
def _loss_sum(x, targets, weights, unembedding):
  def one_chunk(total, chunk):
    x, targets, weights = chunk
    losses = _losses(_logits(x, unembedding), targets)
    return total + jnp.sum(losses * weights), None

  total, _ = jax.lax.scan(one_chunk, jnp.float32(0), (x, targets, weights))
  return total


def _forward(x, targets, weights, unembedding):
  def one_chunk(carry, chunk):
    total, d_unembedding = carry
    x, targets, weights = chunk
    logits = _logits(x, unembedding)
    losses = _losses(logits, targets)
    d_logits = jax.nn.softmax(logits, axis=-1)
    d_logits -= jax.nn.one_hot(targets, logits.shape[-1], dtype=jnp.float32)
    d_logits *= weights[..., None]
    dx = jnp.einsum('BCV,DV->BCD', d_logits, unembedding)
    d_unembedding += jnp.einsum('BCD,BCV->DV', x, d_logits)
    return (total + jnp.sum(losses * weights), d_unembedding), dx

  zero = jnp.zeros(unembedding.shape, jnp.float32)
  (total, d_unembedding), dx = jax.lax.scan(
    one_chunk, (jnp.float32(0), zero), (x, targets, weights)
  )
  # Cotangents leave in the dtype of what they belong to.
  return total, (dx.astype(x.dtype), d_unembedding.astype(unembedding.dtype))


def _backward(residuals, d_total):
  dx, d_unembedding = residuals
  scale = d_total.astype(jnp.float32)
  return (
    (dx * scale).astype(dx.dtype),
    None,
    None,
    (d_unembedding * scale).astype(d_unembedding.dtype),
  )


_loss_sum.defvjp(_forward, _backward)
