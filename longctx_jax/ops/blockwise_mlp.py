"""SwiGLU in chunks of tokens and features: its hidden [B, T, F] never exists.

Blockwise Parallel Transformer (arXiv:2305.19370), sec. 3. The hidden of an MLP
is F / D times as large as what goes in (3.5 for Llama-3-8B), and its gradient
holds some five of them. Here both passes go through a device's own tokens chunk
by chunk, the backward pass making each chunk's hidden again; kernels are
gathered once a pass, and their gradients added up in float32 and sent once.

With few tokens on each of many chips, gathered kernels and their gradients are
the larger part: 1 GB for Llama-3-8B. Each feature of the hidden is of one
column of the kernels alone, so that those go in chunks too: a chunk's columns
are gathered, used for all tokens, and forgotten. All the same is sent, and
what chunks of features say of the same token is added up in float32.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from longctx_jax.array_types import typed
from longctx_jax.ops.cast import cast_kernel
from longctx_jax.ops.context_parallel import ContextParallel
from longctx_jax.ops.sharded_tokens import (
  from_chunks,
  gather,
  kernel_axes,
  scatter_sum,
  split_axes,
  sum_over,
  to_chunks,
  token_specs,
)

# Which dimension of (gate, up, down) is F; the other one is D.
OF_FEATURES = 1, 1, 0


@typed
def swiglu(
  x: Float[Array, '... D'],
  gate: Float[Array, 'D F'],
  up: Float[Array, 'D F'],
  down: Float[Array, 'F D'],
) -> Float[Array, '... D']:
  """Token by token: down(silu(gate(x)) * up(x)), arXiv:2002.05202."""
  return _hidden(x @ gate, x @ up) @ down


class Chunks(NamedTuple):
  """What a device holds at once of the hidden; 0: all."""

  len: int = 0  # tokens, of all rows together
  width: int = 0  # features, of those that it has; divides them


@typed
def blockwise_mlp(
  x: Float[Array, 'B T D'],
  gate: Float[Array, 'D F'],
  up: Float[Array, 'D F'],
  down: Float[Array, 'F D'],
  *,
  chunks: Chunks,
  parallel: ContextParallel | None = None,
) -> Float[Array, 'B T D']:
  """`swiglu`, computed in the dtype of x.

  With `parallel`, rows lie as in attention, F is split over `tensor`, and D of
  the kernels over `PARAM_AXES`.

  Raises:
    ValueError: chunks of features that do not divide a device's own.
  """
  return _mlp(x, (gate, up, down), chunks, parallel)


def _hidden(gate, up):
  return jax.nn.silu(gate) * up


def _product(a, b, dtype):
  return jnp.matmul(a, b, preferred_element_type=dtype)


def _over_shards(function, parallel, D, arguments, results):
  if parallel is None:
    return function
  stored = kernel_axes(parallel, D) or None
  columns = 'tensor' if 'tensor' in parallel.axis_sizes else None
  specs = {
    'x': token_specs(parallel)[1],
    'kernels': (P(stored, columns), P(stored, columns), P(columns, stored)),
  }
  return parallel.over_shards(
    function,
    in_specs=tuple(specs[name] for name in arguments),
    out_specs=specs[results]
    if isinstance(results, str)
    else tuple(specs[name] for name in results),
  )


def _gathered(kernels, chunk, chunks, dtype, axes):
  """The columns of F that are the chunk's, with all of D."""

  def one(kernel, of_features):
    if chunks.width:
      kernel = jax.lax.dynamic_slice_in_dim(
        kernel, chunk * chunks.width, chunks.width, of_features
      )
    return gather(cast_kernel(kernel, dtype), axes, 1 - of_features)

  return [one(*each) for each in zip(kernels, OF_FEATURES, strict=True)]


def _over_features(run, num_chunks):
  """Of run(chunk) -> (summed, others): the sum over chunks, and all others."""
  if num_chunks == 1:
    summed, others = run(0)
    return summed, jax.tree.map(lambda x: x[None], others)

  def add(total, chunk):
    summed, others = run(chunk)
    return total + summed, others

  summed = jax.eval_shape(run, 0)[0]
  zeros = jnp.zeros(summed.shape, summed.dtype)
  return jax.lax.scan(add, zeros, jnp.arange(num_chunks))


def _num_chunks(kernels, chunks, dtype):
  """Of features; and in what is made of each that is added up."""
  F = kernels[0].shape[1]
  width = chunks.width or F
  if F % width:
    raise ValueError(
      f'chunks of {width} features do not divide the {F} that a device has'
    )
  num_chunks = F // width
  return num_chunks, dtype if num_chunks == 1 else jnp.float32


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _mlp(x, kernels, chunks, parallel):
  D = x.shape[2]
  stored = kernel_axes(parallel, D)

  def on_a_shard(x, kernels):
    tokens = to_chunks(x, chunks.len or x.size)
    num_chunks, dtype = _num_chunks(kernels, chunks, x.dtype)

    def one_chunk(chunk):
      gate, up, down = _gathered(kernels, chunk, chunks, x.dtype, stored)

      def some_tokens(x):
        return _product(_hidden(x @ gate, x @ up), down, dtype)

      return jax.lax.map(some_tokens, tokens), None

    out, _ = _over_features(one_chunk, num_chunks)
    out = from_chunks(out, x.shape).astype(x.dtype)
    return sum_over(out, split_axes(parallel, 'tensor'))

  run = _over_shards(on_a_shard, parallel, D, ('x', 'kernels'), 'x')
  return run(x, kernels)


def _forward(x, kernels, chunks, parallel):
  return _mlp(x, kernels, chunks, parallel), (x, kernels)


def _backward(chunks, parallel, residuals, d_out):
  x, kernels = residuals
  D = x.shape[2]
  stored = kernel_axes(parallel, D)
  rows = split_axes(parallel, 'data', 'fsdp', 'context')
  others = tuple(name for name in rows if name not in stored)

  def on_a_shard(x, kernels, d_out):
    chunk_len = chunks.len or x.size
    tokens = to_chunks(x, chunk_len), to_chunks(d_out, chunk_len)
    num_chunks, dtype = _num_chunks(kernels, chunks, x.dtype)

    def one_chunk(chunk):
      gate, up, down = _gathered(kernels, chunk, chunks, x.dtype, stored)

      def some_tokens(sums, tokens):
        x, d_out = tokens
        hidden, vjp = jax.vjp(_hidden, x @ gate, x @ up)
        d_gate, d_up = vjp(d_out @ down.T)
        dx = _product(d_gate, gate.T, dtype) + _product(d_up, up.T, dtype)
        pairs = (x, d_gate), (x, d_up), (hidden, d_out)
        sums = [
          total + _product(pair[0].T, pair[1], total.dtype)
          for total, pair in zip(sums, pairs, strict=True)
        ]
        return sums, dx

      zeros = [jnp.zeros(k.shape, jnp.float32) for k in (gate, up, down)]
      sums, dx = jax.lax.scan(some_tokens, zeros, tokens)
      d_kernels = [
        sum_over(scatter_sum(total, stored, 1 - of_features), others)
        for total, of_features in zip(sums, OF_FEATURES, strict=True)
      ]
      return dx, d_kernels

    dx, d_kernels = _over_features(one_chunk, num_chunks)
    dx = from_chunks(dx, x.shape).astype(x.dtype)
    dx = sum_over(dx, split_axes(parallel, 'tensor'))
    joined = (
      jnp.moveaxis(parts, 0, of_features).reshape(kernel.shape)
      for parts, kernel, of_features in zip(
        d_kernels, kernels, OF_FEATURES, strict=True
      )
    )
    return dx, tuple(
      d_kernel.astype(kernel.dtype)
      for d_kernel, kernel in zip(joined, kernels, strict=True)
    )

  run = _over_shards(
    on_a_shard, parallel, D, ('x', 'kernels', 'x'), ('x', 'kernels')
  )
  return run(x, kernels, d_out)


_mlp.defvjp(_forward, _backward)
