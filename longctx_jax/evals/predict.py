"""What a model would say at every position: losses and greedy predictions.

Greedy decoding gives exactly an expected answer iff, with the answer itself as
input, the most likely token at each of its positions is the answer's next one.
So exact match needs one forward pass and no decoding loop.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from longctx_jax import sharding
from longctx_jax.batch import Batch
from longctx_jax.config import StageConfig
from longctx_jax.model import model_graph
from longctx_jax.ops.cross_entropy import token_losses_and_predictions


# One function for all predictors: stages whose models are alike share what it
# compiles.
@functools.partial(jax.jit, static_argnums=0)
def _predict(graph: nnx.GraphDef, params: Any, batch: Batch):
  model = nnx.merge(graph, params)
  x = model(batch.tokens, batch.segment_ids, batch.positions)
  return token_losses_and_predictions(
    x,
    model.unembedding_matrix(),
    batch.targets,
    chunk_len=model.config.loss_chunk_len,
  )


class Predictor:
  """A model's parameters, ready to be asked about rows of any length."""

  def __init__(self, config: StageConfig, params: Any, mesh: Mesh):
    self._params, self._mesh = params, mesh
    self._batch_tokens = config.evals.batch_tokens
    self._multiple = mesh.shape['data'] * mesh.shape['fsdp']
    # Rows stay in order, so that predictions need not be put back into it.
    parallel = sharding.context_parallel(config.mesh, mesh)
    self._graph = model_graph(
      config.model, config.rope, parallel._replace(layout='contiguous')
    )

  def rows(
    self, rows: Sequence[np.ndarray]
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each row of tokens [T]: losses [T - 1] and predictions [T - 1].

    Entry t is about token t + 1, given those up to t. Rows are padded to the
    next power of two, or multiple of 8,192, of the longest, so that few shapes
    are compiled: bring together rows of similar lengths.
    """
    longest = max(len(row) for row in rows)
    T = 1 << (longest - 1).bit_length()
    T = min(T, longest + -longest % 8192)
    T += -T % self._mesh.shape['context']
    batch_size = max(self._batch_tokens // T, 1)
    batch_size += -batch_size % self._multiple
    for first in range(0, len(rows), batch_size):
      group = rows[first : first + batch_size]
      batch = jax.device_put(
        _pad_rows(group, batch_size, T), sharding.batch_sharding(self._mesh)
      )
      losses, predictions = map(
        np.asarray, _predict(self._graph, self._params, batch)
      )
      for k, row in enumerate(group):
        used = len(row) - 1
        yield losses[k, :used], predictions[k, :used]


def _pad_rows(rows, batch_size, T) -> Batch:
  tokens = np.zeros((batch_size, T), np.int32)
  segment_ids = np.zeros((batch_size, T), np.int32)
  for k, row in enumerate(rows):
    tokens[k, : len(row)] = row
    segment_ids[k, : len(row)] = 1
  targets = np.zeros_like(tokens)
  targets[:, :-1] = tokens[:, 1:]
  positions = np.broadcast_to(np.arange(T, dtype=np.int32), tokens.shape)
  weights = np.zeros(tokens.shape, np.float32)
  return Batch(tokens, targets, weights, segment_ids, positions)
