"""Cross entropy in chunks of tokens: [B, T, V] logits never exist.

At 512K tokens and a vocabulary of 128K one row's logits alone take 256 GB in
float32. Here one chunk's logits live at a time. When a gradient is wanted, the
forward pass makes it on the spot, while the chunk's softmax is at hand, so the
unembedding product is not done a second time. ProLong's trainer blocks its
loss the same way (arXiv:2410.02660; LOGIT_BLOCK_SIZE=2048 in train_64K.sh).

Over a mesh, devices that split the vocabulary trade tokens instead of weights:
each multiplies a chunk of all their tokens by its own columns, and they merge
maxima, sums and gradients of [C] and [C, D]. What no device then holds is the
whole unembedding, or the whole float32 gradient of it: 3 GB for Llama-3-8B.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from longctx_jax.array_types import typed
from longctx_jax.ops.context_parallel import ContextParallel
from longctx_jax.ops.sharded_tokens import (
  Axes,
  from_chunks,
  gather,
  kernel_axes,
  num_shards,
  scatter_sum,
  shard_index,
  split_axes,
  sum_over,
  to_chunks,
  token_specs,
)


@typed
def cross_entropy_sum(
  x: Float[Array, 'B T D'],
  unembedding: Float[Array, 'D V'],
  targets: Int[Array, 'B T'],
  weights: Float[Array, 'B T'],
  *,
  chunk_len: int = 2048,
  parallel: ContextParallel | None = None,
) -> Float[Array, '']:
  """Sum over tokens of weight * -log softmax(x @ unembedding)[target], float32.

  `chunk_len` counts the tokens, of all rows together, whose logits live at
  once: on one device, or on those that split the vocabulary. With `parallel`,
  `parallel.vocab_axes` do, and rows lie as in attention. No gradient flows to
  `weights`.
  """
  return _loss_sum(x, targets, weights, unembedding, chunk_len, parallel)


@typed
def token_losses_and_predictions(
  x: Float[Array, 'B T D'],
  unembedding: Float[Array, 'D V'],
  targets: Int[Array, 'B T'],
  *,
  chunk_len: int = 2048,
  parallel: ContextParallel | None = None,
) -> tuple[Float[Array, 'B T'], Int[Array, 'B T']]:
  """Each token's loss, and the most likely token there; for evaluation."""
  axes = _axes(parallel, x.shape[2])

  def on_a_shard(x, targets, unembedding):
    columns = _take_columns(unembedding, axes)

    def one_chunk(chunk):
      x, theirs = (gather(array, axes.traded) for array in chunk)
      logits = _logits(x, columns)
      losses, _ = _losses(logits, _own_targets(theirs, columns), axes)
      best = _most_likely(logits, columns, axes)
      return _own(losses, axes), _own(best, axes)

    split = functools.partial(_chunks, chunk_len=chunk_len, axes=axes)
    losses, predictions = jax.lax.map(one_chunk, (split(x), split(targets)))
    return tuple(
      from_chunks(array, targets.shape) for array in (losses, predictions)
    )

  run = _over_shards(
    on_a_shard, parallel, axes, ('x', 'tokens', 'kernel'), ('tokens', 'tokens')
  )
  return run(x, targets, unembedding)


# Where things lie --------------------------------------------------------


class _Axes(NamedTuple):
  """Mesh axes by what they split inside of a shard; all empty on one device."""

  tensor: Axes  # the vocabulary
  traded: Axes  # the vocabulary too, and tokens, which are traded
  tokens: Axes  # tokens, which stay where they are
  kernel: Axes  # the stored unembedding's rows, D

  @property
  def vocab(self) -> Axes:
    """All that split the vocabulary, the outermost first."""
    return self.tensor + self.traded


def _axes(parallel, D):
  kernel = kernel_axes(parallel, D)
  # In the order in which `_take_columns` splits the vocabulary.
  traded = tuple(n for n in reversed(kernel) if n in parallel.vocab_axes)
  rows = split_axes(parallel, 'data', 'fsdp', 'context')
  tokens = tuple(name for name in rows if name not in traded)
  return _Axes(split_axes(parallel, 'tensor'), traded, tokens, kernel)


def _over_shards(function, parallel, axes, arguments, results):
  """`function` of what each device holds of the arguments."""
  if parallel is None:
    return function
  tokens, x = token_specs(parallel)
  kernel = P(axes.kernel or None, axes.tensor or None)
  specs = {'x': x, 'tokens': tokens, 'kernel': kernel, 'sum': P()}
  return parallel.over_shards(
    function,
    in_specs=tuple(specs[name] for name in arguments),
    out_specs=tuple(specs[name] for name in results),
  )


def _chunks(array, *, chunk_len, axes):
  """A device's tokens, in chunks that are of `chunk_len` when gathered."""
  return to_chunks(array, chunk_len // num_shards(axes.traded))


def _own(array, axes):
  """A device's own part of what it has computed for all that trade tokens."""
  if not axes.traded:
    return array
  C = array.shape[0] // num_shards(axes.traded)
  return jax.lax.dynamic_slice_in_dim(array, shard_index(axes.traded) * C, C)


class _Columns(NamedTuple):
  """A device's part of the vocabulary."""

  kernel: Array  # [D, V / shards]
  first: Array | int  # which token the first column is of
  num: Array | int  # those behind this many are padding


def _take_columns(unembedding, axes):
  """From [D / shards, V / tensor] as stored to all rows of own columns.

  From the innermost axis to the outermost, so that rows stay in order.
  """
  num, splits = unembedding.shape[1], num_shards(axes.traded)
  kernel = jnp.pad(unembedding, ((0, 0), (0, -num % splits)))
  for name in reversed(axes.kernel):
    if name in axes.traded:
      kernel = jax.lax.all_to_all(kernel, name, 1, 0, tiled=True)
    else:
      kernel = gather(kernel, (name,))
  width = kernel.shape[1]
  before = shard_index(axes.traded) * width
  first = shard_index(axes.tensor) * num + before
  if num % splits == 0:
    return _Columns(kernel, first, width)
  return _Columns(kernel, first, jnp.clip(num - before, 0, width))


def _give_columns(d_kernel, unembedding, axes):
  """The way back of `_take_columns`, adding what tokens elsewhere say."""
  for name in axes.kernel:
    if name in axes.traded:
      d_kernel = jax.lax.all_to_all(d_kernel, name, 0, 1, tiled=True)
    else:
      d_kernel = scatter_sum(d_kernel, (name,))
  others = tuple(name for name in axes.tokens if name not in axes.kernel)
  d_kernel = sum_over(d_kernel[:, : unembedding.shape[1]], others)
  return d_kernel.astype(unembedding.dtype)


# One chunk ---------------------------------------------------------------


def _logits(x, columns):
  logits = jnp.einsum(
    'CD,DV->CV', x, columns.kernel, preferred_element_type=jnp.float32
  )
  if isinstance(columns.num, int):
    return logits
  real = jnp.arange(logits.shape[1]) < columns.num
  return jnp.where(real[None], logits, -jnp.inf)


def _own_targets(targets, columns):
  """Targets as own columns; -1 where they are among those of others."""
  own = targets - columns.first
  return jnp.where((own >= 0) & (own < columns.num), own, -1)


def _losses(logits, own_targets, axes):
  """(losses [C], log of the sum of exponentials [C]), of the whole V."""
  largest = jnp.max(logits, axis=1)
  if axes.vocab:
    largest = jax.lax.pmax(largest, axes.vocab)
  total = jnp.sum(jnp.exp(logits - largest[:, None]), axis=1)
  of_targets = jnp.take_along_axis(
    logits, jnp.maximum(own_targets, 0)[:, None], axis=1
  )[:, 0]
  of_targets = jnp.where(own_targets >= 0, of_targets, 0.0)
  total, of_targets = sum_over((total, of_targets), axes.vocab)
  lse = largest + jnp.log(total)
  return lse - of_targets, lse


def _most_likely(logits, columns, axes):
  """[C] int32; of several the first, as argmax has it."""
  best = columns.first + jnp.argmax(logits, axis=1).astype(jnp.int32)
  if not axes.vocab:
    return best
  largest = jnp.max(logits, axis=1)
  absent = jnp.iinfo(jnp.int32).max
  is_best = largest == jax.lax.pmax(largest, axes.vocab)
  return jax.lax.pmin(jnp.where(is_best, best, absent), axes.vocab)


# The sum and its gradient ------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _loss_sum(x, targets, weights, unembedding, chunk_len, parallel):
  axes = _axes(parallel, x.shape[2])

  def on_a_shard(x, targets, weights, unembedding):
    columns = _take_columns(unembedding, axes)

    def one_chunk(total, chunk):
      x, targets, weights = (gather(array, axes.traded) for array in chunk)
      own_targets = _own_targets(targets, columns)
      losses, _ = _losses(_logits(x, columns), own_targets, axes)
      return total + jnp.sum(losses * weights), None

    split = functools.partial(_chunks, chunk_len=chunk_len, axes=axes)
    chunks = split(x), split(targets), split(weights)
    total, _ = jax.lax.scan(one_chunk, jnp.float32(0), chunks)
    return (sum_over(total, axes.tokens),)

  run = _over_shards(
    on_a_shard, parallel, axes, ('x', 'tokens', 'tokens', 'kernel'), ('sum',)
  )
  return run(x, targets, weights, unembedding)[0]


def _forward(x, targets, weights, unembedding, chunk_len, parallel):
  axes = _axes(parallel, x.shape[2])

  def on_a_shard(x, targets, weights, unembedding):
    columns = _take_columns(unembedding, axes)

    def one_chunk(carry, chunk):
      total, d_kernel = carry
      x, targets, weights = (gather(array, axes.traded) for array in chunk)
      logits, own_targets = _logits(x, columns), _own_targets(targets, columns)
      losses, lse = _losses(logits, own_targets, axes)
      d_logits = jnp.exp(logits - lse[:, None])
      d_logits -= jax.nn.one_hot(own_targets, logits.shape[1])
      d_logits *= weights[:, None]
      dx = jnp.einsum('CV,DV->CD', d_logits, columns.kernel)
      dx = scatter_sum(dx, axes.traded)
      dx = sum_over(dx, axes.tensor)
      d_kernel += jnp.einsum('CD,CV->DV', x, d_logits)
      # Cotangents leave in the dtype of what they belong to.
      return (total + jnp.sum(losses * weights), d_kernel), dx.astype(x.dtype)

    split = functools.partial(_chunks, chunk_len=chunk_len, axes=axes)
    zero = jnp.zeros(columns.kernel.shape, jnp.float32)
    (total, d_kernel), dx = jax.lax.scan(
      one_chunk,
      (jnp.float32(0), zero),
      (split(x), split(targets), split(weights)),
    )
    d_unembedding = _give_columns(d_kernel, unembedding, axes)
    return sum_over(total, axes.tokens), from_chunks(dx, x.shape), d_unembedding

  run = _over_shards(
    on_a_shard,
    parallel,
    axes,
    ('x', 'tokens', 'tokens', 'kernel'),
    ('sum', 'x', 'kernel'),
  )
  total, *grads = run(x, targets, weights, unembedding)
  return total, grads


def _backward(chunk_len, parallel, residuals, d_total):
  del chunk_len, parallel
  dx, d_unembedding = residuals
  scale = d_total.astype(jnp.float32)
  d_unembedding = (d_unembedding * scale).astype(d_unembedding.dtype)
  # Over fsdp, libtpu 0.0.42 fails to move this sum out of the loop over
  # micro-batches (while_loop_all_reduce_code_motion); so it may not try.
  d_unembedding = jax.lax.optimization_barrier(d_unembedding)
  return (dx * scale).astype(dx.dtype), None, None, d_unembedding


_loss_sum.defvjp(_forward, _backward)
