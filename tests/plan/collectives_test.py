"""What a step sends, against counts by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from longctx_jax.config import MeshConfig
from longctx_jax.ops.context_parallel import (
  ContextParallel,
  context_parallel_attention,
)
from longctx_jax.plan.collectives import (
  axes_of,
  collectives,
  replica_groups,
)
from longctx_jax.plan.hlo import parse_program
from longctx_jax.plan.plan_stage import ring_trips
from longctx_jax.sharding import make_mesh
from tests import small

ONE_SLICE = np.zeros(8, int)


def sent(compiled, mesh, trips=lambda _: None, slice_of=ONE_SLICE):
  """{(kind, axis): (count, bytes)} of a compiled function."""
  found = collectives(
    parse_program(compiled.as_text()), trips, dict(mesh.shape), slice_of
  )
  assert len({(one.kind, one.axis) for one in found}) == len(found)
  return {(one.kind, one.axis): (one.count, one.bytes) for one in found}


def compiled(f, mesh, *args):
  """`f`, for float32 arrays given as (shape, spec)."""
  return (
    jax.jit(f)
    .lower(
      *(
        jax.ShapeDtypeStruct(
          shape, jnp.float32, sharding=NamedSharding(mesh, spec)
        )
        for shape, spec in args
      )
    )
    .compile()
  )


def on_shards(f, mesh, spec, out):
  return jax.shard_map(
    f, mesh=mesh, in_specs=spec, out_specs=out, check_vma=False
  )


@pytest.mark.parametrize(
  ('f', 'out', 'kind', 'num_bytes'),
  [
    # Of 4 chips with 64 of 256 numbers each, one sends:
    (
      lambda x: jax.lax.all_gather(x, 'context', tiled=True),
      P('fsdp'),
      'all-gather',
      256 * 4 * 3 / 4,
    ),
    (
      lambda x: jax.lax.psum(x, 'context'),
      P(),
      'all-reduce',
      64 * 4 * 2 * 3 / 4,
    ),
    (
      lambda x: jax.lax.psum_scatter(x, 'context', tiled=True),
      P(('fsdp', 'context')),
      'reduce-scatter',
      64 * 4 * 3 / 4,
    ),
    (
      lambda x: jax.lax.ppermute(
        x, 'context', [(0, 1), (1, 2), (2, 3), (3, 0)]
      ),
      P(('fsdp', 'context')),
      'collective-permute',
      64 * 4,
    ),
    (
      lambda x: jax.lax.all_to_all(
        x.reshape(4, 16), 'context', 0, 0, tiled=True
      ).reshape(-1),
      P(('fsdp', 'context')),
      'all-to-all',
      64 * 4 * 3 / 4,
    ),
  ],
  ids=lambda value: value if isinstance(value, str) else '',
)
def test_each_kind_sends_what_is_counted_by_hand(f, out, kind, num_bytes):
  mesh = make_mesh(MeshConfig(fsdp=2, context=4))
  spec = P(('fsdp', 'context'))
  step = compiled(on_shards(f, mesh, spec, out), mesh, ((512,), spec))
  assert sent(step, mesh) == {(kind, 'context'): (1, num_bytes)}


def test_what_a_scan_sends_is_counted_for_each_turn():
  mesh = make_mesh(MeshConfig(fsdp=8))

  def layers(x, weights):
    def layer(x, weight):
      # Gathered in each layer, as `fsdp` has it.
      whole = jax.lax.all_gather(weight, 'fsdp', tiled=True)
      return jnp.tanh(x @ whole), None

    return jax.lax.scan(layer, x, weights)[0]

  f = on_shards(layers, mesh, (P('fsdp'), P(None, 'fsdp')), P('fsdp'))
  step = compiled(f, mesh, ((8, 16), P('fsdp')), ((5, 16, 16), P(None, 'fsdp')))
  assert sent(step, mesh) == {
    ('all-gather', 'fsdp'): (5, 5 * 16 * 16 * 4 * 7 / 8)
  }


@pytest.mark.parametrize(
  ('document_len', 'layout', 'hops', 'home'),
  [
    # One document: all keys go round; their gradients are then a hop from home.
    (0, 'contiguous', 3, 1),
    (0, 'zigzag', 3, 1),
    # Documents of a shard each: none leave it.
    (64, 'contiguous', 0, 0),
    # Over two shards, or over a half of each of them: one hop, and one back.
    (128, 'contiguous', 1, 1),
  ],
)
def test_a_ring_sends_keys_and_values_once_round(
  document_len, layout, hops, home
):
  B, T, N, H, R = 2, 256, 4, 8, 4
  mesh = make_mesh(MeshConfig(data=2, fsdp=1, context=R))
  parallel = ContextParallel(mesh, 'ring', layout)
  config = small.stage_config(
    data={'seq_len': T}, model={'attention_block_len': 32}
  )

  def loss(q, k, v, segment_ids):
    attend = functools.partial(
      context_parallel_attention, parallel=parallel, block_len=32
    )
    return jnp.sum(
      attend(q, k, v, segment_ids=segment_ids.astype(jnp.int32)) ** 2
    )

  spec = P('data', 'context')
  step = compiled(
    jax.grad(loss, argnums=(0, 1, 2)),
    mesh,
    *[((B, T, N, H), spec)] * 3,
    ((B, T), spec),
  )
  trips = ring_trips(parallel, config, document_len)
  permute = 'collective-permute', 'context'
  count, num_bytes = sent(step, mesh, trips).get(permute, (0, 0))
  keys_and_values = 2 * T // R * N * H * 4  # of the row that a device has
  moves = (
    hops  # forward
    + hops  # backward: keys and values again,
    + hops  # and their gradients, one visit behind,
    + min(hops, 1)  # which follow at last,
    + home  # and go home
  )
  assert num_bytes == moves * keys_and_values
  assert count == 2 * moves


def test_between_slices_it_is_the_network_that_is_used():
  mesh = make_mesh(MeshConfig(data=2, fsdp=4))
  spec = P(('data', 'fsdp'))

  def f(x):
    return jax.lax.psum(x, 'data'), jax.lax.psum(2 * x, 'fsdp')

  step = compiled(
    on_shards(f, mesh, spec, (P('fsdp'), P('data'))), mesh, ((512,), spec)
  )
  found = collectives(
    parse_program(step.as_text()),
    lambda _: None,
    dict(mesh.shape),
    np.repeat([0, 1], 4),
  )
  assert {one.axis: one.crosses_slices for one in found} == {
    'data': True,
    'fsdp': False,
  }


# As TPUs have it: one gather begins in a fusion and ends in another, which hold
# a copy of it each; one is started and awaited.
SPREAD = """\
HloModule step, is_scheduled=true

%begin (a: f32[64]) -> f32[256] {
  %a = f32[64]{0} parameter(0)
  ROOT %begun = f32[256]{0} all-gather(%a), channel_id=7, \
replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
}

%end (b: f32[64]) -> f32[256] {
  %b = f32[64]{0} parameter(0)
  ROOT %ended = f32[256]{0} all-gather(%b), channel_id=7, \
replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
}

ENTRY %main (x: f32[64]) -> f32[256] {
  %x = f32[64]{0} parameter(0)
  %one = f32[256]{0} fusion(%x), kind=kCustom, calls=%begin
  %same = f32[256]{0} fusion(%x), kind=kCustom, calls=%end
  %start = (f32[64]{0}, f32[256]{0}) all-gather-start(%x), channel_id=8, \
replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  ROOT %done = f32[256]{0} all-gather-done(%start)
}
"""


def test_what_tpus_spread_over_instructions_is_sent_once():
  mesh = {'fsdp': 2, 'context': 4}
  program = parse_program(SPREAD)
  (gathers,) = collectives(program, lambda _: None, mesh, ONE_SLICE)
  assert (gathers.kind, gathers.axis) == ('all-gather', 'context')
  assert (gathers.count, gathers.bytes) == (2, 2 * 256 * 4 * 3 / 4)


# As libtpu writes what two slices of four chips tell each other, in a scan.
BY_HOSTS = """\
HloModule step, is_scheduled=true

ENTRY %main (x: f32[2,128], y: bf16[8]) -> f32[2,128] {
  %x = f32[2,128]{1,0} parameter(0)
  %y = bf16[8]{0} parameter(1)
  %t = token[] after-all()
  %s.1 = (f32[2,128]{1,0:T(8,128)}, u32[], token[]) send(%x, %t), \
channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %r.1 = (f32[2,128]{1,0}, u32[], token[]) recv(%t), channel_id=1, \
is_host_transfer=true, \
frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %s.2 = (bf16[8]{0}, u32[], token[]) send(%y, %t), channel_id=3, \
is_host_transfer=true, \
frontend_attributes={_xla_megascale_transfer_type="ALL_GATHER"}
  %s.3 = (bf16[8]{0}, u32[], token[]) send(%y, %t), channel_id=4, \
is_host_transfer=true
  ROOT %z = f32[2,128]{1,0} negate(%x)
}
"""


@pytest.mark.parametrize(
  ('slices', 'reduced', 'gathered'), [(2, 1, 1), (4, 1.5, 3)]
)
def test_what_hosts_send_between_slices_counts(slices, reduced, gathered):
  mesh = {'data': 2 * slices, 'fsdp': 2}
  found = collectives(
    parse_program(BY_HOSTS),
    lambda _: None,
    mesh,
    np.repeat(np.arange(slices), 4),
  )
  assert {(one.kind, one.axis, one.count, one.bytes) for one in found} == {
    ('all-reduce', 'data', 1, reduced * 4 * 2 * 128),
    ('all-gather', 'data', 1, gathered * 2 * 8),
  }
  assert all(one.crosses_slices for one in found)


@pytest.mark.parametrize(
  ('attributes', 'groups'),
  [
    ('replica_groups={{0,2},{1,3}}, x', [(0, 2), (1, 3)]),
    ('replica_groups=[2,2]<=[4], x', [(0, 1), (2, 3)]),
    ('replica_groups=[2,2]<=[2,2]T(1,0), x', [(0, 2), (1, 3)]),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", [(0, 1), (2, 3)]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [(0, 2), (1, 3)]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [(0, 1, 2, 3)]),
    ('source_target_pairs={{0,1},{1,0}}, x', [(0, 1), (1, 0)]),
    ('replica_groups={}, x', [(0, 1, 2, 3)]),
  ],
)
def test_groups_are_read_in_all_ways_that_they_are_written(attributes, groups):
  assert replica_groups(attributes, 4) == groups


def test_axes_are_those_along_which_members_differ():
  sizes = {'data': 2, 'fsdp': 2, 'context': 2}
  assert axes_of([(0, 1), (2, 3)], sizes) == 'context'
  assert axes_of([(0, 4)], sizes) == 'data'
  assert axes_of([(0, 1, 2, 3)], sizes) == 'fsdp+context'
  assert axes_of([(0,), (1,)], sizes) == ''
  # A permute's pairs may each go another way.
  assert axes_of([(0, 2), (2, 3)], sizes) == 'fsdp+context'
