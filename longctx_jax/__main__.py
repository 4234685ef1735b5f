"""`longctx VERB --flags`: verbs to functions, and errors to one clear line."""

import logging
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import jax
from absl import flags

from longctx_jax import hosts, preemption
from longctx_jax.checkpoint import CheckpointError
from longctx_jax.command_line import (
  USAGE,
  define_run_flags,
  fail,
  parse_flags,
  profile_window,
)
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
from longctx_jax.plan.topology import find_devices
from longctx_jax.plan_verb import plan_verb
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
# What takes less memory, by verb.
_SMALLER = {
  'generate': 'shorten the prompt, or give --dtype=bfloat16',
  'evaluate': 'give smaller --lengths, --batch_tokens or --dtype=bfloat16',
  'recipe': 'raise train.micro_batches, set model.remat=full, or take more'
  ' devices: `longctx plan` says beforehand what fits',
}
_SMALLER['train'] = _SMALLER['recipe']


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
  values = parse_flags('recipe', argv, config=True, define=define_run_flags)
  _run(stages_from_recipe(values.config), values)


def _train(argv: list[str]) -> None:
  values = parse_flags('train', argv, config=True, define=define_run_flags)
  if 'stages' in values.config:
    fail('this config is of several stages: it is run by `longctx recipe`')
  _run((from_config_dict(StageConfig, values.config),), values)


def _run(stages: tuple[StageConfig, ...], values: flags.FlagValues) -> None:
  """Trains, with all processes of the run; the first one prints."""
  profile_steps = profile_window(values.profile_steps)
  start = hosts.Start(
    values.coordinator,
    values.num_processes,
    values.process_id,
    values.start_timeout_s,
  )
  workdir = Path(values.workdir)
  with preemption.listening():
    hosts.start(start, hang_s=values.hang_s)
    find_devices()
    if not hosts.is_first():
      logging.getLogger('longctx_jax').setLevel(logging.WARNING)
    summary = run_recipe(stages, workdir, profile_steps=profile_steps)
    if hosts.is_first():
      _print_summary(summary, workdir)
    hosts.finish()


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
  'plan': plan_verb,
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
  except CheckpointError as error:
    hosts.wait_for_verdict()  # all write together: perhaps another one is gone
    _end(str(error), 1)
  except USER_ERRORS as error:
    _end(str(error), 1)
  except hosts.UnreachableError as error:
    _end(str(error), hosts.RESTART_CODE)
  except preemption.Preempted as stopped:
    _end(f'{stopped}; the same command goes on', hosts.RESTART_CODE)
  except KeyboardInterrupt:
    _end('interrupted; the same command goes on where it stopped', 2)
  except Exception as error:
    if hosts.count() == 1:
      # JAX has no type of its own for devices that are full.
      if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error):
        _end(_out_of_memory(error, verb), 1)
      raise
    # Ends here where another process is gone, which this error then is about.
    hosts.wait_for_verdict()
    traceback.print_exc()
    _end(f'{type(error).__name__}: {str(error).partition(chr(10))[0]}', 1)


def _out_of_memory(error: Exception, verb: str) -> str:
  reason = str(error).partition('\n')[0] or type(error).__name__
  advice = f': {_SMALLER[verb]}' if verb in _SMALLER else ''
  return f'out of memory ({reason}){advice}'


def _end(line: str, code: int) -> NoReturn:
  """Ends this process with one line, and all others of the run with it."""
  print(f'longctx: {line}', file=sys.stderr)
  hosts.leave(line, code)
  raise SystemExit(code)


if __name__ == '__main__':
  main()
