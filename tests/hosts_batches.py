"""One of several JAX processes that read a batch: run by `hosts_test`.

Arguments: its number, how many there are, a free port, a prepared corpus.
"""

import sys
from pathlib import Path

import jax
import numpy as np

from longctx_jax import sharding
from longctx_jax.data.pipeline import BatchSource, make_pipeline
from longctx_jax.data.prepare import prepare_corpus
from longctx_jax.ops.sequence_layout import to_layout
from longctx_jax.train import put_batch
from tests import small

MESHES = (
  {'fsdp': 8},
  {'data': 2, 'fsdp': 2, 'context': 2},
  {'fsdp': 2, 'context': 4},
  {'fsdp': 1, 'context': 8},
)


def check_batches(axes: dict[str, int], corpus_directory: Path) -> None:
  """Asserts that each device has its part of the batch of all hosts."""
  config = small.stage_config(mesh=axes)
  corpus = prepare_corpus(small.corpus_config(), corpus_directory, seed=0)
  mesh = sharding.make_mesh(config.mesh)
  parallel = sharding.context_parallel(config.mesh, mesh)
  source = BatchSource(config.data, corpus, seed=0, num_steps=2)
  read = make_pipeline(source, 8, host=sharding.host_block(mesh))
  for whole, rows in zip(make_pipeline(source, 8), read, strict=True):
    for field, on_mesh in zip(
      whole, put_batch(rows, config, mesh), strict=True
    ):
      expected = to_layout(field, parallel.layout, parallel.num_shards)
      assert on_mesh.shape == expected.shape
      for shard in on_mesh.addressable_shards:
        assert np.array_equal(shard.data, expected[shard.index])


if __name__ == '__main__':
  index, count, port = map(int, sys.argv[1:4])
  jax.config.update('jax_num_cpu_devices', 8 // count)
  jax.distributed.initialize(f'localhost:{port}', count, index)
  for axes in MESHES:
    check_batches(axes, Path(sys.argv[4]))
