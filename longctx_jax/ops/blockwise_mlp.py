"""SwiGLU in chunks of tokens: its hidden [B, T, F] never exists.

Blockwise Parallel Transformer (arXiv:2305.19370), sec. 3. The hidden of an MLP
is F / D times as large as what goes in (3.5 for Llama-3-8B), and its gradient
holds some five of them. Here both passes go through a device's own tokens chunk
by chunk, the backward pass making each chunk's hidden again; kernels are
gathered once a pass, and their gradients added up in float32 and sent once.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from longctx_jax.array_types import typed
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


@typed
def swiglu(
  x: Float[Array, '... D'],
  gate: Float[Array, 'D F'],
  up: Float[Array, 'D F'],
  down: Float[Array, 'F D'],
) -> Float[Array, '... D']:
  """Token by token: down(silu(gate(x)) * up(x)), arXiv:2002.05202."""
  return _hidden(x @ gate, x @ up) @ down


@typed
def blockwise_mlp(
  x: Float[Array, 'B T D'],
  gate: Float[Array, 'D F'],
  up: Float[Array, 'D F'],
  down: Float[Array, 'F D'],
  *,
  chunk_len: int,
  parallel: ContextParallel | None = None,
) -> Float[Array, 'B T D']:
  """`swiglu`, computed in the dtype of x.

  `chunk_len` counts the tokens, of all rows together, whose hidden a device
  holds at once. With `parallel`, rows lie as in attention, F is split over
  `tensor`, and D of the kernels over `PARAM_AXES`.
  """
  return _mlp(x, (gate, up, down), chunk_len, parallel)


def _hidden(gate, up):
  return jax.nn.silu(gate) * up


def _over_shards(function, parallel, D, arguments, results):
  if parallel is None:
    return function
  mesh = parallel.mesh
  stored = kernel_axes(parallel, D) or None
  columns = 'tensor' if 'tensor' in mesh.shape else None
  specs = {
    'x': token_specs(mesh)[1],
    'kernels': (P(stored, columns), P(stored, columns), P(columns, stored)),
  }
  return jax.shard_map(
    function,
    mesh=mesh,
    in_specs=tuple(specs[name] for name in arguments),
    out_specs=specs[results]
    if isinstance(results, str)
    else tuple(specs[name] for name in results),
    check_vma=False,  # the gradients are ours: nothing for JAX to infer
  )


def _whole(kernels, dtype, axes):
  """A device's columns of F, with all of D."""
  return [
    gather(kernel.astype(dtype), axes, dim)
    for kernel, dim in zip(kernels, (0, 0, 1), strict=True)
  ]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _mlp(x, kernels, chunk_len, parallel):
  D = x.shape[2]
  stored = kernel_axes(parallel, D)

  def on_a_shard(x, kernels):
    whole = _whole(kernels, x.dtype, stored)
    out = jax.lax.map(lambda x: swiglu(x, *whole), to_chunks(x, chunk_len))
    return sum_over(from_chunks(out, x.shape), split_axes(parallel, 'tensor'))

  run = _over_shards(on_a_shard, parallel, D, ('x', 'kernels'), 'x')
  return run(x, kernels)


def _forward(x, kernels, chunk_len, parallel):
  return _mlp(x, kernels, chunk_len, parallel), (x, kernels)


def _backward(chunk_len, parallel, residuals, d_out):
  x, kernels = residuals
  D = x.shape[2]
  stored = kernel_axes(parallel, D)
  rows = split_axes(parallel, 'data', 'fsdp', 'context')
  others = tuple(name for name in rows if name not in stored)

  def on_a_shard(x, kernels, d_out):
    gate, up, down = _whole(kernels, x.dtype, stored)

    def one_chunk(sums, chunk):
      x, d_out = chunk
      hidden, vjp = jax.vjp(_hidden, x @ gate, x @ up)
      d_gate, d_up = vjp(d_out @ down.T)
      dx = d_gate @ gate.T + d_up @ up.T
      pairs = (x, d_gate), (x, d_up), (hidden, d_out)
      sums = [
        sum_ + jnp.einsum('CX,CY->XY', *pair, preferred_element_type=sum_.dtype)
        for sum_, pair in zip(sums, pairs, strict=True)
      ]
      return sums, dx

    zeros = [jnp.zeros(k.shape, jnp.float32) for k in (gate, up, down)]
    chunks = to_chunks(x, chunk_len), to_chunks(d_out, chunk_len)
    sums, dx = jax.lax.scan(one_chunk, zeros, chunks)
    dx = sum_over(from_chunks(dx, x.shape), split_axes(parallel, 'tensor'))
    d_kernels = tuple(
      sum_over(scatter_sum(sum_, stored, dim), others).astype(kernel.dtype)
      for sum_, kernel, dim in zip(sums, kernels, (0, 0, 1), strict=True)
    )
    return dx, d_kernels

  run = _over_shards(
    on_a_shard, parallel, D, ('x', 'kernels', 'x'), ('x', 'kernels')
  )
  return run(x, kernels, d_out)


_mlp.defvjp(_forward, _backward)
