"""Which source serves example i: a pure function of (seed, i).

Examples come in blocks. By the end of each block every source has served its
exact share of all examples so far, to the nearest whole one; inside a block the
order is a seeded shuffle. No state, so any example can be asked for first.
"""

import functools
import math

import numpy as np


class Mixture:
  """Weighted choice among sources, exact in every block."""

  def __init__(self, weights: dict[str, float], seed: int):
    """Weights are shares of rows, hence of tokens: rows are equally long.

    Raises:
      ValueError: if they don't sum to 1 or one is negative.
    """
    if any(w < 0 for w in weights.values()) or not math.isclose(
      sum(weights.values()), 1, abs_tol=1e-6
    ):
      raise ValueError(f'mixture weights must be >= 0 and sum to 1: {weights}')
    self.names = tuple(weights)
    self._weights = np.array(list(weights.values()), np.float64)
    # What is missing from 1 would be whole examples after some million rows.
    self._weights /= self._weights.sum()
    # At least one example of each source a block, so that the cumulative
    # shares only ever grow.
    smallest = self._weights[self._weights > 0].min()
    self.block_len = max(128, math.ceil(1 / smallest))
    self._seed = seed
    self._block = functools.lru_cache(maxsize=8)(self._draw_block)

  def source_of_example(self, i: int) -> tuple[str, int]:
    """The source of example i, and how many it has served before."""
    block, offset = divmod(i, self.block_len)
    order, served = self._block(block)
    source = order[offset]
    return self.names[source], int(
      served[source] + np.count_nonzero(order[:offset] == source)
    )

  def _served_before(self, block: int) -> np.ndarray:
    """Examples of each source in all blocks before this one."""
    shares = self._weights * block * self.block_len
    counts = np.floor(shares + 1e-9).astype(np.int64)
    left = block * self.block_len - counts.sum()
    # Largest remainders first; a stable sort keeps ties in config order.
    counts[np.argsort(counts - shares, kind='stable')[:left]] += 1
    return counts

  def _draw_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
    served = self._served_before(block)
    counts = self._served_before(block + 1) - served
    order = np.repeat(np.arange(len(self.names)), counts)
    np.random.default_rng((self._seed, block)).shuffle(order)
    return order, served
