"""Which planner makes the rows of a source: the names that configs use."""

import logging

import numpy as np

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.data import interleave, packing
from longctx_jax.data.row_plan import RowPlan, dropped_tokens, join_plans
from longctx_jax.data_config import (
  PLANNER_FIELDS,
  ConversationRows,
  DocumentRows,
)

PLANNERS = {
  'concat': packing.concat_rows,
  'concat_drop': packing.concat_and_drop_rows,
  'whole': packing.whole_document_rows,
  'best_fit': packing.best_fit_rows,
  'buckets': packing.bucket_rows,
  'interleave': interleave.interleaved_rows,
  'untie': interleave.untied_rows,
}

log = logging.getLogger(__name__)


def plan_rows(
  source: DocumentRows | ConversationRows,
  lengths: np.ndarray,
  row_len: int,
  rng: np.random.Generator,
  exempt: np.ndarray | None = None,
) -> RowPlan:
  """Rows of documents by the planner that a source names; logs what it drops.

  Args:
    source: the planner and its options.
    lengths: tokens of each document [n].
    row_len: longest row.
    rng: draws the plan.
    exempt: bool [n], documents to be kept out of interleaved rows: they get
      rows of their own, end to end (OLMo-core's `interleaving_exempt_paths`).

  Raises:
    ConfigError: if there is no row.
  """
  options = {
    name: getattr(source, name)
    for name in PLANNER_FIELDS[source.planner]
    if name != 'exempt'
  }
  planner = PLANNERS[source.planner]
  if exempt is None:
    plan = planner(lengths, row_len, rng, **options)
  else:
    # No planner makes anything of documents without tokens.
    plan = join_plans(
      planner(np.where(exempt, 0, lengths), row_len, rng, **options),
      packing.concat_rows(np.where(exempt, lengths, 0), row_len, rng),
    )
  total = int(lengths.sum())
  if not len(plan):
    raise ConfigError(
      f'planner={source.planner} makes no row of {row_len} tokens from'
      f' {len(lengths)} documents, the longest of {max(lengths, default=0)}:'
      ' give it longer ones, or take another planner'
    )
  dropped = dropped_tokens(plan, lengths)
  log.info(
    'planner %s: %d rows of %d tokens, %.1f%% full; %d of %d tokens dropped'
    ' (%.1f%%)',
    *(source.planner, len(plan), row_len),
    *(100 * plan.num_tokens / len(plan) / row_len, dropped, total),
    100 * dropped / total,
  )
  return plan
