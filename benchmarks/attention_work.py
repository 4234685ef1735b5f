"""What documents leave of a 512K row's attention: tiles, hops, balance.

Counted, not run: these are the numbers that decide which tiles and hops are
made. Rows are those of ProLong's 512K stage (arXiv:2410.02660, Table 3): one
document of 512K, eight of 64K, or short ones end to end, whose lengths follow
ShortMix (Table 14: 10.9% are longer than 4K, 0.8% longer than 32K).

    python -m benchmarks.attention_work --out=attention_work.json
"""

import argparse
import os

os.environ['JAX_PLATFORMS'] = 'cpu'

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import measure_all, report
from longctx_jax.ops.attention_work import attention_work
from longctx_jax.ops.context_parallel import ContextParallel
from longctx_jax.ops.sequence_layout import to_layout

T = 524_288
BLOCK_LEN = 512
# log-normal through the two shares of Table 14: sigma = ln(32 / 4) / (z - z')
# for z = 2.409 (0.8%) and z' = 1.232 (10.9%); median = 4096 / e^(z' sigma).
SHORT_MEDIAN, SHORT_SIGMA = 465, 1.77


def short_documents(rng: np.random.Generator) -> np.ndarray:
  """Lengths of short documents that fill a row; the last is cut."""
  drawn = SHORT_MEDIAN * np.exp(SHORT_SIGMA * rng.normal(size=T // 64))
  lengths = np.maximum(drawn, 32).astype(int)
  return lengths[: np.searchsorted(np.cumsum(lengths), T) + 1]


def measure(
  name: str, lengths: np.ndarray, num_shards: int, layout: str
) -> dict[str, object]:
  """One line of the table."""
  ids = np.repeat(np.arange(len(lengths), dtype=np.int32) + 1, lengths)[:T]
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:num_shards]), ('context',))
  parallel = ContextParallel(mesh, 'ring', layout)
  stored = jnp.asarray(to_layout(ids[None], layout, num_shards))
  work = attention_work(stored, parallel, BLOCK_LEN)
  return {
    'row': name,
    'shards': num_shards,
    'layout': layout,
    'tiles': f'{float(work.tile_share):.1%}',
    'hops': f'{float(work.hop_share) * (num_shards - 1):.0f}',
    'of': num_shards - 1,
    'busiest / mean': float(work.imbalance),
  }


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', default='', help='JSON file to write')
  parser.add_argument('--shards', type=int, nargs='+', default=[8, 16])
  args = parser.parse_args()
  jax.config.update('jax_num_cpu_devices', max(args.shards))
  kinds = {
    'one document of 512K': np.array([T]),
    'documents of 64K': np.full(8, T // 8),
    'short documents': short_documents(np.random.default_rng(0)),
  }
  cases = [
    (name, lengths, num_shards, layout)
    for num_shards in args.shards
    for name, lengths in kinds.items()
    for layout in ('contiguous', 'zigzag')
  ]
  report(measure_all(measure, cases), args.out)


if __name__ == '__main__':
  main()
