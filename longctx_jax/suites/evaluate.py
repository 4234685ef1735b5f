"""`longctx evaluate`: suites on one model, their results, the page."""

import dataclasses
import functools
import json
import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh

from longctx_jax.cache_dir import cache_dir
from longctx_jax.config import MeshConfig
from longctx_jax.config_from_dict import ConfigError
from longctx_jax.corpus_config import TextSource
from longctx_jax.data.documents import read_documents
from longctx_jax.suites.fingerprint import fingerprint_weights
from longctx_jax.suites.infinitebench import TASKS, InfiniteBenchSuite
from longctx_jax.suites.lost_in_the_middle import LostInTheMiddleSuite
from longctx_jax.suites.needle import NEEDLES, NeedleSuite, NeedleText
from longctx_jax.suites.page import write_evaluation
from longctx_jax.suites.perplexity import perplexity
from longctx_jax.suites.prompter import Prompter
from longctx_jax.suites.run_suite import run_suite
from longctx_jax.suites.settings import check_settings
from longctx_jax.suites.suite import Grid, Suite
from longctx_jax.weights.loaded_model import LoadedModel
from longctx_jax.workdir import write_atomically

_logger = logging.getLogger(__name__)

SUITES = (
  *('needle', 'multi_needle', *TASKS, 'lost_in_the_middle', 'perplexity'),
)
# ours: of each source, enough for haystacks of a million tokens.
_TEXT_CHARS = 4_000_000


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What is asked of a model."""

  suites: tuple[str, ...]
  grid: Grid
  # A file or directory of text; '' is books, or the docs of Python offline.
  text: str = ''
  needle: Literal['number', 'sandwich'] = 'number'
  # One's own needle instead; all three.
  needle_sentence: str = ''
  needle_question: str = ''
  needle_answer: str = ''
  needle_at: Literal['sentence', 'token'] = 'sentence'
  num_needles: int = 4  # of multi_needle
  # Official examples of the one suite that is asked for.
  data: str = ''
  # Tokens whose context is varied in perplexity.
  num_targets: int = 256
  num_documents: int = 8  # ours: minutes on a laptop at 2K tokens
  # Whether the chat template is used, where the model has one.
  chat: bool = True
  batch_tokens: int = 16_384

  def __post_init__(self):
    unknown = [name for name in self.suites if name not in SUITES]
    if unknown or not self.suites:
      raise ConfigError(
        f'--suite={",".join(self.suites)}: there are {", ".join(SUITES)}'
      )
    for name, known in (
      ('needle', tuple(NEEDLES)),
      ('needle_at', ('sentence', 'token')),
    ):
      if getattr(self, name) not in known:
        raise ConfigError(
          f'--{name}={getattr(self, name)}: can be {", ".join(known)}'
        )
    for name in ('num_needles', 'num_targets', 'num_documents', 'batch_tokens'):
      if getattr(self, name) < 1:
        raise ConfigError(f'--{name}={getattr(self, name)} must be at least 1')
    if 'perplexity' in self.suites and max(self.grid.lengths) < 2:
      raise ConfigError(
        f'--lengths={max(self.grid.lengths)}: the suite perplexity needs 2'
        ' tokens at least, one before the one that is foretold'
      )
    own = (self.needle_sentence, self.needle_question, self.needle_answer)
    if any(own) and not all(own):
      raise ConfigError(
        'a needle of your own needs all of --needle_sentence,'
        ' --needle_question and --needle_answer'
      )
    takes_data = {*TASKS, 'lost_in_the_middle'}
    if self.data and (len(self.suites) > 1 or self.suites[0] not in takes_data):
      raise ConfigError(
        f'--data={self.data} is for one --suite of'
        f' {", ".join(sorted(takes_data))}'
      )


def evaluate_model(
  loaded: LoadedModel,
  evaluation: Evaluation,
  out: Path,
  mesh: Mesh,
  split: MeshConfig,
) -> dict[str, Any]:
  """Runs the suites, and writes results.json and evaluation.html into `out`.

  What `out` has already is not asked again, and no loss measured again.

  Raises:
    ConfigError: settings that do not go together, or with what is there.
  """
  prompter = make_prompter(loaded, evaluation.chat)
  path = out / 'results.json'
  if out.exists() and not out.is_dir():
    raise ConfigError(f'--out={out} is a file: give a directory')
  shared = _shared_settings(loaded, evaluation)
  settings = {
    name: shared | _own_settings(name, evaluation) for name in evaluation.suites
  }
  suites = read_suites(path)
  for name, suite in suites.items():
    check_settings(suite.get('settings'), settings.get(name, shared), path)
  results = {
    'model': loaded.name,
    'max_len': loaded.max_len,
    'about': _about(loaded, prompter),
    'suites': suites,
  }
  texts = _Texts(evaluation.text, loaded)

  @functools.cache
  def generator():
    # Weights take minutes to read: not before the examples are made.
    return loaded.generator(mesh)

  def answer(prompts, max_new_tokens):
    found = generator().generate(
      prompts, max_new_tokens=max_new_tokens, stop_ids=loaded.eos_ids
    )
    return [generated.text for generated in found]

  for name in evaluation.suites:
    if name == 'perplexity':
      found = _perplexity(
        loaded, evaluation, texts, mesh, split, out, settings[name]
      )
    else:
      found = run_suite(
        make_suite(name, evaluation, loaded, texts),
        prompter,
        answer,
        out,
        asked_as=settings[name],
        batch_tokens=evaluation.batch_tokens,
        any_length=bool(evaluation.data),
      )
      _logger.info('%s: %.0f%% of %d', name, 100 * found['score'], found['num'])
      if found['truncated']:
        _logger.warning(
          '%s: %.0f%% of the prompts lost their middle, %.0f%% what'
          ' answers them',
          name,
          100 * found['truncated'],
          100 * found['answer_lost'],
        )
    results['suites'][name] = {'settings': settings[name], **found}
    write_atomically(path, json.dumps(results, indent=2))
  write_evaluation(results, out)
  return results


def evaluation_directory(loaded: LoadedModel) -> Path:
  """Where results go by default; each stage of a run has its own place."""
  return Path(loaded.name) / 'evaluation' / loaded.stage


def make_prompter(loaded: LoadedModel, chat: bool) -> Prompter:
  """With the chat template, or for a base model without."""
  if chat and loaded.chat is not None:
    return Prompter(loaded.tokenizer, *loaded.chat.frame())
  nothing = np.zeros(0, np.int32)
  return Prompter(loaded.tokenizer, loaded.begin, nothing)


def make_suite(
  name: str, evaluation: Evaluation, loaded: LoadedModel, texts: '_Texts'
) -> Suite:
  """The suite of that name."""
  grid = evaluation.grid
  data = Path(evaluation.data) if evaluation.data else None
  if name in TASKS:
    return InfiniteBenchSuite(name, grid, data, loaded.max_len)
  if name == 'lost_in_the_middle':
    return LostInTheMiddleSuite(grid, data, loaded.max_len)
  needle = NEEDLES[evaluation.needle]
  if evaluation.needle_sentence:
    needle = NeedleText(
      evaluation.needle_sentence,
      evaluation.needle_question,
      '',
      evaluation.needle_answer,
      'substring',
    )
  return NeedleSuite(
    name,
    grid,
    needle,
    texts.haystack(),
    num_needles=evaluation.num_needles if name == 'multi_needle' else 1,
    at=evaluation.needle_at,
  )


class _Texts:
  """The documents of `--text`, read when the first suite needs them."""

  def __init__(self, path: str, loaded: LoadedModel):
    self._path, self._tokenizer = path, loaded.tokenizer
    self._documents: list[np.ndarray] = []

  def documents(self) -> list[np.ndarray]:
    """Ids of each document."""
    if not self._documents:
      texts = [document.text for document in self._read()]
      self._documents = self._tokenizer.encode_batch(texts)
    return self._documents

  def haystack(self) -> np.ndarray:
    """All of them end to end."""
    return np.concatenate(self.documents())

  def _read(self):
    kinds = ['text_files'] if self._path else ['books', 'docs']
    for kind in kinds:
      source = TextSource(kind, _TEXT_CHARS, path=self._path)
      if found := read_documents(source, 'text', cache_dir()):
        return found
    raise ConfigError(f'--text={self._path}: no text is there')


def _perplexity(loaded, evaluation, texts, mesh, split, out, asked_as):
  length = max(evaluation.grid.lengths)
  documents = [d for d in texts.documents() if len(d) >= length]

  @functools.cache
  def predictor():
    # Weights take minutes to read: not if all losses are there.
    return loaded.predictor(
      mesh, split=split, batch_tokens=evaluation.batch_tokens
    )

  found = perplexity(
    predictor,
    (documents or texts.documents())[: evaluation.num_documents],
    out,
    length=length,
    num_targets=min(evaluation.num_targets, length // 2),
    begin=loaded.begin,
    seed=evaluation.grid.seed,
    asked_as=asked_as,
  )
  _logger.info('perplexity: loss %.4f', found['loss']['loss'])
  return found


def read_suites(path: Path) -> dict[str, dict[str, Any]]:
  """Results by suite of a results.json; none where there is no file.

  Raises:
    ConfigError: the file is damaged.
  """
  if not path.exists():
    return {}
  try:
    suites = json.loads(path.read_text('utf-8'))['suites']
    if all(isinstance(suite, dict) for suite in suites.values()):
      return suites
  except (ValueError, KeyError, TypeError, AttributeError):
    pass
  raise ConfigError(
    f'{path} is damaged: remove it, and the same command sums up anew what was'
    ' predicted, without asking again'
  )


def _shared_settings(loaded, evaluation) -> dict[str, Any]:
  """What all results of a directory have in common: one page tells of them."""
  return {
    'model': loaded.name,
    'weights': fingerprint_weights(loaded),
    'rope': str(loaded.rope),
    'dtype': loaded.model.compute_dtype,
    'chat': evaluation.chat,
  }


def _own_settings(name, evaluation) -> dict[str, Any]:
  """What results of one suite have in common beside that."""
  fields = ('seed', 'data')
  if name == 'perplexity':
    fields = ('seed', 'text')
  elif 'needle' in name:
    fields += ('text', 'needle_at', 'needle', 'needle_sentence')
    fields += ('needle_question', 'needle_answer', 'num_needles')
  values = {'seed': evaluation.grid.seed, **vars(evaluation)}
  return {field: values[field] for field in fields}


def _about(loaded, prompter) -> str:
  chat = 'its chat template' if len(prompter.after) else 'no chat template'
  stage = f'Stage {loaded.stage}. ' if loaded.stage else ''
  return (
    f'{stage}Made for {loaded.max_len:,} tokens, scaling of RoPE counted; RoPE'
    f' {loaded.rope}; asked with {chat}, greedily, in'
    f' {loaded.model.compute_dtype}.'
  )
