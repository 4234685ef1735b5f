"""From a test's text to a model's prompt, with every token counted.

    before              context and question     after       prefix
    <|im_start|>user\n  The grass ... What is... <|im_end|>  The pass key is

`before` and `after` are the model's chat template; a base model has none, and
begins with its begin of a document where its tokenizer adds one.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from longctx_jax.data.tokenizer import Tokenizer


class Prompter(NamedTuple):
  """A tokenizer, and what stands around a prompt."""

  tokenizer: Tokenizer
  before: np.ndarray
  after: np.ndarray

  def encode(self, text: str) -> np.ndarray:
    """Ids of a text alone."""
    return self.tokenizer.encode(text)

  def prompt(
    self, parts: Sequence[str | np.ndarray], prefix: str = ''
  ) -> np.ndarray:
    """Ids of the whole prompt; `prefix` is what the answer begins with.

    Texts that follow each other are encoded as one.
    """
    ids, text = [self.before], ''
    for part in parts:
      if isinstance(part, str):
        text += part
        continue
      ids += [self.encode(text), part] if text else [part]
      text = ''
    if text:
      ids.append(self.encode(text))
    ids.append(self.after)
    if prefix:
      ids.append(self.encode(prefix))
    return np.concatenate(ids).astype(np.int32)

  def answer_len(self, answer: str) -> int:
    """Tokens that an answer takes, with a space before and an end behind."""
    return len(self.encode(f' {answer}')) + 1


def largest_that_fits(
  build: Callable[[int], np.ndarray], limit: int
) -> tuple[int, np.ndarray] | None:
  """The largest n whose `build(n)` has at most `limit` tokens, and that.

  `build` grows with n. None where even n=0 is too long.
  """
  fits, fitting, too_many = 0, build(0), None
  if len(fitting) > limit:
    return None
  step = 1
  while too_many is None or too_many - fits > 1:
    n = fits + step if too_many is None else (fits + too_many) // 2
    made = build(n)
    if len(made) <= limit:
      fits, fitting, step = n, made, 2 * step
    else:
      too_many = n
  return fits, fitting


def cut_middle(
  ids: np.ndarray, limit: int
) -> tuple[np.ndarray, tuple[int, int]]:
  """A prompt without its middle, and the [start, stop) that was cut out.

  As InfiniteBench truncates (OpenBMB/InfiniteBench, src/eval_utils.py): what a
  model is asked stands at the end, what it is to do at the beginning.
  """
  if len(ids) <= limit:
    return ids, (len(ids), len(ids))
  head = limit // 2
  tail = limit - head
  return np.concatenate([ids[:head], ids[len(ids) - tail :]]), (
    head,
    len(ids) - tail,
  )
