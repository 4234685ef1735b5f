"""A stage of a recipe, by its name, with the corpus of its run."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from longctx_jax.config import StageConfig
from longctx_jax.config_from_dict import ConfigError
from longctx_jax.data.prepare import prepare_corpus
from longctx_jax.inspection.as_text import as_text
from longctx_jax.inspection.page import write_inspection
from longctx_jax.inspection.rows import check_step, inspect_step
from longctx_jax.workdir import claim_workdir

log = logging.getLogger(__name__)


def inspect_stage(
  stages: Sequence[StageConfig],
  workdir: Path,
  *,
  name: str = '',
  step: int = 0,
  num_rows: int = 4,
  num_steps: int = 10,
  text: bool = False,
) -> str:
  """Looks at rows of a stage; the text, or the path of the page.

  Nothing is trained, and the workdir is not claimed: a run with another config
  may use it still. The corpus is made if it isn't there.

  Args:
    stages: those of the recipe; its first one's corpus is that of all.
    workdir: directory of the run.
    name: of the stage; '' is the first.
    step: whose rows are shown.
    num_rows: how many of them.
    num_steps: how many steps are counted from there on.
    text: whether to return plain text rather than write inspect.html.

  Raises:
    ConfigError: no such stage or step, or no corpus can be had.
    StoreError: the corpus is damaged.
  """
  found = [stage for stage in stages if name in ('', stage.name)]
  if not found:
    names = ', '.join(stage.name for stage in stages)
    raise ConfigError(f'--stage={name}: there is no such stage, only {names}')
  check_step(found[0], step)
  _warn_of_another_run(stages, workdir)
  corpus = prepare_corpus(
    stages[0].corpus, workdir / 'corpus', seed=stages[0].seed
  )
  inspection = inspect_step(
    found[0], corpus, step=step, num_rows=num_rows, num_steps=num_steps
  )
  if text:
    return as_text(inspection, corpus.chat)
  return str(write_inspection(inspection, corpus.chat, workdir))


def _warn_of_another_run(stages, workdir):
  """Says so where the workdir's run has other rows than those shown, maybe."""
  if not (workdir / 'config.json').exists():
    return
  try:
    claim_workdir(
      workdir, {'stages': [dataclasses.asdict(stage) for stage in stages]}
    )
  except ConfigError as error:
    log.warning('what follows may not be the rows of that run: %s', error)
