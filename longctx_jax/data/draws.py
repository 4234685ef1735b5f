"""Random draws that kinds of synthetic data share."""

from collections.abc import Iterable

import numpy as np


def check_weights(
  weights: dict[str, float], *, known: Iterable[str], what: str
) -> None:
  """
  Raises:
    ValueError: one of `weights` is not `known`, or they are no weights; the
      message begins with `what` they are of.
  """
  if unknown := sorted(set(weights) - set(known)):
    raise ValueError(f'{what}: unknown {unknown}; there are {sorted(known)}')
  if min(weights.values(), default=0) < 0 or not any(weights.values()):
    raise ValueError(
      f'{what}: weights must be 0 or more, one of them more, got {weights};'
      f' there are {sorted(known)}'
    )


def draw_weighted(rng: np.random.Generator, weights: dict[str, float]) -> str:
  """One of the names, as often as its share of the weights."""
  names = sorted(weights)
  values = np.array([weights[name] for name in names], float)
  return names[rng.choice(len(names), p=values / values.sum())]


def log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
  """A whole number from low to high: every octave is equally likely.

  Raises:
    ValueError: unless 1 <= low <= high.
  """
  if not 1 <= low <= high:
    raise ValueError(f'log_uniform needs 1 <= low <= high, got {low}, {high}')
  # Up to high + 1, so that high is as likely as its neighbours.
  drawn = np.exp(rng.uniform(np.log(low), np.log(high + 1)))
  return min(int(drawn), high)
