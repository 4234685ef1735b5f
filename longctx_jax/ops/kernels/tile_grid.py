"""How a TPU kernel walks over the tiles that are needed, and no others.

The grid of a kernel is key/value heads times a list of the needed tiles
(`ops.tiles`), by their outer blocks: an outer block's accumulator stays in VMEM
while its inner blocks pass.

  needed   1 . .     outer  0 1 1 2    query blocks (for the gradients of keys
           1 1 .                       and values, key blocks)
           . . .     inner  0 0 1 -    query block 2: only to write its zeros

The list is made on the device and its length bounds the grid at run time: a
tile that causality or documents rule out is neither read nor stepped over, in
whatever order a shard holds its tokens. Like the block table of
SplashAttention (`jax.experimental.pallas.ops.tpu.splash_attention`, whose mask
is known when it is compiled), it is prefetched to SMEM, so that the blocks of
the next tile are on their way while this one is computed.

SMEM holds a megabyte, and a list may be as long as there are tiles. Rows of
more than MAX_TILES are therefore cut by outer blocks into parts, and the kernel
runs once for each: 512K queries and keys, in blocks of 512, make 16 parts.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Int

from longctx_jax.ops.attention import Place

LANES = 128  # of a vector register
MAX_TILES = 65_536  # ours: two int32 each, half of a core's SMEM
VMEM_BYTES = 48 * 2**20  # ours: room for blocks of 1024; a v5p core has 64 MiB


class Side(NamedTuple):
  """The queries or the keys of a call: how they are cut and laid out.

  Parts are filled up with padding, heads to whole registers. Heads become
  blocks of lanes, [T, N * H]: no array is transposed, and the query heads of
  one key/value head lie side by side. Numbers per query are [K, G, T]; as
  columns, which Mosaic repeats along 128 lanes, they would take more room in
  HBM than the queries.
  """

  length: int
  block_len: int
  num_parts: int
  blocks_per_part: int

  @property
  def part_len(self):
    """Of a part, padding included."""
    return self.blocks_per_part * self.block_len

  def heads(self, x):
    """[B, T, N, H] -> [B, parts, C, N * H]."""
    x = jnp.pad(x, [(0, 0)] * 3 + [(0, -x.shape[3] % LANES)])
    return self._split(x.reshape(*x.shape[:2], -1))

  def join_heads(self, x, N, H):
    """Back from `heads`."""
    x = x.reshape(x.shape[0], -1, N, x.shape[3] // N)
    return x[:, : self.length, :, :H]

  def heads_out(self, N, H):
    """What a kernel writes for `join_heads`."""
    width = N * (H + -H % LANES)
    return jax.ShapeDtypeStruct((self.part_len, width), jnp.float32)

  def numbers(self, x, K):
    """[B, T, N] -> [B, parts, K, G, C]."""
    x = jnp.swapaxes(self._split(x), 2, 3)
    return x.reshape(*x.shape[:2], K, -1, x.shape[3])

  def join_numbers(self, x):
    """Back from `numbers`."""
    x = jnp.swapaxes(x.reshape(*x.shape[:2], -1, x.shape[4]), 2, 3)
    return x.reshape(x.shape[0], -1, x.shape[3])[:, : self.length]

  def numbers_out(self, K, G):
    """What a kernel writes for `join_numbers`."""
    return jax.ShapeDtypeStruct((K, G, self.part_len), jnp.float32)

  def place(self, place: Place):
    """-> [B, parts, 2, C]: segment ids above indices."""
    index = jnp.broadcast_to(place.index, place.segment_ids.shape)
    both = jnp.stack([place.segment_ids, index], axis=-1).astype(jnp.int32)
    return jnp.swapaxes(self._split(both), 2, 3)

  def _split(self, x):
    """[B, T, ...] -> [B, parts, C, ...], zero-padded."""
    pad = [(0, 0)] * x.ndim
    pad[1] = 0, self.num_parts * self.part_len - self.length
    x = jnp.pad(x, pad)
    return x.reshape(x.shape[0], self.num_parts, -1, *x.shape[2:])


def cut_sides(
  outer_len: int, inner_len: int, block_len: int
) -> tuple[Side, Side]:
  """Both sides of a kernel's tiles; only the outer one has several parts.

  Raises:
    ValueError: if blocks do not fill registers, or are so small that one outer
      block's list of inner ones does not fit in SMEM.
  """
  if block_len < 1 or block_len % LANES:
    raise ValueError(
      f'block_len={block_len}: on TPUs it must be a multiple of {LANES}'
    )

  def blocks(length):
    C = min(block_len, length + -length % LANES)
    return C, pl.cdiv(length, C)

  outer_block_len, num_outer = blocks(outer_len)
  inner_block_len, num_inner = blocks(inner_len)
  if num_inner > MAX_TILES:
    raise ValueError(
      f'block_len={block_len} cuts {inner_len} tokens into {num_inner} blocks, '
      f'but lists of more than {MAX_TILES} tiles may not fit in SMEM'
    )
  num_parts = pl.cdiv(num_outer, MAX_TILES // num_inner)
  blocks_per_part = pl.cdiv(num_outer, num_parts)  # as equal as they can be
  num_parts = pl.cdiv(num_outer, blocks_per_part)
  return (
    Side(outer_len, outer_block_len, num_parts, blocks_per_part),
    Side(inner_len, inner_block_len, 1, num_inner),
  )


def run_over_tiles(
  kernel: Callable[..., None],
  needed: Bool[Array, 'B outer_blocks inner_blocks'],
  sides: tuple[Side, Side],
  outer_arrays: list[Array],
  inner_arrays: list[Array],
  out_shapes: list[jax.ShapeDtypeStruct],
  scratch_shapes: list[pltpu.VMEM],
  *,
  num_kv_heads: int,
  interpret: bool,
) -> list[Array]:
  """Runs a kernel over the needed tiles of every row and part.

  Args:
    kernel: function of refs: the list's outer and inner blocks (for
      `tile_state`), then blocks of the arrays, outputs and scratch.
    needed: which tiles are.
    sides: outer and inner.
    outer_arrays: [B, parts, ...] as the outer `Side` lays them out.
    inner_arrays: the same of the inner side.
    out_shapes: of a part's outputs, which belong to the outer side.
    scratch_shapes: of what an outer block keeps between its tiles.
    num_kv_heads: K.
    interpret: run the kernel as plain JAX operations, on any platform.

  Returns:
    The outputs, each [B, parts, ...].
  """
  outer, inner = sides

  def outer_spec(x):
    return _block_spec(x, num_kv_heads, outer.block_len, lambda t, o, i: o[t])

  def inner_spec(x):
    # Where nothing is needed any block will do: it is not looked at.
    return _block_spec(
      x, num_kv_heads, inner.block_len, lambda t, o, i: jnp.maximum(i[t], 0)
    )

  def one_part(needed, outer_arrays, inner_arrays):
    tiles = list_tiles(needed)
    return pl.pallas_call(
      kernel,
      grid_spec=pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=(num_kv_heads, tiles.count),
        in_specs=[
          *(outer_spec(x) for x in outer_arrays),
          *(inner_spec(x) for x in inner_arrays),
        ],
        out_specs=[outer_spec(x) for x in out_shapes],
        scratch_shapes=scratch_shapes,
      ),
      out_shape=out_shapes,
      compiler_params=pltpu.CompilerParams(
        # A v5p's two cores may share the heads, not an accumulator.
        dimension_semantics=('parallel', 'arbitrary'),
        vmem_limit_bytes=VMEM_BYTES,
      ),
      interpret=interpret,
    )(tiles.outer, tiles.inner, *outer_arrays, *inner_arrays)

  def one_row(row):
    needed, outer_arrays, inner_arrays = row
    inner_arrays = [x[0] for x in inner_arrays]  # its only part
    return jax.lax.map(
      lambda part: one_part(*part, inner_arrays), (needed, outer_arrays)
    )

  B, num_outer, num_inner = needed.shape
  fill = outer.num_parts * outer.blocks_per_part - num_outer
  needed = jnp.pad(needed, ((0, 0), (0, fill), (0, 0)))
  needed = needed.reshape(B, outer.num_parts, -1, num_inner)
  return jax.lax.map(one_row, (needed, outer_arrays, inner_arrays))


def tile_state(outer_blocks, inner_blocks):
  """Is this tile its outer block's first, to be computed, its last?"""
  t, end = pl.program_id(1), pl.num_programs(1) - 1
  here = outer_blocks[t]
  first = (t == 0) | (outer_blocks[jnp.maximum(t - 1, 0)] != here)
  last = (t == end) | (outer_blocks[jnp.minimum(t + 1, end)] != here)
  return first, inner_blocks[t] >= 0, last


class Tiles(NamedTuple):
  """A kernel's tiles, in order; the lists mean nothing beyond `count`."""

  outer: Int[Array, ' tiles']
  inner: Int[Array, ' tiles']  # -1: nothing to compute
  count: Int[Array, '']


def list_tiles(needed: Bool[Array, 'outer_blocks inner_blocks']) -> Tiles:
  """The needed tiles by outer block, and one for each block without any."""
  idle = ~jnp.any(needed, axis=1)
  listed = needed.at[:, 0].set(needed[:, 0] | idle)
  order = jnp.argsort(~listed.reshape(-1), stable=True).astype(jnp.int32)
  outer, inner = order // needed.shape[1], order % needed.shape[1]
  count = jnp.sum(listed, dtype=jnp.int32)
  return Tiles(outer, jnp.where(idle[outer], -1, inner), count)


def _block_spec(x, K, block_len, block_of):
  """Blocks of heads [T, N * H], numbers [K, G, T] or places [2, T]."""
  if x.ndim == 3:
    shape = None, x.shape[1], block_len
    return pl.BlockSpec(shape, lambda head, *tile: (head, 0, block_of(*tile)))
  if x.dtype == jnp.int32:
    shape = 2, block_len
    return pl.BlockSpec(shape, lambda head, *tile: (0, block_of(*tile)))
  shape = block_len, x.shape[1] // K
  return pl.BlockSpec(shape, lambda head, *tile: (block_of(*tile), head))
