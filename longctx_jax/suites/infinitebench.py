"""InfiniteBench's three retrieval tasks, at any length or from its files.

arXiv:2402.13718; prompts, generators and scorers by the definitions of
OpenBMB/InfiniteBench at 88b3daa (data/construct_synthetic_dataset.py,
src/prompt.py `yarn_mistral`, src/compute_scores.py, src/eval_utils.py). The
texts are in `data/retrieval_texts.py`.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.data.retrieval_texts import (
  WORDINGS,
  draw_key,
  draw_uuid,
  hide_key,
)
from longctx_jax.suites.official_files import TEXT, Field, read_examples
from longctx_jax.suites.prompter import Prompter, largest_that_fits
from longctx_jax.suites.suite import Example, Grid, cut_to_fit, too_short


class Task(NamedTuple):
  """How a task is answered and scored."""

  max_new_tokens: int
  score: Callable[[str, str], bool]


def first_integer(prediction: str, answer: str) -> bool:
  """Whether the first run of digits is the answer; digits before it cost it."""
  found = re.search(r'[0-9]+', prediction)
  return found is not None and found[0] == answer


def among_words(prediction: str, answer: str) -> bool:
  """Whether the answer is a word, apart from `\\n : " ' . , ? ! { }`."""
  return answer in re.sub(r'[\n:"\'.,?!{}]', ' ', prediction).split()


TASKS = {
  'passkey': Task(6, first_integer),
  'number_string': Task(12, first_integer),
  'kv_retrieval': Task(50, among_words),
}


def _is_answer(value: Any) -> bool:
  # Released files have lists of one answer, the generator writes texts.
  first = value[0] if isinstance(value, list) and value else value
  return type(first) in (str, int) and str(first) != ''


_FIELDS = {
  'context': TEXT,
  'input': TEXT,
  'answer': Field('a text or a list of one', _is_answer),
}


@dataclasses.dataclass(frozen=True)
class InfiniteBenchSuite:
  """One of `TASKS`, made at the grid's lengths or read from official files."""

  name: str
  grid: Grid
  # The official JSONL; None makes examples.
  path: Path | None = None
  # Longer prompts lose their middle, as the official code cuts them.
  max_len: int = 0

  def examples(self, prompter: Prompter) -> Iterator[Example]:
    """Of the file in its order; else one for each cell and sample."""
    if self.path is not None:
      yield from self._from_file(prompter, self.path)
      return
    for length, depth, k, rng in self.grid.cells():
      name = f'{length}-{depth:g}-{k}'
      if self.name == 'kv_retrieval':
        yield self._key_value(prompter, length, depth, rng, name)
      else:
        yield self._hidden_number(prompter, length, depth, rng, name)

  def score(self, prediction: str, example: Example) -> float:
    """The official scorer's verdict."""
    return float(TASKS[self.name].score(prediction, example.answer))

  def _hidden_number(self, prompter, length, depth, rng, name) -> Example:
    key = draw_key(rng, self.name)
    new = self._max_new_tokens(prompter, key)

    def build(num_noise):
      context = hide_key(self.name, key, num_noise, round(depth * num_noise))
      return self._prompt(prompter, context, WORDINGS[self.name].input)

    found = largest_that_fits(build, length - new)
    if found is None:
      raise too_short(self.name, length, len(build(0)) + new)
    return Example(name, found[1], key, new, length, depth)

  def _key_value(self, prompter, length, depth, rng, name) -> Example:
    pairs: list[tuple[str, str]] = []

    def build(count):
      while len(pairs) < count + 1:
        pairs.append((draw_uuid(rng), draw_uuid(rng)))
      # Pair 0 is asked for, and stands at its depth among the others.
      others = pairs[1 : count + 1]
      at = round(depth * count)
      shown = [*others[:at], pairs[0], *others[at:]]
      context = 'JSON data:\n' + json.dumps(dict(shown))
      question = WORDINGS[self.name].input.replace('{key}', pairs[0][0])
      return self._prompt(prompter, context, question)

    build(0)
    new = self._max_new_tokens(prompter, pairs[0][1])
    found = largest_that_fits(build, length - new)
    if found is None:
      raise too_short(self.name, length, len(build(0)) + new)
    return Example(name, found[1], pairs[0][1], new, length, depth)

  def _from_file(self, prompter, path) -> Iterator[Example]:
    lines: dict[str, int] = {}
    for i, (line, fields) in enumerate(read_examples(path, _FIELDS)):
      name = str(fields.get('id', i))
      if lines.setdefault(name, line) != line:
        # A rerun would take the one for done once the other is.
        raise ConfigError(
          f'{path}, line {line}: the id {name!r} is that of line {lines[name]}'
          ' too (an example without one has its number, from 0): give each its'
          ' own'
        )
      answer = fields['answer']
      answer = str(answer[0] if isinstance(answer, list) else answer)
      context = fields['context']
      ids = self._prompt(prompter, context, fields['input'])
      new = self._max_new_tokens(prompter, answer)
      where = context.find(answer)
      depth = round(max(where, 0) / max(len(context), 1), 1)
      example = Example(name, ids, answer, new, len(ids) + new, depth)
      yield cut_to_fit(example, prompter, self.max_len)

  def _prompt(self, prompter, context, asked) -> np.ndarray:
    wording = WORDINGS[self.name]
    text = wording.prompt.format(context=context, input=asked)
    prefix = wording.prefix
    if len(prompter.after):
      return prompter.prompt([text], prefix)
    # A base model reads on: the official prompt has the prefix on a new line.
    return prompter.prompt([f'{text}\n\n{prefix}' if prefix else text])

  def _max_new_tokens(self, prompter, answer) -> int:
    # The official numbers have no room for tokenizers that spend a token on
    # every digit and one on the space before them.
    official = TASKS[self.name].max_new_tokens
    return max(official, prompter.answer_len(answer))
