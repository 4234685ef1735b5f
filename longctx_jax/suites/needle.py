"""Needle in a haystack, with any text and any needle.

After gkamradt/LLMTest_NeedleInAHaystack: a fact at some depth of real text,
then the question. Here prompt and answer together have exactly the length
asked for, chat template included; the depth is that of the sentence end before
it, as there ('sentence'), or exact to the token ('token').
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.data.needles import hide_needles
from longctx_jax.data.table_values import word_lists
from longctx_jax.suites.prompter import Prompter
from longctx_jax.suites.suite import Example, Grid, too_short


class NeedleText(NamedTuple):
  """A kind of needle; {key} and {value} are drawn for each.

  All other braces are text: a needle may be code.
  """

  sentence: str
  question: str
  # What the answer begins with, given to the model.
  prefix: str
  answer: str
  # 'substring' of the response, or 'overlap' of words.
  scorer: Literal['substring', 'overlap']


NEEDLES = {
  # After RULER's niah_single and niah_multikey (arXiv:2404.06654; NVIDIA/RULER,
  # scripts/data/synthetic/constants.py), numbers of seven digits as there.
  'number': NeedleText(
    ' One of the special magic numbers for {key} is: {value}.',
    'What is the special magic number for {key} mentioned in the provided'
    ' text?',
    ' The special magic number for {key} mentioned in the provided text is',
    '{value}',
    'substring',
  ),
  # gkamradt/LLMTest_NeedleInAHaystack, run.py.
  'sandwich': NeedleText(
    '\nThe best thing to do in San Francisco is eat a sandwich and sit in'
    ' Dolores Park on a sunny day.\n',
    'What is the best thing to do in San Francisco?',
    '',
    'eat a sandwich and sit in dolores park on a sunny day.',
    'overlap',
  ),
}
# Words before the haystack, after RULER's; its own differ for a single needle.
INTRODUCTION = (
  'Some special magic numbers are hidden within the following text. Make sure'
  ' to memorize it. I will quiz you about the numbers afterwards.\n'
)
# FranxYao/Long-Context-Data-Engineering, eval/needle/visualize.py: distinct
# words in common over twelve, though `a` is there twice and so eleven is all.
_SANDWICH_WORDS = 12


@dataclasses.dataclass(frozen=True)
class NeedleSuite:
  """The single-needle test, or with distractors of other keys."""

  name: str
  grid: Grid
  needle: NeedleText
  # Ids of the text that hides them.
  haystack: np.ndarray
  num_needles: int = 1
  at: Literal['sentence', 'token'] = 'sentence'
  max_new_tokens: int = 32  # ours: a sentence that leads to the number

  def __post_init__(self):
    if self.num_needles > (most := len(word_lists()['word'])):
      raise ConfigError(
        f'--num_needles={self.num_needles}: there are keys for {most}'
      )
    if '{value}' not in self.needle.sentence and self.num_needles > 1:
      raise ConfigError(
        f'--suite={self.name}: a needle without {{key}} and {{value}} has no'
        ' distractors'
      )

  def examples(self, prompter: Prompter) -> Iterator[Example]:
    """One for each cell and sample."""
    ends = sentence_ends(self.haystack, prompter)
    for length, depth, k, rng in self.grid.cells():
      name = f'{length}-{depth:g}-{k}'
      yield self._example(prompter, ends, length, depth, rng, name)

  def _example(self, prompter, ends, length, depth, rng, name) -> Example:
    needle = self.needle
    pairs = _draw_pairs(rng, self.num_needles)
    hidden = [prompter.encode(_fill(needle.sentence, pair)) for pair in pairs]
    introduced = needle is NEEDLES['number']
    parts = [
      INTRODUCTION if introduced else '',
      np.zeros(0, np.int32),
      '\n\n' + _fill(needle.question, pairs[0]),
    ]
    prefix = _fill(needle.prefix, pairs[0])
    frame = len(prompter.prompt(parts, prefix)) + sum(map(len, hidden))
    room = length - self.max_new_tokens - frame
    if room < 0:
      raise too_short(self.name, length, self.max_new_tokens + frame)
    start, text = self._stretch(room, rng)
    place = round(depth * room)
    if self.at == 'sentence':
      place = walk_back(ends, start, place)
    others = rng.integers(room + 1, size=len(hidden) - 1).tolist()
    if self.at == 'sentence':
      others = [walk_back(ends, start, other) for other in others]
    filled = hide_needles(
      text.tolist(), [h.tolist() for h in hidden], [place, *others]
    )
    parts[1] = np.array(filled, np.int32)
    return Example(
      name,
      prompter.prompt(parts, prefix),
      _fill(needle.answer, pairs[0]),
      self.max_new_tokens,
      length,
      depth,
    )

  def _stretch(self, room, rng):
    """(start, ids) of the haystack, from anywhere, round and round."""
    start = int(rng.integers(max(len(self.haystack) - room, 0) + 1))
    at = np.arange(start, start + room) % len(self.haystack)
    return start, self.haystack[at]

  def score(self, prediction: str, example: Example) -> float:
    """1 if the answer is in the prediction; or the share of its words."""
    if self.needle.scorer == 'substring':
      # As RULER's string_match_all, of one reference.
      return float(example.answer.lower() in prediction.lower())
    found = set(prediction.lower().split())
    return len(found & set(example.answer.split())) / _SANDWICH_WORDS


def sentence_ends(haystack: np.ndarray, prompter: Prompter) -> np.ndarray:
  """[len(haystack)] bool: the token ends a sentence, by its text's full stop.

  gkamradt's code looks for the id of '.', and misses tokens such as 'word.'.
  """
  ids = np.unique(haystack)
  ends = [
    prompter.tokenizer.decode([i]).rstrip().endswith('.') for i in ids.tolist()
  ]
  return np.array(ends)[np.searchsorted(ids, haystack)]


def walk_back(ends: np.ndarray, start: int, place: int) -> int:
  """The last place up to `place` of a stretch that is behind a full stop."""
  while place and not ends[(start + place - 1) % len(ends)]:
    place -= 1
  return place


def _fill(text: str, pair: tuple[str, str]) -> str:
  key, value = pair
  return text.replace('{key}', key).replace('{value}', value)


def _draw_pairs(rng, count) -> list[tuple[str, str]]:
  """Keys that differ, of two words, and numbers of seven digits."""
  lists = word_lists()
  firsts = rng.choice(lists['word'], count, replace=False).tolist()
  seconds = rng.choice(lists['name'], count).tolist()
  values = rng.choice(9_000_000, count, replace=False) + 1_000_000
  return [
    (f'{first}-{second}', str(value))
    for first, second, value in zip(
      firsts, seconds, values.tolist(), strict=True
    )
  ]
