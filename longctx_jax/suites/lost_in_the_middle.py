"""Key-value retrieval of Lost in the Middle (arXiv:2307.03172, sec. 4).

Prompt and score by nelson-liu/lost-in-the-middle at 29b8a6d
(prompts/kv_retrieval.prompt; `value.lower() in answer.lower()`); made at any
length, or read from its files (ordered_kv_records, key, value).
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from longctx_jax.data.retrieval_texts import draw_uuid
from longctx_jax.suites.official_files import TEXT, Field, read_examples
from longctx_jax.suites.prompter import Prompter, largest_that_fits
from longctx_jax.suites.suite import Example, Grid, cut_to_fit, too_short

_BEFORE = (
  'Extract the value corresponding to the specified key in the JSON object'
  ' below.\n\nJSON data:\n'
)


def _is_pairs(value: Any) -> bool:
  return isinstance(value, list) and all(
    isinstance(pair, list) and list(map(type, pair)) == [str, str]
    for pair in value
  )


_FIELDS = {
  'ordered_kv_records': Field('a list of pairs of texts', _is_pairs),
  'key': TEXT,
  'value': TEXT,
}


@dataclasses.dataclass(frozen=True)
class LostInTheMiddleSuite:
  """Keys and values of UUIDs; the key that is asked for moves through them."""

  grid: Grid
  path: Path | None = None
  # Longer prompts of the file lose their middle, as those of InfiniteBench.
  # differs from paper: official prompts are never cut; the models there had
  # room for all of them.
  max_len: int = 0
  name: str = 'lost_in_the_middle'

  def examples(self, prompter: Prompter) -> Iterator[Example]:
    """One for each cell and sample; of a file, one for each line and depth."""
    if self.path is not None:
      yield from self._from_file(prompter, self.path)
      return
    for length, depth, k, rng in self.grid.cells():
      pairs: list[tuple[str, str]] = []

      def build(count, depth=depth, rng=rng, pairs=pairs):
        while len(pairs) < count + 1:
          pairs.append((draw_uuid(rng), draw_uuid(rng)))
        others, at = pairs[1 : count + 1], round(depth * count)
        return _prompt(
          prompter, [*others[:at], pairs[0], *others[at:]], pairs[0][0]
        )

      build(0)
      new = prompter.answer_len(pairs[0][1])
      found = largest_that_fits(build, length - new)
      if found is None:
        raise too_short(self.name, length, len(build(0)) + new)
      name = f'{length}-{depth:g}-{k}'
      yield Example(name, found[1], pairs[0][1], new, length, depth)

  def _from_file(self, prompter, path) -> Iterator[Example]:
    for i, (_, fields) in enumerate(read_examples(path, _FIELDS)):
      records = [tuple(pair) for pair in fields['ordered_kv_records']]
      gold = fields['key'], fields['value']
      others = [pair for pair in records if pair[0] != gold[0]]
      for depth in self.grid.depths:
        # The official runs move the gold record to a place of their choice.
        at = round(depth * len(others))
        shown = [*others[:at], gold, *others[at:]]
        ids = _prompt(prompter, shown, gold[0])
        new = prompter.answer_len(gold[1])
        name = f'{i}-{depth:g}'
        example = Example(name, ids, gold[1], new, len(ids) + new, depth)
        yield cut_to_fit(example, prompter, self.max_len)

  def score(self, prediction: str, example: Example) -> float:
    """1 if the value is in the prediction, whatever its case."""
    return float(example.answer.lower() in prediction.lower())


def _prompt(prompter, pairs, key) -> np.ndarray:
  rows = ',\n '.join(f'{json.dumps(k)}: {json.dumps(v)}' for k, v in pairs)
  text = f'{_BEFORE}{{{rows}}}\n\nKey: "{key}"\nCorresponding value:'
  if not len(prompter.after):
    return prompter.prompt([text])
  body, _, asked = text.rpartition('\n')
  return prompter.prompt([body], asked)
