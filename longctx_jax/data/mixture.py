"""Which source serves example i: a pure function of (seed, i).

Examples come in blocks, so that any of them can be asked for first. By the end
of each block every source has served its share of all examples so far, rounded
up or down to a whole one. Rounding each share by itself would let a small
source's count fall back again. What is rounded up is therefore what falls due
first, which keeps every count within one of its share for any weights, also for
changing ones (R. Tijdeman, The chairman assignment problem, Discrete
Mathematics 32, 1980).

Inside a block the same holds from example to example: each source's examples
have equal stretches of the block, and of those whose stretch has begun the one
whose stretch ends first is next (S. Baruah et al., Proportionate progress,
Algorithmica 15, 1996, for one processor). What is left open is drawn:

    a, half         [    ][    ][    ][    ]    stretches
    b, a quarter    [          ][          ]
    c, a quarter    [          ][          ]
                     a  c  a  b  a  b  c  a     an order
"""

import heapq
import math
from collections.abc import Mapping, Sequence

import numpy as np

# ours: about a global batch of long rows.
BLOCK_LEN = 128
# Changes with the order of examples, which a run that is resumed must not.
ORDER = 3
# A share this close to a whole number is one: sums of weights are inexact.
_WHOLE = 1e-6


class WeightCurve:
  """Weights over the examples of a run, and how much they add up to.

  Linear between the examples at which they are given, and constant after:

      (0, a=0.8 b=0.2), (100, a=0.4 b=0.6)     at 50     a=0.6 b=0.4
                                               after 100     a=60  b=40
  """

  def __init__(self, points: Sequence[tuple[int, Sequence[float]]]):
    """`points` are (example, weights), of rising examples from 0 on.

    Raises:
      ValueError: if weights don't sum to 1 or one is negative.
    """
    self._at = np.array([at for at, _ in points], np.float64)
    self._weights = np.array([weights for _, weights in points], np.float64)
    totals = self._weights.sum(axis=1, keepdims=True)
    if not self._weights.size or not (
      (self._weights >= 0).all() and np.allclose(totals, 1, rtol=0, atol=2e-6)
    ):
      raise ValueError(f'mixture weights must be >= 0 and sum to 1: {points}')
    # What is missing from 1 would be whole examples after some million rows.
    self._weights /= totals
    lengths = np.diff(self._at)[:, None]
    constant = np.zeros((1, self._weights.shape[1]))
    self._slopes = np.concatenate(
      [np.diff(self._weights, axis=0) / lengths, constant]
    )
    means = (self._weights[1:] + self._weights[:-1]) / 2
    self._sums = np.concatenate([constant, means * lengths]).cumsum(axis=0)

  def shares_before(self, examples: np.ndarray) -> np.ndarray:
    """Each source's share of the examples before some: [n] -> [n, sources]."""
    m = np.searchsorted(self._at, examples, side='right') - 1
    x = (examples - self._at[m])[:, None]
    return self._sums[m] + (self._weights[m] + self._slopes[m] * x / 2) * x

  def when_due(self, shares: np.ndarray) -> np.ndarray:
    """Where each source's share reaches a value, inf if never: [sources]."""
    m = (self._sums <= shares).sum(axis=0) - 1
    k = np.arange(len(shares))
    weights, slopes = self._weights[m, k], self._slopes[m, k]
    rest = shares - self._sums[m, k]
    # The root of sum + weight * x + slope * x^2 / 2 that stands a slope of 0.
    last = weights + np.sqrt(np.maximum(weights**2 + 2 * slopes * rest, 0))
    x = np.where(rest > 0, np.inf, 0.0)
    np.divide(2 * rest, last, out=x, where=last > 0)
    return self._at[m] + x


class Mixture:
  """Weighted choice among sources, exact in every window of examples.

  At any place of a block, each source has served its share of the block's
  examples to within one, and of all before, if weights stay, to within two.
  """

  def __init__(
    self,
    weights: Mapping[str, float],
    seed: int,
    num_examples: int,
    *,
    later: Sequence[tuple[int, Mapping[str, float]]] = (),
  ):
    """Weights are shares of examples.

    Args:
      weights: those of example 0.
      seed: of what the weights leave open.
      num_examples: how many there are; more of them change none.
      later: (example, weights of all sources); linear in between.

    Raises:
      ValueError: if weights don't sum to 1 or one is negative.
    """
    self.names = tuple(weights)
    self._num_examples = num_examples
    self._seed = seed
    points = [(0, weights), *later]
    self._curve = WeightCurve(
      [(at, [w[n] for n in self.names]) for at, w in points]
    )
    num_blocks = math.ceil(num_examples / BLOCK_LEN)
    self._served = _served_by_block(self._curve, num_blocks)
    self._latest = -1, np.array([], np.int64)  # a block, and its order

  def source_of_example(self, i: int) -> tuple[str, int]:
    """The source of example i, and how many it has served before."""
    if not 0 <= i < self._num_examples:
      raise IndexError(f'example {i} of {self._num_examples}')
    block, offset = divmod(i, BLOCK_LEN)
    order = self._order(block)
    source = order[offset]
    return self.names[source], int(
      self._served[block, source] + np.count_nonzero(order[:offset] == source)
    )

  def num_served(self) -> dict[str, int]:
    """How many of all examples each source serves."""
    blocks, rest = divmod(self._num_examples, BLOCK_LEN)
    counts = self._served[blocks].copy()
    if rest:
      order = self._order(blocks)[:rest]
      counts += np.bincount(order, minlength=len(self.names))
    return dict(zip(self.names, counts.tolist(), strict=True))

  def shares_wanted(self, first: int, stop: int) -> dict[str, float]:
    """The weights of examples [first, stop), on average."""
    before, after = self._curve.shares_before(np.array([first, stop]))
    shares = (after - before) / (stop - first)
    return dict(zip(self.names, shares.tolist(), strict=True))

  def _order(self, block):
    # Examples are asked for one after the other; a thread that comes between
    # two of them costs an order, for what is kept is replaced as one.
    latest, order = self._latest
    if latest == block:
      return order
    counts = self._served[block + 1] - self._served[block]
    order = _spread(counts, np.random.default_rng((self._seed, block)))
    self._latest = block, order
    return order


def _spread(counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """An order of `counts` examples of each source, as even as can be.

  Each count before any place differs from its share by less than one.
  """
  length = int(counts.sum())
  # Example k of a source with n of N: its stretch is [k N / n, (k + 1) N / n),
  # in whole places.
  sources = np.repeat(np.arange(len(counts)), counts)
  n = counts[sources]
  k = np.arange(length) - np.repeat(np.cumsum(counts) - counts, counts)
  begins, ends = k * length // n, -(-(k + 1) * length // n)
  by_begin = np.argsort(begins, kind='stable')
  # Ties are drawn.
  open_, order, next_ = [], [], 0
  draws = rng.random(length).tolist()
  begins, ends, sources = (
    x[by_begin].tolist() for x in (begins, ends, sources)
  )
  for place in range(length):
    while next_ < length and begins[next_] <= place:
      heapq.heappush(open_, (ends[next_], draws[next_], sources[next_]))
      next_ += 1
    order.append(heapq.heappop(open_)[2])
  return np.array(order)


def _served_by_block(curve: WeightCurve, num_blocks: int) -> np.ndarray:
  """Examples that each source served before block b, [blocks + 1, sources]."""
  ends = np.arange(num_blocks + 1) * BLOCK_LEN
  shares = curve.shares_before(ends)
  floors = np.floor(shares + _WHOLE).astype(np.int64)
  ceils = np.ceil(shares - _WHOLE).astype(np.int64)
  served = np.zeros_like(floors)
  for block, end in enumerate(ends[1:].tolist(), start=1):
    counts = np.maximum(served[block - 1], floors[block])
    left = end - int(counts.sum())
    if left:
      # Sources below their share, by when the next example falls due; ties
      # stay in config order. Some never do, and come before those at theirs.
      first = np.lexsort((curve.when_due(counts + 1.0), counts >= ceils[block]))
      counts[first[:left]] += 1
    served[block] = counts
  return served
