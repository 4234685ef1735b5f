"""Ring attention on 8 virtual CPU devices against PyPI's `ringattention`.

Forward and backward pass, causal, float32, S=8192, 4 heads of 16, chunks of
256: one document a row, and documents of an eighth of the row. The alternative
takes the documents as segment ids too, and computes all of the scores.

    pip install ringattention==0.1.2
    python -m benchmarks.ring_attention --out=ring_attention.json
"""

import argparse
import functools
import os
import types

os.environ['JAX_PLATFORMS'] = 'cpu'

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from benchmarks import cpu_kernel
from benchmarks.timing import measure_all, medians, report
from longctx_jax.ops.context_parallel import (
  ContextParallel,
  context_parallel_attention,
)
from longctx_jax.ops.sequence_layout import from_layout, to_layout

R, T, N, H = 8, 8192, 4, 16
CHUNK, BLOCK_LEN = 256, 128  # theirs and ours: each at its best


def import_ringattention():
  """The package asks an old module of JAX for the backend."""
  from jax.extend import backend

  jax.lib.xla_bridge = types.SimpleNamespace(get_backend=backend.get_backend)
  from ringattention import ringattention

  return ringattention


def theirs(mesh):
  """(q, k, v, segment_ids) -> out by `ringattention`."""
  ringattention = import_ringattention()
  attend = functools.partial(
    ringattention,
    axis_name='context',
    float32_logits=True,
    cache_idx=None,
    blockwise_kwargs={
      'causal_block_size': 1,
      'deterministic': True,
      'dropout_rng': None,
      'attn_pdrop': 0.0,
      'query_chunk_size': CHUNK,
      'key_chunk_size': CHUNK,
      'dtype': jnp.float32,
      'policy': jax.checkpoint_policies.nothing_saveable,
      'precision': None,
      'prevent_cse': False,
    },
  )
  split = P(None, 'context', None, None)

  def run(q, k, v, segment_ids):
    bias = jnp.zeros((1, 1, 1, T), jnp.float32)
    return jax.shard_map(
      attend,
      mesh=mesh,
      in_specs=(split, split, split, P(), P(None, None)),
      out_specs=split,
      check_vma=False,
    )(q, k, v, bias, segment_ids)

  return run


def ours(mesh, kernel):
  """(q, k, v, segment_ids) -> out, all stored in zigzag."""
  parallel = ContextParallel(mesh, 'ring', 'zigzag')

  def run(q, k, v, segment_ids):
    return context_parallel_attention(
      q,
      k,
      v,
      segment_ids=segment_ids,
      parallel=parallel,
      block_len=BLOCK_LEN,
      kernel=kernel,
    )

  return run


def gradient(attend, *args):
  """Compiles (q, k, v, segment_ids, d_out) -> dq, dk, dv."""

  def run(q, k, v, segment_ids, d_out):
    _, vjp = jax.vjp(lambda q, k, v: attend(q, k, v, segment_ids), q, k, v)
    return vjp(d_out)

  return jax.jit(run).lower(*args).compile()


def measure(documents: int, mesh, repeats: int, kernel) -> dict[str, object]:
  """One line of the table."""
  rng = np.random.default_rng(0)
  q, k, v, d_out = (
    jnp.asarray(rng.normal(size=(1, T, N, H)), jnp.float32) for _ in range(4)
  )
  ids = np.repeat(np.arange(documents, dtype=np.int32) + 1, T // documents)
  sharding = jax.sharding.NamedSharding(mesh, P(None, 'context'))
  plain = [
    jax.device_put(x, sharding)
    for x in (q, k, v, jnp.asarray(ids)[None], d_out)
  ]
  zigzag = [jax.device_put(to_layout(x, 'zigzag', R), sharding) for x in plain]
  replicated = jax.sharding.NamedSharding(mesh, P())
  plain[3] = jax.device_put(plain[3], replicated)
  run_ours, run_theirs = (
    gradient(ours(mesh, kernel), *zigzag),
    gradient(theirs(mesh), *plain),
  )
  for a, b in zip(run_ours(*zigzag), run_theirs(*plain), strict=True):
    a = from_layout(np.asarray(a), 'zigzag', R)
    np.testing.assert_allclose(a, np.asarray(b), rtol=1e-3, atol=1e-3)
  seconds = medians(
    {
      'ours': functools.partial(run_ours, *zigzag),
      'ringattention': functools.partial(run_theirs, *plain),
    },
    repeats,
  )
  return {
    'documents a row': documents,
    'ours s': seconds['ours'],
    'ringattention s': seconds['ringattention'],
    'ratio': seconds['ringattention'] / seconds['ours'],
    'ours MB a device': run_ours.memory_analysis().temp_size_in_bytes / 1e6,
    'ringattention MB a device': run_theirs.memory_analysis().temp_size_in_bytes
    / 1e6,
  }


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', default='', help='JSON file to write')
  parser.add_argument('--repeats', type=int, default=5)
  cpu_kernel.add_flag(parser)
  args = parser.parse_args()
  jax.config.update('jax_num_cpu_devices', R)
  # Two programs with collectives in flight on few cores would deadlock.
  jax.config.update('jax_cpu_enable_async_dispatch', False)
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('context',))
  kernel = cpu_kernel.chosen_kernel(args.kernel)
  cases = [(documents, mesh, args.repeats, kernel) for documents in (1, R)]
  report(measure_all(measure, cases), args.out)


if __name__ == '__main__':
  main()
