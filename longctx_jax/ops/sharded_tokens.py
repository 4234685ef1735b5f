"""Tokens and kernels inside of `jax.shard_map`, for ops that go by chunks.

A loop that XLA's partitioner splits adds up its kernels' gradients over all
devices in every pass, and gathers kernels there too. Inside of `shard_map` an
op says itself what is sent, once, before the loop and behind it. Collectives
over no axes do nothing: the same op runs on one device.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from longctx_jax.ops.context_parallel import PARAM_AXES, ContextParallel

Axes = tuple[str, ...]


def split_axes(parallel: ContextParallel | None, *names: str) -> Axes:
  """Those of `names` that have more than one device."""
  shape = {} if parallel is None else parallel.axis_sizes
  return tuple(name for name in names if shape.get(name, 1) > 1)


def kernel_axes(parallel: ContextParallel | None, D: int) -> Axes:
  """What splits a stored kernel's width D; nothing where it does not divide."""
  axes = split_axes(parallel, *PARAM_AXES)
  shards = math.prod(parallel.mesh.shape[name] for name in axes)
  return () if D % shards else axes


def token_specs(parallel: ContextParallel) -> tuple[P, P]:
  """Of arrays [B, T], and [B, T, D]."""
  rows = parallel.row_axes
  context = 'context' if 'context' in parallel.axis_sizes else None
  return P(rows or None, context), P(rows or None, context, None)


def gather(array: jax.Array, axes: Axes, dim: int = 0) -> jax.Array:
  """The parts of all devices along `axes`, one behind the other."""
  if not axes:
    return array
  return jax.lax.all_gather(array, axes, axis=dim, tiled=True)


def scatter_sum(array: jax.Array, axes: Axes, dim: int = 0) -> jax.Array:
  """The own part of the sum over `axes`: the way back of `gather`."""
  if not axes:
    return array
  return jax.lax.psum_scatter(array, axes, scatter_dimension=dim, tiled=True)


def sum_over(array, axes: Axes):
  """The sum over `axes`; of a tree of arrays too."""
  return jax.lax.psum(array, axes) if axes else array


def num_shards(axes: Axes) -> int:
  """Devices along `axes`."""
  return math.prod(jax.lax.axis_size(name) for name in axes)


def shard_index(axes: Axes) -> jax.Array | int:
  """Which of them this is."""
  return jax.lax.axis_index(axes) if axes else 0


def to_chunks(array: jax.Array, chunk_len: int) -> jax.Array:
  """[b, t, ...] as [num_chunks, C, ...], C <= chunk_len; padded with zeros."""
  array = array.reshape(-1, *array.shape[2:])
  num = array.shape[0]
  num_chunks = -(-num // max(chunk_len, 1))
  C = -(-num // num_chunks)
  padding = ((0, num_chunks * C - num),) + ((0, 0),) * (array.ndim - 1)
  return jnp.pad(array, padding).reshape(num_chunks, C, *array.shape[1:])


def from_chunks(chunks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """The way back, to `shape` [b, t, ...]."""
  tokens = chunks.reshape(-1, *chunks.shape[2:])
  return tokens[: shape[0] * shape[1]].reshape(shape)
