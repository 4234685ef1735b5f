"""Ring attention over the shards of a row, on as few hops as documents need.

Runs inside `shard_map`. Each shard keeps its queries; keys and values travel
from shard to shard (arXiv:2310.01889), and the parts are merged by their
log-sum-exp in float32. While a shard works on the keys that it has, the next
are on their way.

How far keys travel is decided at run time, alike on all shards: where documents
are short, a hop or two. Up is towards the next shard. Zigzag needs both
directions, because a document that runs over chunks 1 and 2 lies on shards 1
and 2, and one over chunks 2R-3 and 2R-2 on shards 2 and 1:

  hops made             one document   documents within two chunks
  contiguous            R-1 up         1 up
  zigzag                R-1 up         1 up, 1 down
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from longctx_jax.array_types import typed
from longctx_jax.ops.attention import Place
from longctx_jax.ops.blockwise_attention import (
  MASKED,
  TileKernel,
  keep,
  row_delta,
)
from longctx_jax.ops.sequence_layout import Layout, shard_index
from longctx_jax.ops.tiles import count_tiles, shard_extents


class Ring(NamedTuple):
  """What is the same on all shards, and known when the program is built."""

  axis: str
  other_axes: tuple[str, ...]  # the mesh's other axes
  num_shards: int
  layout: Layout
  kernel: TileKernel
  block_len: int


class Hops(NamedTuple):
  """How far keys travel in each direction."""

  up: Int[Array, '']
  down: Int[Array, '']


@typed
def needed_hops(needed: Bool[Array, 'R R'], layout: Layout) -> Hops:
  """The fewest hops after which every shard has met the keys it needs.

  Args:
    needed: whether shard r needs the keys of shard s.
    layout: of 'contiguous' shards, those needed lie below: all keys go up.

  With zigzag, keys that are needed far up may come down from the other side.
  """
  R = needed.shape[0]
  shards = jnp.arange(R, dtype=jnp.int32)
  upward = (shards[:, None] - shards[None, :]) % R  # hops up from s to r
  wanted = jnp.zeros(R, bool).at[upward].max(needed)  # by hops up
  if layout == 'contiguous':
    up = jnp.max(shards, initial=0, where=wanted)
    return Hops(up, jnp.zeros_like(up))
  # If keys go up u hops, what is wanted from farther has to come down.
  farther = wanted[None, :] & (shards[None, :] > shards[:, None])
  down = R - jnp.min(
    jnp.broadcast_to(shards, (R, R)), axis=1, initial=R, where=farther
  )
  # The last of equals: one direction is simpler than two.
  up = R - 1 - jnp.argmin((shards + down)[::-1]).astype(jnp.int32)
  return Hops(up, down[up])


# Loops whose trips are decided at run time carry these names into the compiled
# program, by which `longctx plan` knows them there.
UP, DOWN, LATE, BACK, ONWARD = (
  f'ring_{name}' for name in ('up', 'down', 'late', 'back', 'onward')
)


def loop_trips(hops: Hops, num_shards: int) -> dict[tuple[str, ...], int]:
  """How often each loop runs in a ring that makes these hops, by its names."""
  trips = {}
  for leg, first, last in ((UP, 0, hops.up), (DOWN, 1, hops.down)):
    moves = max(int(last) - first, 0)
    back, onward = map(int, way_home(last, num_shards))
    trips |= {
      (leg,): moves,
      (leg, LATE): min(moves, 1),
      (leg, BACK): back,
      (leg, ONWARD): onward,
    }
  return trips


def way_home(hops: Array, num_shards: int) -> tuple[Array, Array]:
  """Hops back and hops onward, one of them 0, of the shorter way round."""
  onward = (num_shards - hops) % num_shards
  turn = hops <= onward
  return jnp.where(turn, hops, 0), jnp.where(turn, 0, onward)


@typed
def ring_attention(
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B T K H'],
  v: Float[Array, 'B T K H'],
  segment_ids: Int[Array, 'B T'],
  ring: Ring,
) -> Float[Array, 'B T N H']:
  """`dense_attention` of the whole rows, for the shard that calls it.

  All are of this shard's T tokens of rows that are stored in `ring.layout`.
  """
  return _attend(q, k, v, segment_ids, ring)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, segment_ids, ring):
  return _forward(q, k, v, segment_ids, ring)[0]


def _forward(q, k, v, segment_ids, ring):
  tour = _Tour(segment_ids, ring)

  def visit(part, kv, keys):
    new = ring.kernel.forward(q, *kv, tour.queries, keys, ring.block_len)
    return merge(part, new)

  def travel(leg, kv, part):
    def one_hop(distance, carry):
      kv, part = carry
      next_kv = tour.move(kv, leg.shift)
      return next_kv, visit(part, kv, tour.keys(leg, distance))

    kv, part = jax.lax.fori_loop(leg.first, leg.hops, one_hop, (kv, part))
    return visit(part, kv, tour.keys(leg, leg.hops))

  nothing = (
    jnp.zeros(q.shape, jnp.float32),
    jnp.full(q.shape[:3], MASKED, jnp.float32),
  )
  out, lse = keep(*tour.run(travel, (k, v), nothing))
  return out.astype(q.dtype), (q, k, v, segment_ids, out, lse)


def _backward(ring, residuals, d_out):
  q, k, v, segment_ids, out, lse = residuals
  tour = _Tour(segment_ids, ring)
  delta = row_delta(out, d_out)

  def visit(dq, kv, keys):
    to_dq, *to_dkv = ring.kernel.backward(
      q, *kv, d_out, lse, delta, tour.queries, keys, ring.block_len
    )
    return dq + to_dq, to_dkv

  add = functools.partial(jax.tree.map, jnp.add)

  def travel(leg, kv, grads):
    dq, dkv_home = grads

    def one_hop(distance, carry):
      kv, dkv, dq = carry
      next_kv = tour.move(kv, leg.shift)
      # Gradients follow their keys one visit behind, so that neither transfer
      # waits for this visit. The first time there are none yet.
      dkv = tour.move(dkv, leg.shift)
      dq, to_dkv = visit(dq, kv, tour.keys(leg, distance))
      return next_kv, add(dkv, to_dkv), dq

    none = [jnp.zeros(x.shape, jnp.float32) for x in kv]
    kv, dkv, dq = jax.lax.fori_loop(
      leg.first, leg.hops, one_hop, (kv, none, dq)
    )
    with jax.named_scope(LATE):
      moves = jnp.minimum(leg.hops - leg.first, 1)
      dkv = tour.move_by(dkv, leg.shift, moves)
    dq, to_dkv = visit(dq, kv, tour.keys(leg, leg.hops))
    dkv = tour.bring_home(add(dkv, to_dkv), leg)
    return dq, add(dkv_home, dkv)

  zeros = [jnp.zeros(x.shape, jnp.float32) for x in (q, k, v)]
  dq, (dk, dv) = tour.run(travel, (k, v), (zeros[0], zeros[1:]))
  return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_attend.defvjp(_forward, _backward)


# Attention to some keys, and the log-sum-exp of their scores.
Part = tuple[Float[Array, 'B T N H'], Float[Array, 'B T N']]


@typed
def merge(a: Part, b: Part) -> Part:
  """Attention to two sets of keys together, from (out, lse) to each; float32.

  Weights are taken against the larger lse, so that neither can overflow, and
  two that are MASKED stay so.
  """
  (out_a, lse_a), (out_b, lse_b) = a, b
  largest = jnp.maximum(lse_a, lse_b)
  weight_a, weight_b = jnp.exp(lse_a - largest), jnp.exp(lse_b - largest)
  total = weight_a + weight_b
  out = out_a * (weight_a / total)[..., None]
  out += out_b * (weight_b / total)[..., None]
  return out, jnp.where(largest <= MASKED, MASKED, largest + jnp.log(total))


class _Leg(NamedTuple):
  """Keys met in one direction: those from `first` to `hops` hops away."""

  shift: int  # 1 is up, -1 down
  first: int
  hops: Array


class _Tour:
  """Who is where: places of this shard's queries and of the keys it meets."""

  def __init__(self, segment_ids, ring: Ring):
    self._ring = ring
    R, axis = ring.num_shards, ring.axis
    self._shard = jax.lax.axis_index(axis)
    self._indices = jnp.stack(
      [shard_index(ring.layout, r, segment_ids.shape[1], R) for r in range(R)]
    )
    # A token's id is thousands of times smaller than its key and value: all
    # ids are told to all once, and only keys and values travel.
    self._segment_ids = jax.lax.all_gather(segment_ids, axis)  # [R, B, T/R]
    extents = shard_extents(self._segment_ids, self._indices, ring.block_len)
    needed = jnp.any(count_tiles(extents, extents) > 0, axis=0)
    if ring.other_axes:
      # Devices that hold other rows run the same loops, so they must agree on
      # what is needed before it is planned: plans cannot be put together.
      needed = jax.lax.pmax(needed.astype(jnp.int32), ring.other_axes) > 0
    self._hops = needed_hops(needed, ring.layout)
    self.queries = Place(segment_ids, self._indices[self._shard])

  def run(self, travel, kv, carry):
    """carry = travel(leg, kv, carry) upwards, then down if keys go there."""
    with jax.named_scope(UP):
      carry = travel(_Leg(1, 0, self._hops.up), kv, carry)
    if self._ring.layout == 'contiguous':
      return carry
    down = _Leg(-1, 1, self._hops.down)
    with jax.named_scope(DOWN):
      return jax.lax.cond(
        down.hops > 0,
        lambda kv, carry: travel(down, self.move(kv, -1), carry),
        lambda kv, carry: carry,
        kv,
        carry,
      )

  def keys(self, leg: _Leg, distance) -> Place:
    """Places of the keys that came `distance` hops."""
    source = (self._shard - leg.shift * distance) % self._ring.num_shards
    return Place(self._segment_ids[source], self._indices[source])

  def move(self, tree, shift: int):
    """One hop: each shard hands on what it has and gets its neighbour's."""
    R = self._ring.num_shards
    pairs = [(r, (r + shift) % R) for r in range(R)]
    return jax.lax.ppermute(tree, self._ring.axis, pairs)

  def move_by(self, tree, shift: int, hops):
    """As many hops."""
    return jax.lax.fori_loop(
      0, hops, lambda _, tree: self.move(tree, shift), tree
    )

  def bring_home(self, tree, leg: _Leg):
    """Back from `leg.hops` hops away, the shorter way round."""
    back, onward = way_home(leg.hops, self._ring.num_shards)
    with jax.named_scope(BACK):
      tree = self.move_by(tree, -leg.shift, back)
    with jax.named_scope(ONWARD):
      return self.move_by(tree, leg.shift, onward)
