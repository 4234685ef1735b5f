"""The needle's wording, shared by the evaluation and by short training data.

A needle names a key and a value; the question ends with the key, and the answer
gives both, so that what stands before the value is the same in text and answer.
The test gives the key as the answer's beginning, as RULER's answer prefix does
(arXiv:2404.06654), and asks for the value and the end.
Keys and values are the short words of synthetic tables: a guess has one chance
in dozens. Single and multi-needle tests differ only in how many needles lie in
the haystack (gkamradt/LLMTest_NeedleInAHaystack; distractors as in
jzhang38/EasyContext).
"""

from typing import NamedTuple

import numpy as np

from longctx_jax.data.table_values import word_lists


class Needle(NamedTuple):
  """One fact to hide, and how to ask for it."""

  sentence: str
  question: str
  answer: str
  value: str  # what the answer ends with


def most_needles() -> int:
  """As many as there are keys and values for."""
  lists = word_lists()
  return min(len(lists['name']), len(lists['word']))


def draw_needles(rng: np.random.Generator, count: int) -> list[Needle]:
  """Needles with distinct keys and values, `most_needles()` at most."""
  lists = word_lists()
  keys = rng.choice(lists['name'], count, replace=False).tolist()
  values = rng.choice(lists['word'], count, replace=False).tolist()
  return [
    Needle(
      sentence=f' The magic word: {key} {value}.',
      question=f'What is the magic word of {key}',
      answer=f'{key} {value}',
      value=value,
    )
    for key, value in zip(keys, values, strict=True)
  ]


def hide_needles(
  haystack: list, needles: list[list], places: list[int]
) -> list:
  """Inserts needle j before haystack item places[j]; works on any items.

  h0 h1 h2 h3, [n n] at 1, [m] at 4   ->   h0 n n h1 h2 h3 m
  """
  out, last = [], 0
  for j in sorted(range(len(needles)), key=lambda j: places[j]):
    out += [*haystack[last : places[j]], *needles[j]]
    last = places[j]
  return out + haystack[last:]
