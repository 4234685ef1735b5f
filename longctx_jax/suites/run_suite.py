"""Runs a suite on a model: predictions as they come, then what they sum up to.

    SUITE.jsonl    one line a prediction; a rerun asks what is not there yet
    results.json   means by length and depth, and how many prompts were cut

Asking for more lengths, depths or samples later adds to what is there.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longctx_jax.progress import Progress
from longctx_jax.suites.prompter import Prompter
from longctx_jax.suites.record_file import (
  add_records,
  open_records,
  read_records,
)
from longctx_jax.suites.suite import Example, Suite

_logger = logging.getLogger(__name__)

MAX_RANGES = 12  # ours: columns of a map that fits a page
# (prompts, tokens each may write) -> what the model writes, end left out.
Answer = Callable[[Sequence[np.ndarray], int], list[str]]


def run_suite(
  suite: Suite,
  prompter: Prompter,
  answer: Answer,
  directory: Path,
  *,
  asked_as: dict[str, Any],
  batch_tokens: int,
  any_length: bool = False,
) -> dict[str, Any]:
  """Asks what has not been asked, and sums up all of the suite's file.

  Args:
    suite: the test.
    prompter: makes its prompts.
    answer: asks the model.
    directory: receives the files.
    asked_as: settings that predictions of one file have to share.
    batch_tokens: prompts go to the model together up to so many.
    any_length: the examples are of no grid, and are summed up by ranges.

  Raises:
    ConfigError: the file there is of other settings, or not ours.
  """
  path = directory / f'{suite.name}.jsonl'
  there = open_records(path, asked_as)
  done = {record['name'] for record in there}
  examples = [e for e in suite.examples(prompter) if e.name not in done]
  if done:
    _logger.info('%s: %d predictions are there already', suite.name, len(done))
  examples.sort(key=lambda e: len(e.tokens))
  total = len(done) + len(examples)
  with Progress(suite.name, total, len(done)) as progress:
    asked = len(done)
    for batch in _batches(examples, batch_tokens):
      tokens = [example.tokens for example in batch]
      limit = max(example.max_new_tokens for example in batch)
      texts = answer(tokens, limit)
      records = [
        _record(suite, example, text)
        for example, text in zip(batch, texts, strict=True)
      ]
      add_records(path, records, asked_as if not asked else None)
      asked += len(batch)
      progress.update(asked)
  return summarise(read_records(path), any_length=any_length)


def _batches(
  examples: Iterable[Example], batch_tokens: int
) -> Iterator[list[Example]]:
  """Neighbours in length; a prompt is padded to the longest beside it."""
  batch: list[Example] = []
  for example in examples:
    if batch and (len(batch) + 1) * len(example.tokens) > batch_tokens:
      yield batch
      batch = []
    batch.append(example)
  if batch:
    yield batch


def _record(suite, example, text) -> dict[str, Any]:
  fields = {
    field: getattr(example, field)
    for field in ('name', 'length', 'depth', 'truncated', 'answer_lost')
  }
  return {
    **fields,
    'prompt_tokens': len(example.tokens),
    'answer': example.answer,
    'prediction': text,
    'score': suite.score(text, example),
  }


@dataclasses.dataclass(frozen=True)
class Cell:
  """What the predictions of one length and depth come to."""

  score: float
  num: int


def summarise(
  records: Sequence[dict[str, Any]], *, any_length: bool = False
) -> dict[str, Any]:
  """Means: of all, by length and depth; and what was cut out of prompts.

  Lengths of `any_length` are put together: a range has its longest in `cells`,
  and its shortest in `shortest`.
  """
  lengths = {record['length'] for record in records}
  ranges = (
    length_ranges(lengths) if any_length else {n: (n, n) for n in lengths}
  )
  cells: dict[str, dict[str, list[float]]] = {}
  for record in records:
    by_depth = cells.setdefault(str(ranges[record['length']][1]), {})
    by_depth.setdefault(f'{record["depth"]:g}', []).append(record['score'])
  return {
    'score': float(np.mean([r['score'] for r in records])),
    'num': len(records),
    'truncated': float(np.mean([r['truncated'] for r in records])),
    'answer_lost': float(np.mean([r['answer_lost'] for r in records])),
    'shortest': {
      str(last): first for first, last in sorted(set(ranges.values()))
    },
    'cells': {
      length: {
        depth: dataclasses.asdict(Cell(float(np.mean(scores)), len(scores)))
        for depth, scores in sorted(by_depth.items(), key=lambda x: float(x[0]))
      }
      for length, by_depth in sorted(cells.items(), key=lambda x: int(x[0]))
    },
  }


def length_ranges(lengths: Iterable[int]) -> dict[int, tuple[int, int]]:
  """Each length's range, (shortest, longest) of those that are there.

  A range ends at a power of two:   250 256 281 500   ->   250-256 281-500
  """
  factor = 1
  while True:
    ranges: dict[int, list[int]] = {}
    for length in sorted(lengths):
      ranges.setdefault((length - 1).bit_length() // factor, []).append(length)
    if len(ranges) <= MAX_RANGES:
      return {n: (r[0], r[-1]) for r in ranges.values() for n in r}
    factor += 1
