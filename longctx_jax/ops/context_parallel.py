"""Attention of rows that are split over the mesh axis 'context'.

Three kinds, all equal to `dense_attention` of the whole rows, values and
gradients. Per layer, with q of N heads, k and v of K, a shard sends in all

  ring        (R-1) / R of k and v; gradients of k and v in float32, once round.
              With short documents a few hops' worth (`ops.ring_attention`).
  allgather   the same, in one collective before the work instead of during it
  ulysses     1/R of q, k, v and the output, over heads (arXiv:2309.14509)

Only 'ulysses' bounds R: it must divide N.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from longctx_jax.array_types import typed
from longctx_jax.ops import blockwise_attention as blockwise
from longctx_jax.ops.attention import Place, check_heads, places
from longctx_jax.ops.ring_attention import Ring, ring_attention
from longctx_jax.ops.sequence_layout import (
  Layout,
  check_layout,
  shard_index,
  stored_index,
)

Kind = Literal['ring', 'allgather', 'ulysses']
KINDS = ('ring', 'allgather', 'ulysses')
AXIS = 'context'
# What splits the width D of every kernel, for memory's sake.
PARAM_AXES = ('fsdp', 'context')


class WholeRowKernel(NamedTuple):
  """What attends whole rows in order, with a gradient of its own.

  For libraries that, unlike a `TileKernel`, take no parts of rows.
  """

  attend: Callable[..., Array]  # (q, k, v, segment_ids=, block_len=) -> out


class ContextParallel(NamedTuple):
  """How rows are split, and how their parts attend to each other."""

  mesh: Mesh
  kind: Kind = 'ring'
  layout: Layout = 'contiguous'
  # Over which of `PARAM_AXES`, beside tensor, the loss splits the vocabulary.
  vocab_axes: tuple[str, ...] = ('context',)
  # Whether the parts of `data` are on their own, in a `shard_map` over that
  # axis: arrays are then those of one part, and no op sends anything to others.
  apart: bool = False

  @property
  def num_shards(self) -> int:
    """R."""
    return self.mesh.shape.get(AXIS, 1)

  @property
  def axis_sizes(self) -> dict[str, int]:
    """Of the axes that an op's arrays may be split over."""
    sizes = dict(self.mesh.shape)
    if self.apart:
      del sizes['data']
    return sizes

  @property
  def row_axes(self) -> tuple[str, ...]:
    """What splits the rows of a batch."""
    return tuple(axis for axis in ('data', 'fsdp') if axis in self.axis_sizes)

  @property
  def row_shards(self) -> int:
    """Among how many shards the rows of a batch are shared."""
    return math.prod(self.axis_sizes[axis] for axis in self.row_axes)

  def over_shards(self, function, in_specs, out_specs) -> Callable:
    """`jax.shard_map` over `axis_sizes`."""
    return jax.shard_map(
      function,
      # Inside of another one, the mesh is that one's.
      mesh=None if self.apart else self.mesh,
      in_specs=in_specs,
      out_specs=out_specs,
      axis_names=set(self.axis_sizes),
      check_vma=False,  # the gradients are ours: nothing for JAX to infer
    )

  @property
  def platform(self) -> str:
    """Of the devices: 'cpu', 'gpu', 'tpu'."""
    return self.mesh.devices.flat[0].platform

  @property
  def compute_capability(self) -> tuple[int, ...]:
    """Of NVIDIA's GPUs, (9, 0) for one; () of other devices."""
    device = self.mesh.devices.flat[0]
    # AMD's GPUs give the name of an architecture here; CPUs have none.
    version = str(getattr(device, 'compute_capability', ''))
    if not re.fullmatch(r'\d+\.\d+', version):
      return ()
    return tuple(int(part) for part in version.split('.'))

  @property
  def has_whole_rows(self) -> bool:
    """Whether a device attends to whole rows, stored in order."""
    traded = self.kind == 'ulysses' and self.layout == 'contiguous'
    return traded or self.num_shards == 1

  def fit_block(self, block_len: int, T: int) -> int:
    """`block_len`, or a chunk's length if that is shorter.

    A block that held two chunks of zigzag would be needed wherever either is.
    """
    if self.layout == 'zigzag' and self.num_shards > 1:
      return min(block_len, T // (2 * self.num_shards))
    return block_len


@typed
def context_parallel_attention(
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B T K H'],
  v: Float[Array, 'B T K H'],
  *,
  segment_ids: Int[Array, 'B T'] | None = None,
  parallel: ContextParallel,
  block_len: int = 512,
  kernel: blockwise.TileKernel | WholeRowKernel = blockwise.XLA,
) -> Float[Array, 'B T N H']:
  """`dense_attention` over a mesh; all arrays are stored in the layout.

  Rows lie over mesh axes `data` and `fsdp`, tokens over `context`, heads over
  `tensor`; an axis that the mesh lacks splits nothing.

  Raises:
    ValueError: B, T, N or K does not divide over its axis, the mesh has axes
      that are not automatic, or the kernel is one for whole rows and no device
      has them.
  """
  B, T, N, _ = q.shape
  mesh, kind, layout = parallel.mesh, parallel.kind, parallel.layout
  R = parallel.num_shards
  check_mesh(mesh)
  check_heads(N, k.shape[2])
  check_layout(layout, T, R)
  check_split(parallel, N, k.shape[2])
  check_rows(parallel, B)
  block_len = parallel.fit_block(block_len, T)
  segment_ids = places(B, T, segment_ids, None).segment_ids
  rows = parallel.row_axes
  context, heads = (a if a in mesh.shape else None for a in (AXIS, 'tensor'))
  whole_rows = isinstance(kernel, WholeRowKernel)
  if whole_rows and not parallel.has_whole_rows:
    raise ValueError(
      f'a kernel for whole rows cannot attend to parts of them: kind {kind!r},'
      f' layout {layout!r} on {R} context shards'
    )
  if R == 1:
    attend_rows = (
      kernel.attend
      if whole_rows
      else functools.partial(blockwise.blockwise_attention, kernel=kernel)
    )

    def attend(q, k, v, segment_ids):
      return attend_rows(q, k, v, segment_ids=segment_ids, block_len=block_len)

  else:
    others = tuple(axis for axis in parallel.axis_sizes if axis != AXIS)
    ring = Ring(AXIS, others, R, layout, kernel, block_len)
    attend_parts = _ulysses_whole_rows if whole_rows else _ATTEND[kind]
    attend = functools.partial(attend_parts, ring=ring)
  split = P(rows or None, context, heads, None)
  in_specs = split, split, split, P(rows or None, context)
  return parallel.over_shards(attend, in_specs, split)(q, k, v, segment_ids)


def check_mesh(mesh: Mesh) -> None:
  """Raises ValueError unless XLA decides what lies where on the mesh.

  On `Explicit` axes, the default of `jax.make_mesh`, all inputs would have to
  be split just so already, and what the model makes of them.
  """
  if any(kind != AxisType.Auto for kind in mesh.axis_types):
    raise ValueError(
      f'the axes of {mesh} must be Auto: make it by jax.make_mesh(sizes, names,'
      ' axis_types=(jax.sharding.AxisType.Auto,) * len(names))'
    )


def check_rows(parallel: ContextParallel, B: int) -> None:
  """Raises ValueError unless rows divide over the mesh."""
  if B % parallel.row_shards:
    raise ValueError(
      f'{B} rows do not divide over the {parallel.row_shards} shards of mesh'
      " axes 'data' and 'fsdp'"
    )


def check_split(parallel: ContextParallel, N: int, K: int) -> None:
  """Raises ValueError unless the heads divide over the mesh."""
  kind, R = parallel.kind, parallel.num_shards
  tensor = parallel.mesh.shape.get('tensor', 1)
  if kind not in KINDS:
    raise ValueError(f'unknown kind {kind!r}; there are {", ".join(KINDS)}')
  if N % tensor or K % tensor:
    raise ValueError(
      f'num_heads={N} and num_kv_heads={K} do not divide over the {tensor}'
      " shards of mesh axis 'tensor'"
    )
  if kind == 'ulysses' and (N // tensor) % R:
    raise ValueError(
      f"kind 'ulysses' splits heads: the {N // tensor} heads of a device do not"
      f' divide over {R} context shards; use ring or allgather'
    )


# All-gather -----------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _allgather(q, k, v, segment_ids, ring):
  return _allgather_forward(q, k, v, segment_ids, ring)[0]


def _allgather_forward(q, k, v, segment_ids, ring):
  queries, keys = _own_and_all_places(segment_ids, ring)
  all_k, all_v = _gather(k, ring), _gather(v, ring)
  out, lse = blockwise.keep(
    *ring.kernel.forward(q, all_k, all_v, queries, keys, ring.block_len)
  )
  return out.astype(q.dtype), (q, k, v, segment_ids, out, lse)


def _allgather_backward(ring, residuals, d_out):
  q, k, v, segment_ids, out, lse = residuals
  queries, keys = _own_and_all_places(segment_ids, ring)
  delta = blockwise.row_delta(out, d_out)
  all_k, all_v = _gather(k, ring), _gather(v, ring)
  dq, *dkv = ring.kernel.backward(
    q, all_k, all_v, d_out, lse, delta, queries, keys, ring.block_len
  )
  dk, dv = (
    jax.lax.psum_scatter(x, ring.axis, scatter_dimension=1, tiled=True)
    for x in dkv
  )
  return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_allgather.defvjp(_allgather_forward, _allgather_backward)


def _gather(x, ring):
  return jax.lax.all_gather(x, ring.axis, axis=1, tiled=True)


def _own_and_all_places(segment_ids, ring):
  T, R = segment_ids.shape[1], ring.num_shards
  shard = jax.lax.axis_index(ring.axis)
  own = Place(segment_ids, shard_index(ring.layout, shard, T, R))
  everywhere = jnp.asarray(stored_index(ring.layout, T * R, R))
  return own, Place(_gather(segment_ids, ring), everywhere)


# Ulysses --------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _ulysses(q, k, v, segment_ids, ring):
  return _ulysses_forward(q, k, v, segment_ids, ring)[0]


def _ulysses_forward(q, k, v, segment_ids, ring):
  _, everywhere = _own_and_all_places(segment_ids, ring)
  out, lse = blockwise.keep(
    *ring.kernel.forward(
      *_split_heads(q, k, v, ring), everywhere, everywhere, ring.block_len
    )
  )
  to_tokens = _to_tokens(out.astype(q.dtype), ring)
  return to_tokens, (q, k, v, segment_ids, out, lse)


def _ulysses_backward(ring, residuals, d_out):
  q, k, v, segment_ids, out, lse = residuals
  _, everywhere = _own_and_all_places(segment_ids, ring)
  d_out = _to_heads(d_out, ring)
  delta = blockwise.row_delta(out, d_out)
  grads = ring.kernel.backward(
    *_split_heads(q, k, v, ring),
    d_out,
    lse,
    delta,
    everywhere,
    everywhere,
    ring.block_len,
  )
  dq, *dkv = (_to_tokens(x, ring) for x in grads)
  # Copies of a head add their gradients, in float32 as all sums.
  dk, dv = (
    x.reshape(*k.shape[:3], -1, k.shape[3]).sum(axis=3).astype(k.dtype)
    for x in dkv
  )
  return dq.astype(q.dtype), dk, dv, None


_ulysses.defvjp(_ulysses_forward, _ulysses_backward)


def _ulysses_whole_rows(q, k, v, segment_ids, ring):
  # The kernel has its own gradient, and so have the collectives around it.
  # Copies of a head add theirs in its dtype: there is no float32 to be had.
  out = ring.kernel.attend(
    *_split_heads(q, k, v, ring),
    segment_ids=_gather(segment_ids, ring),
    block_len=ring.block_len,
  )
  return _to_tokens(out, ring)


def _split_heads(q, k, v, ring):
  # As few copies of key/value heads as let R shards have equal shares.
  copies = math.lcm(k.shape[2], ring.num_shards) // k.shape[2]
  k, v = (jnp.repeat(x, copies, axis=2) for x in (k, v))
  return (_to_heads(x, ring) for x in (q, k, v))


def _to_heads(x, ring):
  """[B, T/R, N, H] -> [B, T, N/R, H]."""
  return jax.lax.all_to_all(x, ring.axis, 2, 1, tiled=True)


def _to_tokens(x, ring):
  """[B, T, N/R, H] -> [B, T/R, N, H]."""
  return jax.lax.all_to_all(x, ring.axis, 1, 2, tiled=True)


_ATTEND = {'ring': ring_attention, 'allgather': _allgather, 'ulysses': _ulysses}
