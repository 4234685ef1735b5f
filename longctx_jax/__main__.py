"""`longctx VERB --flags`: verbs to functions, and errors to one clear line."""

import logging
import sys
from pathlib import Path

import jax
from absl import flags

from longctx_jax.checkpoint import CheckpointError
from longctx_jax.command_line import USAGE, fail, parse_flags
from longctx_jax.config import (
  ConfigError,
  StageConfig,
  from_config_dict,
  stages_from_recipe,
)
from longctx_jax.corpus_page import write_corpus_page
from longctx_jax.data.prepare_beam import beam_runner
from longctx_jax.data.prepare_pipeline import prepare_at_scale, run_here
from longctx_jax.data.store_format import StoreError
from longctx_jax.data.tokenizer import TokenizerError
from longctx_jax.generate import PromptError
from longctx_jax.inspection.stage import inspect_stage
from longctx_jax.model_verbs import (
  convert_verb,
  evaluate_verb,
  generate_verb,
)
from longctx_jax.recipe import rewrite_report, run_recipe
from longctx_jax.weights.tensor_table import WeightsError

# What a user can cause and mend: one line, no traceback.
USER_ERRORS = (
  CheckpointError,
  ConfigError,
  FloatingPointError,
  OSError,
  PromptError,
  StoreError,
  TokenizerError,
  WeightsError,
)


def _define_runner(values: flags.FlagValues) -> None:
  flags.DEFINE_string(
    'runner',
    '',
    'Apache Beam runner, such as DirectRunner; none needs no Beam, and runs one'
    ' task after the other in this process',
    flag_values=values,
  )
  flags.DEFINE_multi_string(
    'runner_option',
    [],
    'option of the runner, such as direct_num_workers=4; may be repeated',
    flag_values=values,
  )


def _prepare(argv: list[str]) -> None:
  values = parse_flags(
    'prepare',
    argv,
    config=True,
    directories={'out': 'directory of the corpus'},
    define=_define_runner,
  )
  if values.runner_option and not values.runner:
    fail('--runner_option is for a --runner: give one (longctx prepare --help)')
  if 'stages' in values.config:
    stage = stages_from_recipe(values.config)[0]
  else:
    stage = from_config_dict(StageConfig, values.config)
  run = run_here
  if values.runner:
    run = beam_runner(values.runner, values.runner_option)
  out = Path(values.out)
  prepare_at_scale(stage.corpus, out, seed=stage.seed, run=run)
  print(f'corpus: {out}\nstatistics: {write_corpus_page(out)}')


def _recipe(argv: list[str]) -> None:
  values = parse_flags('recipe', argv, config=True)
  workdir = Path(values.workdir)
  _print_summary(
    run_recipe(stages_from_recipe(values.config), workdir), workdir
  )


def _train(argv: list[str]) -> None:
  values = parse_flags('train', argv, config=True)
  if 'stages' in values.config:
    fail('this config is of several stages: it is run by `longctx recipe`')
  stage = from_config_dict(StageConfig, values.config)
  workdir = Path(values.workdir)
  _print_summary(run_recipe((stage,), workdir), workdir)


def _report(argv: list[str]) -> None:
  values = parse_flags('report', argv, config=False)
  print(rewrite_report(Path(values.workdir)))


def _inspect(argv: list[str]) -> None:
  values = parse_flags('inspect', argv, config=True, define=_inspect_flags)
  if 'stages' in values.config:
    stages = stages_from_recipe(values.config)
  else:
    stages = (from_config_dict(StageConfig, values.config),)
  # Documents may hold characters that a terminal lacks.
  sys.stdout.reconfigure(errors='replace')
  # No accelerator is needed, and a run may be holding the one that is there.
  jax.config.update('jax_platforms', 'cpu')
  print(
    inspect_stage(
      stages,
      Path(values.workdir),
      name=values.stage,
      step=values.step,
      num_rows=values.rows,
      num_steps=values.steps,
      text=values.text,
    )
  )


def _inspect_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_string(
    'stage', '', 'stage of a recipe, else its first', flag_values=values
  )
  for name, default, least, what in (
    ('step', 0, 0, 'step whose rows are shown, from 0'),
    ('rows', 4, 1, 'how many of its rows'),
    ('steps', 10, 1, 'how many steps are counted from there on'),
  ):
    flags.DEFINE_integer(
      name, default, what, lower_bound=least, flag_values=values
    )
  flags.DEFINE_bool(
    'text', False, 'print instead of writing inspect.html', flag_values=values
  )


VERBS = {
  'prepare': _prepare,
  'recipe': _recipe,
  'train': _train,
  'report': _report,
  'inspect': _inspect,
  'convert': convert_verb,
  'generate': generate_verb,
  'evaluate': evaluate_verb,
}


def _print_summary(summary: dict, workdir: Path) -> None:
  """A line a stage: needle accuracy by length, losses, time."""
  lengths = list(summary['stages'][0]['needle'])
  head = ['stage', 'steps', *(f'@{n}' for n in lengths), 'val loss', 'seconds']
  rows = [
    [
      stage['name'],
      str(stage['steps']),
      *(f'{100 * stage["needle"][n]:.0f}%' for n in lengths),
      f'{stage["val_loss"]:.3f}',
      f'{stage["wall_s"]:.0f}',
    ]
    for stage in summary['stages']
  ]
  widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
  print('\nneedle accuracy by length, after each stage')
  for row in (head, *rows):
    cells = zip(row, widths, strict=True)
    print('  '.join(cell.rjust(width) for cell, width in cells))
  print(f'\nreport: {workdir / "report.html"}')


def main() -> None:
  """Runs the verb on the command line."""
  argv = sys.argv[1:]
  if not argv or argv[0] in ('-h', '--help', 'help'):
    print(USAGE)
    raise SystemExit(0 if argv else 2)
  verb, *rest = argv
  if verb not in VERBS:
    fail(f'no verb {verb!r}; there are {", ".join(VERBS)}')
  logging.basicConfig(
    level=logging.WARNING,
    format='%(asctime)s %(message)s',
    datefmt='%H:%M:%S',
    force=True,  # libraries that are imported have set up handlers of their own
  )
  logging.getLogger('longctx_jax').setLevel(logging.INFO)
  # Orbax logs the tracebacks of what it raises; our one line says it.
  logging.getLogger('absl').setLevel(logging.CRITICAL)
  # With several virtual CPU devices on few cores, two steps in flight deadlock
  # XLA's collectives. Batches are read ahead by threads either way.
  jax.config.update('jax_cpu_enable_async_dispatch', False)
  # Grain reads a flag of its own when it starts processes; ours are elsewhere.
  flags.FLAGS.mark_as_parsed()
  try:
    VERBS[verb](rest)
  except USER_ERRORS as error:
    print(f'longctx: {error}', file=sys.stderr)
    raise SystemExit(1) from None
  except KeyboardInterrupt:
    fail('interrupted; the same command goes on where it stopped')


if __name__ == '__main__':
  main()
