"""Mixture: exact shares, no state, no gap in what a source serves."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from longctx_jax.data.mixture import BLOCK_LEN, Mixture, WeightCurve

SHARE = st.one_of(
  st.just(0.0),
  st.floats(1e-6, 1e-3),
  st.floats(0.01, 1),
  st.just(1 / 3),
)


@st.composite
def weight_points(draw, max_later=3):
  """(example, weights) of 1 to 6 sources; some are zero, some very small."""
  size = draw(st.integers(1, 6))
  later = draw(st.sets(st.integers(1, 1000), max_size=max_later))
  points = []
  for at in [0, *sorted(later)]:
    shares = draw(st.lists(SHARE, min_size=size, max_size=size))
    assume(sum(shares) > 1e-6)
    weights = {f's{k}': x / sum(shares) for k, x in enumerate(shares)}
    points.append((at, weights))
  return points


def constant(*weights):
  return [(0, dict(zip('abcdef', weights, strict=False)))]


def mixture_of(points, seed, num_examples):
  return Mixture(points[0][1], seed, num_examples, later=points[1:])


def slow_shares(points, stop):
  """Share of each source in examples [0, n), for n of 0 to stop: [n, name]."""
  middles = np.arange(stop) + 0.5
  at = [at for at, _ in points]
  weights = [
    np.interp(middles, at, [weights[name] for _, weights in points])
    for name in points[0][1]
  ]
  return np.cumsum([np.zeros(len(weights)), *zip(*weights, strict=True)], 0)


def served(mixture, stop):
  return [mixture.source_of_example(i) for i in range(stop)]


# The weights of `b` and `c` fall to 0 while one of the two is owed a part of an
# example: it falls due never, and must be served all the same.
DRIED_UP = [
  (0, {'a': 0.0, 'b': 0.42, 'c': 0.58}),
  (416, {'a': 1.0, 'b': 0.0, 'c': 0.0}),
]
# The share of `b` comes to a quarter just where its weight is 0.
FROM_ZERO = [
  (0, {'a': 0.5, 'b': 0.5}),
  (1, {'a': 1.0, 'b': 0.0}),
  (2, {'a': 0.0, 'b': 1.0}),
]
# In blocks of 128, the rounded share of `b` would fall from 1 to 0 again.
ROUNDED_DOWN = constant(0.1587, 0.0004, 0.5977, 0.2323, 0.0051, 0.0058)
# Where the largest remainder is rounded up first, a source whose share comes to
# a whole number soon finds its example taken by one that is due much later.
OVERTAKEN = [
  (0, dict(zip('abcde', [0.002, 0.005, 0.978, 0.0, 0.015], strict=True))),
  (10, dict(zip('abcde', [0.034, 0.731, 0.235, 0.0, 0.0], strict=True))),
  (508, dict(zip('abcde', [0.0, 0.0, 0.0, 0.098, 0.902], strict=True))),
]


@settings(max_examples=40, deadline=None)
@given(weight_points())
@example(OVERTAKEN)
@example(constant(1 - 1e-6, 1e-6))
@example(constant(1.0, 0.0))
@example(constant(1 / 3, 1 / 3, 1 / 3))
@example(ROUNDED_DOWN)
@example(DRIED_UP)
def test_every_block_ends_at_the_exact_shares(points):
  stop = 10 * BLOCK_LEN
  shares = slow_shares(points, stop)
  counts = np.zeros(len(points[0][1]), int)
  names = list(points[0][1])
  mixture = mixture_of(points, 0, stop)
  for block in range(10):
    for i in range(block * BLOCK_LEN, (block + 1) * BLOCK_LEN):
      counts[names.index(mixture.source_of_example(i)[0])] += 1
    errors = counts - shares[(block + 1) * BLOCK_LEN]
    assert np.abs(errors).max() < 1
  never = [
    name for name in names if not any(weights[name] for _, weights in points)
  ]
  assert not any(counts[names.index(name)] for name in never)


@settings(max_examples=20, deadline=None)
@given(weight_points(), st.integers(0, 9))
@example(ROUNDED_DOWN, 0)
@example(DRIED_UP, 0)
def test_each_source_serves_its_examples_without_gaps(points, seed):
  stop = 9 * BLOCK_LEN - 50
  numbers = {name: [] for name in points[0][1]}
  mixture = mixture_of(points, seed, stop)
  for name, k in served(mixture, stop):
    numbers[name].append(k)
  for ks in numbers.values():
    assert ks == list(range(len(ks)))
  counts = {name: len(ks) for name, ks in numbers.items()}
  assert mixture.num_served() == counts


@given(weight_points(), st.lists(st.floats(0, 3000), min_size=1, max_size=5))
@example(DRIED_UP, [0.0, 416.0, 1.5, 1000.0])
@example(FROM_ZERO, [0.0])
def test_the_curve_is_the_sum_of_weights_and_its_inverse(points, ats):
  names = list(points[0][1])
  curve = WeightCurve([(at, [w[n] for n in names]) for at, w in points])
  whole = np.floor(ats).astype(int)
  expected = slow_shares(points, 3001)[whole]
  np.testing.assert_allclose(curve.shares_before(whole), expected, atol=1e-6)
  for shares in curve.shares_before(np.array(ats)):
    due = curve.when_due(shares + 0.25)
    for k in np.flatnonzero(np.isfinite(due)):
      reached = curve.shares_before(due[k : k + 1])[0, k]
      assert reached == pytest.approx(shares[k] + 0.25, rel=1e-9)
    last = [w for _, w in points][-1]
    for k in np.flatnonzero(np.isinf(due)):
      assert last[names[k]] == 0


def test_weights_change_linearly_from_step_to_step():
  points = [(0, {'a': 0.8, 'b': 0.2}), (1280, {'a': 0.2, 'b': 0.8})]
  names = [n for n, _ in served(mixture_of(points, 0, 2560), 2560)]
  blocks = [names[k : k + 128].count('a') / 128 for k in range(0, 2560, 128)]
  falling = 0.8 - 0.06 * (np.arange(10) + 0.5)
  np.testing.assert_allclose(blocks, [*falling, *[0.2] * 10], atol=1.1 / 128)


def test_shares_wanted_are_the_mean_weights():
  points = [(0, {'a': 1.0, 'b': 0.0}), (100, {'a': 0.5, 'b': 0.5})]
  mixture = mixture_of(points, 0, 300)
  slow = slow_shares(points, 300)
  for first, stop in ((0, 300), (0, 1), (40, 90), (90, 130), (299, 300)):
    wanted = mixture.shares_wanted(first, stop)
    mean = (slow[stop] - slow[first]) / (stop - first)
    np.testing.assert_allclose([wanted['a'], wanted['b']], mean)


def test_any_example_can_be_asked_for_first():
  weights = {'a': 0.7, 'b': 0.25, 'c': 0.05}
  expected = served(Mixture(weights, 3, 1000), 1000)
  mixture = Mixture(weights, 3, 5000)
  for i in np.random.default_rng(0).permutation(1000).tolist():
    assert mixture.source_of_example(i) == expected[i]
  with pytest.raises(IndexError, match='example 5000 of 5000'):
    mixture.source_of_example(5000)


def test_what_weights_leave_open_is_drawn_for_each_block_and_seed():
  weights = {'a': 0.5, 'b': 0.5}
  names = [name for name, _ in served(Mixture(weights, 0, 256), 256)]
  first, second = names[:128], names[128:]
  other = [name for name, _ in served(Mixture(weights, 1, 128), 128)]
  assert len({tuple(first), tuple(second), tuple(other)}) == 3
  # Each pair has both, in either order: half of the time the next pair begins
  # as this one ends.
  pairs = zip(names[::2], names[1::2], strict=True)
  assert all({*pair} == {'a', 'b'} for pair in pairs)
  assert 20 < sum(x == y for x, y in itertools.pairwise(first)) < 44


@settings(max_examples=40, deadline=None)
@given(weight_points(max_later=1), st.integers(0, 9))
@example(OVERTAKEN, 0)
@example(constant(1 - 1e-6, 1e-6), 0)
@example(constant(0.3, 0.25, 0.15, 0.1, 0.1, 0.1), 0)
def test_every_window_has_its_shares(points, seed):
  stop = 10 * BLOCK_LEN
  names = list(points[0][1])
  numbers = [
    names.index(n) for n, _ in served(mixture_of(points, seed, stop), stop)
  ]
  counts = np.cumsum(np.eye(len(names))[[0, *numbers]], 0)
  counts -= counts[0]
  if len(points) == 1:
    assert np.abs(counts - slow_shares(points, stop)).max() < 2
  # Inside a block, of what the block has.
  for block in range(10):
    part = counts[block * BLOCK_LEN : (block + 1) * BLOCK_LEN + 1]
    part = part - part[0]
    shares = np.linspace(0, 1, BLOCK_LEN + 1)[:, None] * part[-1]
    assert np.abs(part - shares).max() < 1


def test_a_batch_has_its_shares():
  # Those of a source with a quarter of the weight, in batches of 16: shuffled
  # blocks gave it 0 to 11.
  mixture = Mixture({'a': 0.6, 'b': 0.25, 'c': 0.15}, 0, 16_000)
  names = np.array([n for n, _ in served(mixture, 16_000)]).reshape(-1, 16)
  counts = (names == 'b').sum(axis=1)
  assert counts.min() >= 3
  assert counts.max() <= 5


@pytest.mark.parametrize('third', [0.333333, 0.3333335])
def test_rounded_weights_hold_for_millions_of_examples(third):
  # What is missing from 1, or too much, is several examples by then.
  end = 2**21
  mixture = Mixture(dict.fromkeys('abc', third), 0, end)
  assert all(abs(n - end / 3) < 1 for n in mixture.num_served().values())


@pytest.mark.parametrize(
  'weights', [{'a': 0.5, 'b': 0.4}, {'a': 1.5, 'b': -0.5}, {}]
)
def test_weights_that_are_no_shares_are_refused(weights):
  with pytest.raises(ValueError, match='sum to 1'):
    Mixture(weights, 0, 100)
