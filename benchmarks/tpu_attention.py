"""What attention to one row of half a million tokens takes on TPU chips.

Nothing runs: libtpu compiles for chips that are not there, and says what its
programs need. One layer's attention, forward and backward, with the heads of
Llama-3-8B (32 of 128, 8 for keys and values) in bfloat16, by the Pallas
kernels. MiB are of a chip's HBM, beside inputs and results. In the loops over a
ring's hops, a transfer is hidden if the schedule has a kernel between its start
and its end.

    pip install libtpu
    python -m benchmarks.tpu_attention --out=tpu_attention.json
"""

import argparse
import itertools
import os
import re
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.timing import measure_all, report
from longctx_jax.ops.context_parallel import (
  ContextParallel,
  context_parallel_attention,
)
from longctx_jax.ops.kernels import tpu
from longctx_jax.plan.topology import quiet_libtpu, topology_devices

N, K, H = 32, 8, 128
KERNEL = 'custom_call_target="tpu_custom_call"'


def compile_gradient(topology: str, kind: str, layout: str, T: int):
  """(q, k, v, d_out, segment_ids) -> out, dq, dk, dv; split over the chips."""
  mesh = Mesh(np.array(topology_devices(topology)), ('context',))
  parallel = ContextParallel(mesh, kind, layout)

  def array(dtype, *shape):
    split = NamedSharding(mesh, P(None, 'context'))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

  def gradient(q, k, v, d_out, segment_ids):
    out, vjp = jax.vjp(
      lambda *qkv: context_parallel_attention(
        *qkv, segment_ids=segment_ids, parallel=parallel, kernel=tpu.PALLAS
      ),
      q,
      k,
      v,
    )
    return out, *vjp(d_out)

  q, k = (array(jnp.bfloat16, 1, T, n, H) for n in (N, K))
  args = q, k, k, q, array(jnp.int32, 1, T)
  return jax.jit(gradient).lower(*args).compile()


def hidden_transfers(hlo: str) -> str:
  """'6 of 6': transfers in the ring's loops that a kernel runs behind."""
  total = hidden = 0
  loops = set(re.findall(r' while\(.*body=%([\w.-]+)', hlo))
  for computation in re.split(r'\n(?=%|ENTRY)', hlo):
    lines = computation.splitlines()
    kernels = [i for i, line in enumerate(lines) if KERNEL in line]
    if not kernels or lines[0].split()[0].lstrip('%') not in loops:
      continue
    starts = {}
    for i, line in enumerate(lines):
      if found := re.search(r'%(\S+) = .* collective-permute-start\(', line):
        starts[found[1]] = i
      elif found := re.search(r'collective-permute-done\(.*?%([^\s,)]+)', line):
        total += 1
        hidden += any(starts[found[1]] < kernel < i for kernel in kernels)
  return f'{hidden} of {total}' if total else '-'


def measure(topology: str, kind: str, layout: str, T: int) -> dict[str, object]:
  """One line of the table."""
  began = time.perf_counter()
  with quiet_libtpu():
    compiled = compile_gradient(topology, kind, layout, T)
  seconds = time.perf_counter() - began
  memory = compiled.memory_analysis()
  return {
    'chips': topology,
    'kind': kind,
    'layout': layout,
    'T': T,
    'MiB': memory.temp_size_in_bytes / 2**20,
    'in and out MiB': (
      memory.argument_size_in_bytes + memory.output_size_in_bytes
    )
    / 2**20,
    'hidden': hidden_transfers(compiled.as_text()),
    'compile s': seconds,
  }


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', default='', help='JSON file to write')
  parser.add_argument(
    '--chips',
    nargs='+',
    default=['v5e:4x4', 'v5p:2x2x4', 'v6e:4x4'],
    help='topologies as libtpu names them',
  )
  parser.add_argument('--length', type=int, default=524_288, help='T')
  parser.add_argument(
    '--kinds', nargs='+', default=['ring', 'allgather', 'ulysses']
  )
  args = parser.parse_args()
  cases = itertools.product(args.chips, args.kinds, ['zigzag'], [args.length])
  report(measure_all(measure, cases), args.out)


if __name__ == '__main__':
  main()
