"""What all suites share: an example, and where it belongs on the map."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.suites.prompter import Prompter, cut_middle


class Example(NamedTuple):
  """One prompt and what answers it."""

  # What tells it from all others of its suite.
  name: str
  tokens: np.ndarray  # int32, the prompt
  answer: str
  max_new_tokens: int
  # Where it is on the map: tokens asked for, prompt and answer together, and
  # the share of the context before what answers it.
  length: int
  depth: float
  truncated: bool = False  # part of its context was cut out
  answer_lost: bool = False  # and what answers it was in that part


@dataclasses.dataclass(frozen=True)
class Grid:
  """Which examples a suite makes: `samples` for each length and depth."""

  lengths: tuple[int, ...]
  num_depths: int
  samples: int
  seed: int

  def __post_init__(self):
    if not self.lengths or min(self.lengths) < 1:
      lengths = ','.join(map(str, self.lengths))
      raise ConfigError(f'--lengths={lengths}: give numbers of tokens')
    if len(set(self.lengths)) < len(self.lengths):
      lengths = ','.join(map(str, self.lengths))
      raise ConfigError(f'--lengths={lengths}: give each length once')
    for name in ('num_depths', 'samples'):
      if getattr(self, name) < 1:
        raise ConfigError(f'--{name}={getattr(self, name)} must be at least 1')
    if self.seed < 0:
      raise ConfigError(f'--seed={self.seed} must be at least 0')

  @property
  def depths(self) -> list[float]:
    """From 0, the beginning of the context, to 1, its end, evenly."""
    return np.linspace(0, 1, self.num_depths).round(4).tolist()

  def cells(self) -> Iterator[tuple[int, float, int, np.random.Generator]]:
    """(length, depth, sample, generator); a cell has its own whatever others
    there are."""
    for length in self.lengths:
      for depth in self.depths:
        for k in range(self.samples):
          seed = (self.seed, length, round(1e4 * depth), k)
          yield length, depth, k, np.random.default_rng(seed)


class Suite(Protocol):
  """A test: examples in order, and the score of an answer to one."""

  name: str

  def examples(self, prompter: Prompter) -> Iterator[Example]:
    """The examples, shorter ones first."""

  def score(self, prediction: str, example: Example) -> float:
    """From 0 to 1."""


def too_short(name: str, length: int, needed: int) -> ConfigError:
  """The error of a length that has no room for the test."""
  return ConfigError(
    f'--lengths: {length} tokens have no room for the suite {name}, which needs'
    f' {needed} without any context'
  )


def cut_to_fit(example: Example, prompter: Prompter, max_len: int) -> Example:
  """Without its middle if prompt and answer are longer than `max_len`; 0: any.

  Raises:
    ConfigError: the answer alone is.
  """
  ids, new = example.tokens, example.max_new_tokens
  if not max_len or len(ids) + new <= max_len:
    return example
  if new + 2 > max_len:
    raise ConfigError(
      f'--data: example {example.name}: its answer takes {new} tokens, and the'
      f' model is made for {max_len}: give one that is made for longer texts'
    )
  kept, (start, _) = cut_middle(ids, max_len - new)
  lost = not any(
    example.answer in prompter.tokenizer.decode(part)
    for part in (kept[:start], kept[start:])
  )
  return example._replace(
    tokens=kept, length=max_len, truncated=True, answer_lost=lost
  )
