"""All that is measured after a stage."""

import logging
import time
from typing import Any

from jax.sharding import Mesh

from longctx_jax.config import StageConfig
from longctx_jax.data.prepare import Corpus
from longctx_jax.evals.haystack import Haystack
from longctx_jax.evals.needle import mean_by_length, needle_grid
from longctx_jax.evals.predict import Predictor
from longctx_jax.evals.tables import table_accuracy
from longctx_jax.evals.validation import validation_loss

log = logging.getLogger(__name__)


def evaluate(
  config: StageConfig, params: Any, corpus: Corpus, mesh: Mesh
) -> dict[str, Any]:
  """Needle grids, table accuracies and validation losses, ready for JSON."""
  began = time.monotonic()
  evals, predictor = config.evals, Predictor.of_stage(config, params, mesh)
  grids = needle_grids(config, predictor, corpus)
  tables = table_accuracy(
    predictor,
    corpus.chat,
    lengths=evals.table_lengths,
    samples=evals.table_samples,
    seed=config.seed,
  )
  loss, by_position = validation_loss(
    predictor,
    corpus.heldout,
    length=evals.validation_len,
    num_rows=evals.validation_rows,
    seed=config.seed,
  )
  log.info('%s: validation loss %.3f', config.name, loss)
  return {
    'needle': grids,
    'tables': tables,
    'val_loss': loss,
    'val_loss_by_position': by_position,
    'wall_s': time.monotonic() - began,
  }


def needle_grids(
  config: StageConfig, predictor: Predictor, corpus: Corpus
) -> dict[str, dict[str, dict[str, float]]]:
  """The single- and the multi-needle grid, and a line of each in the log."""
  grids = {}
  haystack = Haystack(corpus.heldout, corpus.tokenizer)
  needle = config.evals.needle
  for name, num_needles in (('single', 1), ('multi', needle.num_needles)):
    grids[name] = needle_grid(
      predictor,
      corpus.chat,
      haystack,
      needle,
      num_needles=num_needles,
      seed=config.seed,
    )
    means = mean_by_length(grids[name]).items()
    shown = ', '.join(f'{length}: {100 * x:.0f}%' for length, x in means)
    log.info('%s: %s needle %s', config.name, name, shown)
  return grids
