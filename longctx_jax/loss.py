"""The training loss, as a sum and a weight that travel together.

Callers add both over micro-batches, rows and devices, and divide once. A mean
taken earlier would weigh tokens by how full their shard happens to be
(EasyContext issue 38, Megatron-LM issue 673).
"""

import jax
import jax.numpy as jnp

from longctx_jax.batch import Batch
from longctx_jax.model import Transformer
from longctx_jax.ops.cross_entropy import cross_entropy_sum


def loss_sum_and_weight(
  model: Transformer, batch: Batch
) -> tuple[jax.Array, jax.Array]:
  """Weighted sum of token losses, and the sum of the weights; float32."""
  x = model(batch.tokens, batch.segment_ids, batch.positions)
  loss_sum = cross_entropy_sum(
    x,
    model.unembedding_matrix(),
    batch.targets,
    batch.loss_weights,
    chunk_len=model.config.loss_chunk_len,
    parallel=model.parallel,
  )
  return loss_sum, jnp.sum(batch.loss_weights)
