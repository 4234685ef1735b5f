"""What is kept, against sorting; what is drawn, against its probabilities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from longctx_jax.config_from_dict import ConfigError
from longctx_jax.sampling import Sampling, keep_likeliest, sample_tokens

V = 8
keep = jax.jit(keep_likeliest)
sample = jax.jit(sample_tokens)


def logits_of(weights):
  return jnp.log(jnp.asarray(weights, jnp.float32))


def kept_by(logits, top_k=0, top_p=1.0):
  return np.asarray(keep(logits, jnp.int32(top_k), jnp.float32(top_p)))


def plain_keep(weights, top_k, top_p):
  """By sorting, in whole numbers: equally likely tokens share their fate."""
  order = sorted(range(len(weights)), key=lambda i: -weights[i])
  if top_k:
    least = weights[order[min(top_k, len(order)) - 1]]
    order = [i for i in order if weights[i] >= least]
  total, enough = 0, top_p * sum(weights[i] for i in order)
  for i in order:
    total += weights[i]
    if total >= enough:
      return {j for j in order if weights[j] >= weights[i]}
  raise AssertionError


@given(
  st.lists(st.integers(0, 6).map(lambda n: 2**n), min_size=V, max_size=V),
  st.integers(0, V + 1),
  st.sampled_from([1 / 64, 0.25, 0.5, 0.75, 63 / 64, 1.0]),
)
def test_what_is_kept_is_what_sorting_keeps(weights, top_k, top_p):
  logits = logits_of([weights, weights[::-1]])
  kept = kept_by(logits, top_k, top_p)
  # Sums that hit the bound exactly may round to either side of it.
  near = [plain_keep(weights, top_k, top_p * (1 + e)) for e in (-1e-6, 0)]
  if top_p < 1:
    near.append(plain_keep(weights, top_k, top_p * (1 + 1e-6)))
  assert set(np.flatnonzero(kept[0])) in near
  assert set(V - 1 - np.flatnonzero(kept[1])) in near


def test_the_example_of_the_docstring():
  logits = logits_of([[0.3, 0.1, 0.3, 0.1, 0.2]])
  assert kept_by(logits, 3).tolist() == [[True, False, True, False, True]]
  assert kept_by(logits, 3, 0.8).all() == kept_by(logits, 3).all()
  assert kept_by(logits, 3, 0.7).tolist() == [[True, False, True, False, False]]
  # Of all, the same two have 0.6 only.
  assert kept_by(logits, 0, 0.7).tolist() == kept_by(logits, 3).tolist()


# Subnormal numbers are 0 on most devices.
@given(
  st.lists(
    st.floats(width=32, allow_nan=False, allow_subnormal=False),
    min_size=V,
    max_size=V,
  )
)
@example([0.0, -0.0] * 4)
def test_top_k_orders_all_floats_as_numpy_does(values):
  values = np.array(values, np.float32)
  for k in range(1, V + 1):
    kept = kept_by(jnp.asarray(values)[None], k)[0]
    least = np.sort(values)[::-1][k - 1]
    assert kept.tolist() == (values >= least).tolist()


def draws(weights, count=4000, **how):
  """How often each token is drawn."""
  sampling = Sampling(**how)
  logits = jnp.broadcast_to(logits_of(weights)[None], (count, len(weights)))
  tokens = sample(
    logits,
    jax.random.split(jax.random.key(0), count),
    temperature=jnp.float32(sampling.temperature),
    top_k=jnp.int32(sampling.top_k),
    top_p=jnp.float32(sampling.top_p),
  )
  return np.bincount(np.asarray(tokens), minlength=len(weights))


@pytest.mark.parametrize(
  ('how', 'expected'),
  [
    ({'temperature': 1.0}, [4, 1, 2, 1]),
    ({'temperature': 0.5}, [16, 1, 4, 1]),
    ({'temperature': 2.0}, [2, 1, 2**0.5, 1]),
    ({'temperature': 1.0, 'top_k': 2}, [4, 0, 2, 0]),
    # The second and fourth are alike: both are the third likeliest.
    ({'temperature': 1.0, 'top_k': 3}, [4, 1, 2, 1]),
    ({'temperature': 1.0, 'top_p': 0.7}, [4, 0, 2, 0]),
    # Top-p is of what the temperature made: 16 of 22 is more than 0.7.
    ({'temperature': 0.5, 'top_p': 0.7}, [1, 0, 0, 0]),
    # And of what top-k left: 4 of 6 is more than 0.6, 4 of 8 is not.
    ({'temperature': 1.0, 'top_k': 2, 'top_p': 0.6}, [1, 0, 0, 0]),
    ({'temperature': 0.0}, [1, 0, 0, 0]),
    ({'temperature': 1e-6}, [1, 0, 0, 0]),
  ],
  ids=str,
)
def test_tokens_are_drawn_as_often_as_they_are_likely(how, expected):
  counts = draws([4, 1, 2, 1], **how)
  expected = np.array(expected) / sum(expected) * counts.sum()
  assert (counts[expected == 0] == 0).all()
  real = expected > 0
  chi_square = np.sum((counts - expected)[real] ** 2 / expected[real])
  # Of up to 3 degrees of freedom: above 21 once in 10,000.
  assert chi_square < 21


def test_a_row_is_drawn_by_its_own_key_and_logits():
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(6, V)), jnp.float32)
  keys = jax.random.split(jax.random.key(1), 6)
  run = functools.partial(
    sample,
    temperature=jnp.float32(2),
    top_k=jnp.int32(6),
    top_p=jnp.float32(0.9),
  )
  together = np.asarray(run(logits, keys))
  back = np.asarray(run(logits[::-1], keys[::-1]))
  assert together.tolist() == back[::-1].tolist()
  one_key = jnp.broadcast_to(keys[:1], 6)
  assert together.tolist() != np.asarray(run(logits, one_key)).tolist()


def test_greedy_takes_the_first_of_the_likeliest():
  assert draws([1, 3, 3, 2], count=1).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
  ('how', 'message'),
  [
    ({'temperature': -1.0}, 'temperature must be at least'),
    ({'temperature': 1e-9}, 'temperature must be at least'),
    ({'temperature': float('nan')}, 'temperature must be at least'),
    ({'temperature': float('inf')}, 'temperature must be at most 1000000.0'),
    ({'top_k': 10**11}, 'top_k must be at most 2147483647, got 100000000000'),
    ({'top_k': -1}, 'top_k must be at least 0, got -1'),
    ({'top_p': 0.0}, 'top_p must be above 0 and at most 1, got 0.0'),
    ({'top_p': 1.5}, 'top_p must be above 0 and at most 1, got 1.5'),
    ({'top_p': float('nan')}, 'top_p must be above 0'),
  ],
)
def test_settings_that_mean_nothing_are_refused(how, message):
  with pytest.raises(ConfigError, match=message):
    Sampling(**how)
