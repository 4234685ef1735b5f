"""The terms of a step's time, by hand and against the compiler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from longctx_jax.plan.collectives import Collective
from longctx_jax.plan.hlo import parse_program
from longctx_jax.plan.step_time import hbm_bytes, step_time
from longctx_jax.plan.topology import CHIPS, topology_devices

V5P = CHIPS['v5p']


def collective(kind, num_bytes, size=4, crosses=False):
  return Collective(kind, 'context', size, 1, num_bytes, crosses)


def terms(*sent, flops=0.0, num_bytes=0.0):
  return step_time(V5P, 8, hardware_flops=flops, hbm_bytes=num_bytes, sent=sent)


def test_each_term_is_the_time_of_one_part_at_its_peak():
  # Published: 459 TFLOP/s, 2,765 GB/s; 1,200 GB/s over 6 links both ways, so
  # 100 GB/s a link one way; 50 Gbit/s of network.
  assert terms(flops=8 * 459e12).compute == pytest.approx(1)
  assert terms(num_bytes=2765e9).hbm == pytest.approx(1)
  assert terms(collective('collective-permute', 1e11)).ici == pytest.approx(1)
  assert terms(collective('all-gather', 2e11)).ici == pytest.approx(1)
  assert terms(collective('all-to-all', 2e11, size=8)).ici == pytest.approx(2)
  between = terms(collective('all-reduce', 6.25e9, crosses=True))
  assert (between.ici, between.dcn) == (0, pytest.approx(1))


def test_the_longest_term_is_the_bottleneck_and_the_prediction():
  time = terms(
    collective('all-gather', 4e11), flops=8 * 459e12, num_bytes=2765e8
  )
  assert time.bottleneck == 'ici'
  assert time.step_s == pytest.approx(2)
  assert time.unhidden_s == pytest.approx(2 + 1 + 0.1)


def accessed(f, *shapes, mesh=None):
  """(ours, the compiler's) bytes of a compiled function."""
  where = NamedSharding(mesh, P()) if mesh else None
  arrays = (
    jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where) for shape in shapes
  )
  compiled = jax.jit(f).lower(*arrays).compile()
  program = parse_program(compiled.as_text())
  return hbm_bytes(program, lambda _: None), compiled.cost_analysis()[
    'bytes accessed'
  ]


@pytest.mark.slow
def test_bytes_are_those_of_the_compiler():
  pytest.importorskip('libtpu')
  mesh = Mesh(np.array(topology_devices('v5e:1x1')), 'x')

  def f(x, y):
    return jnp.tanh(x @ y) @ y

  # Too large for VMEM, which the compiler's figure includes.
  M, K = 32_768, 4096
  ours, theirs = accessed(f, (M, K), (K, K), mesh=mesh)
  # x, y, the tanh in bfloat16 written and read, y again, and the result.
  assert ours == 4 * M * K + 4 * K * K + 2 * 2 * M * K + 4 * K * K + 4 * M * K
  # The compiler has the tanh at four bytes on one of its ways.
  assert 0.8 * theirs < ours < 1.05 * theirs


def test_only_the_slice_that_a_loop_reads_and_writes_is_counted():
  size, turns = 1024, 16

  def f(x):
    return jax.lax.scan(
      lambda total, row: (total + row, total * row), 0 * x[0], x
    )

  ours, theirs = accessed(f, (turns, size))
  row = size * 4
  # A turn reads a row and the total, and writes as much; nothing like all rows.
  assert 3 * turns * row < ours < 12 * turns * row
  assert theirs < ours  # it counts one turn
