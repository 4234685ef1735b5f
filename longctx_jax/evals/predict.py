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
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from longctx_jax import sharding
from longctx_jax.batch import Batch
from longctx_jax.config import (
  MeshConfig,
  ModelConfig,
  RopeConfig,
  StageConfig,
)
from longctx_jax.model import model_graph
from longctx_jax.ops.context_parallel import ContextParallel
from longctx_jax.ops.cross_entropy import token_losses_and_predictions
from longctx_jax.ops.sequence_layout import from_layout, to_layout


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
    parallel=model.parallel,
  )


def split_of_rows(
  model: ModelConfig, split: MeshConfig, mesh: Mesh, T: int
) -> ContextParallel:
  """How rows of T tokens are split: as in training, but short ones in order.

  Where a chunk of zigzag is shorter than a block of attention, there is less
  to balance than smaller blocks cost, and the kernels for TPUs refuse them.
  """
  parallel = sharding.context_parallel(split, mesh)
  block_len = model.attention_block_len
  if parallel.fit_block(block_len, T) < block_len:
    return parallel._replace(layout='contiguous')
  return parallel


class Predictor:
  """A model's parameters, ready to be asked about rows of any length.

  Rows are split over `mesh` as `split` says, and come in batches of about
  `batch_tokens`.
  """

  def __init__(
    self,
    model: ModelConfig,
    rope: RopeConfig,
    params: Any,
    mesh: Mesh,
    *,
    split: MeshConfig,
    batch_tokens: int,
  ):
    self._model, self._rope, self._params = model, rope, params
    self._mesh, self._split, self._batch_tokens = mesh, split, batch_tokens

  @classmethod
  def of_stage(
    cls, config: StageConfig, params: Any, mesh: Mesh
  ) -> 'Predictor':
    """That of a stage, in batches as its config says."""
    return cls(
      config.model,
      config.rope,
      params,
      mesh,
      split=config.mesh,
      batch_tokens=config.evals.batch_tokens,
    )

  def rows(
    self, rows: Sequence[np.ndarray], *, start: int = 0
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each row of tokens [T]: losses [T - 1] and predictions [T - 1].

    Entry t is about token t + 1, given those up to t. Rows are padded to the
    next power of two, or multiple of 8,192, of the longest, so that few shapes
    are compiled: bring together rows of similar lengths.

    Of rows from `start` on, the same to the bit as of all rows: each stands
    where it would in its batch. Batches before `start` are left out.
    """
    longest = max(len(row) for row in rows)
    T = 1 << (longest - 1).bit_length()
    T = min(T, longest + -longest % 8192)
    T += -T % (2 * self._mesh.shape['context'])  # the chunks of zigzag
    parallel = split_of_rows(self._model, self._split, self._mesh, T)
    graph = model_graph(self._model, self._rope, parallel)
    layout = parallel.layout, parallel.num_shards
    # A power of two, for the same reason, where there are only few.
    fewest = 1 << (len(rows) - 1).bit_length()
    batch_size = max(min(self._batch_tokens // T, fewest), 1)
    batch_size += -batch_size % parallel.row_shards
    # Rounding may depend on a batch's size, and on a row's place in it.
    for first in range(start - start % batch_size, len(rows), batch_size):
      group = rows[first : first + batch_size]
      padded = _pad_rows(group, batch_size, T)
      batch = Batch(*(self._put(to_layout(x, *layout)) for x in padded))
      # Every process gets all of it, whatever part lies on its devices.
      losses, predictions = (
        from_layout(process_allgather(x, tiled=True), *layout)
        for x in _predict(graph, self._params, batch)
      )
      for k in range(max(start - first, 0), len(group)):
        used = len(group[k]) - 1
        yield losses[k, :used], predictions[k, :used]

  def _put(self, x):
    """[B, T], the same on all processes, onto the mesh."""
    return jax.make_array_from_callback(
      x.shape, sharding.batch_sharding(self._mesh), lambda index: x[index]
    )


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
