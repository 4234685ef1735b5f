"""Needle in a haystack: a fact hidden at some depth of real, held-out text.

After gkamradt/LLMTest_NeedleInAHaystack, with exact match instead of a judge
and an exact length: haystack, needles, question, chat markers and answer
together are `length` tokens. Depth 0 is the start of the haystack, 1 its end.
"""

from typing import NamedTuple

import numpy as np

from longctx_jax.config import ConfigError, NeedleConfig
from longctx_jax.data.chat import Chat
from longctx_jax.data.needles import draw_needles, hide_needles
from longctx_jax.evals.haystack import Haystack
from longctx_jax.evals.predict import Predictor


class NeedleExample(NamedTuple):
  """One prompt with its answer at the end; the key it begins with is given."""

  tokens: np.ndarray  # int32 [length], the answer included
  value_len: int  # tokens at the end that must be right


def make_example(
  rng: np.random.Generator,
  chat: Chat,
  haystack: Haystack | np.ndarray,
  *,
  length: int,
  depth: float,
  num_needles: int,
) -> NeedleExample:
  """Hides needles in a random stretch of `haystack` and asks for the first.

  The needle that is asked for lies at `depth`, the others anywhere.

  Raises:
    ConfigError: if `length` has no room for them, or the haystack is shorter.
  """
  needles = draw_needles(rng, num_needles)
  tokenizer = chat.tokenizer
  hidden = [tokenizer.encode(needle.sentence).tolist() for needle in needles]
  # The question after a line end, in the tokens of a training conversation.
  asked = chat.encode_text(needles[0].question)
  question = [*tokenizer.encode('\n').tolist(), *asked, *chat.asking]
  answer = chat.encode_answer(needles[0].answer)
  frame = len(chat.opening) + len(question) + len(answer)
  room = length - frame - sum(map(len, hidden))
  if room < 0:
    raise ConfigError(
      f'evals.needle: {num_needles} needles and their question do not fit'
      f' into {length} tokens'
    )
  if room > len(haystack):
    raise ConfigError(
      f'evals.needle: the held-out text has {len(haystack)} tokens, too few for'
      f' a haystack of {length}: raise corpus.heldout_frac'
    )
  start = int(rng.integers(len(haystack) - room + 1))
  text = haystack[start : start + room].tolist()
  places = [round(depth * room), *rng.integers(room + 1, size=num_needles - 1)]
  filled = hide_needles(text, hidden, places)
  tokens = [*chat.opening, *filled, *question, *answer]
  value_len = len(chat.encode_answer(needles[0].value))
  return NeedleExample(np.array(tokens, np.int32), value_len)


def is_exact(example: NeedleExample, predictions: np.ndarray) -> bool:
  """Whether greedy decoding goes on with the value and ends there."""
  n = example.value_len
  return bool(np.array_equal(predictions[-n:], example.tokens[-n:]))


def needle_grid(
  predictor: Predictor,
  chat: Chat,
  haystack: Haystack | np.ndarray,
  config: NeedleConfig,
  *,
  num_needles: int,
  seed: int,
) -> dict[str, dict[str, float]]:
  """Share of exact answers by length and depth: {'1024': {'0.25': 1.0}}."""
  depths = np.linspace(0, 1, config.num_depths).round(4).tolist()
  grid: dict[str, dict[str, float]] = {}
  for length in config.lengths:
    rng = np.random.default_rng((seed, length, num_needles))
    cells = [d for d in depths for _ in range(config.samples)]
    examples = [
      make_example(
        rng,
        chat,
        haystack,
        length=length,
        depth=depth,
        num_needles=num_needles,
      )
      for depth in cells
    ]
    rows = predictor.rows([example.tokens for example in examples])
    exact = [
      is_exact(example, predictions)
      for example, (_, predictions) in zip(examples, rows, strict=True)
    ]
    shares = np.reshape(exact, (len(depths), config.samples)).mean(axis=1)
    grid[str(length)] = {
      f'{depth:g}': float(share)
      for depth, share in zip(depths, shares, strict=True)
    }
  return grid


def mean_by_length(grid: dict[str, dict[str, float]]) -> dict[str, float]:
  """Accuracy at each length, over all depths."""
  return {
    length: float(np.mean(list(cells.values())))
    for length, cells in grid.items()
  }
