"""Mixture: exact shares, no state, no gap in what a source serves."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from longctx_jax.data.mixture import Mixture


@st.composite
def mixture_weights(draw):
  """Shares of 1 to 4 sources; some are zero, some very small."""
  share = st.one_of(
    st.just(0.0), st.floats(1e-4, 1e-3), st.floats(0.01, 1), st.just(1 / 3)
  )
  shares = draw(st.lists(share, min_size=1, max_size=4))
  assume(sum(shares) > 0)
  weights = {f's{k}': x / sum(shares) for k, x in enumerate(shares)}
  # Blocks of more than some thousand examples only make the test slow.
  assume(min(w for w in weights.values() if w) > 1e-4)
  return weights


def served(mixture, stop):
  return [mixture.source_of_example(i) for i in range(stop)]


@settings(max_examples=40, deadline=None)
@given(mixture_weights(), st.integers(0, 9))
@example({'a': 0.999, 'b': 0.001}, 0)
@example({'a': 1.0, 'b': 0.0}, 0)
@example({'a': 1 / 3, 'b': 1 / 3, 'c': 1 / 3}, 0)
def test_every_block_ends_at_the_exact_shares(weights, seed):
  mixture = Mixture(weights, seed)
  blocks = 3 if mixture.block_len < 2000 else 1
  names = [name for name, _ in served(mixture, blocks * mixture.block_len)]
  for end in range(mixture.block_len, len(names) + 1, mixture.block_len):
    counts = Counter(names[:end])
    for name, weight in weights.items():
      assert abs(counts[name] - weight * end) < 1
      assert weight or not counts[name]


# In blocks of 128, the rounded share of `b` would fall from 1 to 0 again.
ROUNDED_DOWN = dict(
  zip('abcdef', [0.1587, 0.0004, 0.5977, 0.2323, 0.0051, 0.0058], strict=True)
)


@settings(max_examples=20, deadline=None)
@given(mixture_weights(), st.integers(0, 9))
@example(ROUNDED_DOWN, 0)
def test_each_source_serves_its_examples_without_gaps(weights, seed):
  numbers = {name: [] for name in weights}
  for name, k in served(Mixture(weights, seed), 13 * 128):
    numbers[name].append(k)
  for ks in numbers.values():
    assert ks == list(range(len(ks)))


def test_any_example_can_be_asked_for_first():
  weights = {'a': 0.7, 'b': 0.25, 'c': 0.05}
  expected = served(Mixture(weights, 3), 1000)
  mixture = Mixture(weights, 3)
  for i in np.random.default_rng(0).permutation(1000).tolist():
    assert mixture.source_of_example(i) == expected[i]


def test_blocks_and_seeds_are_shuffled_each_in_its_own_way():
  weights = {'a': 0.5, 'b': 0.5}
  names = [name for name, _ in served(Mixture(weights, 0), 256)]
  first, second = names[:128], names[128:]
  other = [name for name, _ in served(Mixture(weights, 1), 128)]
  assert Counter(first) == Counter(second) == Counter(other)
  assert len({tuple(first), tuple(second), tuple(other)}) == 3
  # A shuffle has runs of every length, and round robin has none.
  assert 30 < sum(x != y for x, y in itertools.pairwise(first)) < 100


@pytest.mark.parametrize('third', [0.3333333, 0.3333336])
def test_rounded_weights_hold_for_a_hundred_million_examples(third):
  mixture = Mixture(dict.fromkeys('abc', third), 0)
  start = 10**8 - 10**8 % mixture.block_len
  block = [
    mixture.source_of_example(start + i) for i in range(mixture.block_len)
  ]
  # The shares are those of the weights over their sum.
  end = start + mixture.block_len
  last = dict(block)
  assert all(abs(last[name] + 1 - end / 3) < 1 for name in 'abc')


@pytest.mark.parametrize(
  'weights', [{'a': 0.5, 'b': 0.4}, {'a': 1.5, 'b': -0.5}, {}]
)
def test_weights_that_are_no_shares_are_refused(weights):
  with pytest.raises(ValueError, match='sum to 1'):
    Mixture(weights, 0)
